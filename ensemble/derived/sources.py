"""What derived members are made from: the members whose fold models lie in the run.

Shapes: T outputs, V rows of one fold.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.derived.images import store_folder
from ensemble.members import Member, Part, Pool
from search.metrics import joint_score
from search.run_folder import RunFolder, read_json, write_json
from spaces.errors import UserError

MANIFEST = "manifest.json"


def sources(pool: Pool, run: RunFolder) -> tuple[Pool, list[str]]:
    """The pool with only those members whose fold models lie in this run, and why others do not
    count."""
    kept, notes, strangers = [], [], []
    for member in pool.members:
        if member.origin is None or member.origin.run.root.resolve() != run.root.resolve():
            strangers.append(member.name)
            continue
        lost = [k for k in range(pool.folds) if not model_file(member, k).is_file()]
        if lost:
            folder = model_file(member, 0).parent
            notes.append(f"{member.name} takes no part: {folder} lacks the models of folds {lost}")
        else:
            kept.append(member)
    if strangers:
        notes.append(f"{listed(strangers)}: no models in {run.root}, so nothing is made of them")
    return replace(pool, members=tuple(kept)), notes


def part(member: Member) -> Part:
    """The member's own fold models."""
    return member.parts[0]


def model_file(member: Member, fold: int) -> Path:
    return part(member).folder / f"fold-{fold}.safetensors"


def fold_rows(pool: Pool, fold: int) -> NDArray[np.int64]:
    """Indices of the rows of a fold, ascending."""
    return np.flatnonzero(pool.fold_N == fold)


def score_of(pool: Pool, preds: Mapping[int, NDArray[np.float32]]) -> float:
    """Score over the folds of `preds`, which holds the (T, V) predictions of each."""
    rows = np.concatenate([fold_rows(pool, k) for k in preds])
    pred_TV = np.concatenate([preds[k] for k in preds], axis=1)
    true_TV = np.take(pool.true_TN, rows, axis=1)
    return joint_score(pool.metric, pred_TV, true_TV, pool.fold_N[rows])


def inputs(pool: Pool, run: RunFolder, kind: str) -> dict[str, Any]:
    """All that decides what is made of these members; equal inputs need no second inference."""
    files = {f"{m.name}/{k}": model_file(m, k) for m in pool.members for k in range(pool.folds)}
    for member in pool.members:
        assert member.oof_folder is not None
        files[f"{member.name}/pred"] = member.oof_folder / "pred.npy"
    digest = hashlib.sha256(np.ascontiguousarray(pool.true_TN).tobytes())
    digest.update(pool.fold_N.tobytes())
    data = {
        "kind": kind,
        "members": [member.name for member in pool.members],
        "files": {name: stamp(path) for name, path in files.items()},
        "truth": digest.hexdigest(),
        "metric": pool.metric.to_dict(),
        "task_type": pool.task_type,
        "store": store_folder(run).name,
    }
    return dict(json.loads(json.dumps(data)))


def stamp(path: Path) -> list[int]:
    """Size and time of change: a file that agrees in both is the same."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def read_kept(folder: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier build wrote into the folder's manifest; None when it had other inputs, or
    when one of its files is gone or was changed."""
    try:
        kept = read_json(folder / MANIFEST)
    except UserError:
        return None
    if kept.get("inputs") != given or kept.get("made") != _files(folder):
        return None
    return kept


def write_kept(folder: Path, given: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Write the manifest, after all other files of the folder."""
    write_json(folder / MANIFEST, {"inputs": given, "made": _files(folder), **result})


def drop_kept(folder: Path) -> None:
    """Remove the folder, the manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> dict[str, list[int]]:
    found = (path for path in sorted(folder.glob("*.*")) if path.is_file())
    return {path.name: stamp(path) for path in found if path.name != MANIFEST}


def load_rows(path: Path) -> NDArray[np.float32]:
    """What `search.oof.save_rows` wrote, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def listed(names: Sequence[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
