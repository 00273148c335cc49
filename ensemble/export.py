"""Write a bundle: fold models, manifest, scores, README, requirements and the code to predict."""

import dataclasses
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemble.bundle import CODE, MANIFEST, Bundle, BundleMember
from ensemble.greedy import Selection
from ensemble.honest import Nested
from ensemble.members import Member, Pool
from ensemble.vendor import Closure, closure, copy_code, requirements
from search.run_folder import RunFolder, write_json, write_text
from spaces.errors import UserError

OPTIMISTIC = "optimistic, selected on the same rows"
NESTED = "nested: chosen without each fold, scored on it"

_PREDICT = '''\
"""Predict with this bundle: python predict.py --data DIR --out FILE"""

import sys
from pathlib import Path

# The bundle's files are checked against digests: no compiled files are added to them.
sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "code"))

if __name__ == "__main__":
    from ensemble.predict import main
    from spaces.errors import run_main

    run_main(lambda: main([str(HERE), *sys.argv[1:]]))
'''


def export(
    run: RunFolder,
    pool: Pool,
    selection: Selection,
    scores: Nested,
    columns: Sequence[str],
    out: Path,
) -> Bundle:
    """Write the bundle of a selection to the folder `out`, whole or not at all.

    A bundle that lies there is replaced. Raises UserError when `out` holds something else, or
    when a chosen trial lacks a fold model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / MANIFEST).is_file():
        raise UserError(f"{out} exists and is no bundle; it is not overwritten: give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        bundle = _fill(new, run, pool, selection, scores, columns)
        _replace(out, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return dataclasses.replace(bundle, root=out)


def score_rows(selection: Selection, scores: Nested) -> list[dict[str, Any]]:
    """The ensemble's scores, each with what kind of score it is."""
    return [
        {"name": "ensemble, OOF", "kind": OPTIMISTIC, "score": selection.score},
        *(
            {
                "name": name,
                "kind": NESTED,
                "score": estimate.mean,
                "standard_error": estimate.se,
                "per_fold": list(estimate.per_fold),
            }
            for name, estimate in (
                ("ensemble, nested", scores.ensemble),
                ("best single, nested", scores.single),
                ("ensemble minus best single, nested", scores.difference),
            )
        ),
    ]


def _fill(
    root: Path,
    run: RunFolder,
    pool: Pool,
    selection: Selection,
    scores: Nested,
    columns: Sequence[str],
) -> Bundle:
    chosen = sorted(selection.chosen, key=lambda m: (-selection.weights_M[m], m))
    folds = sorted({int(fold) for fold in pool.fold_N})
    weights_M, size = selection.weights_M.tolist(), pool.facts.store_size
    members = tuple(_member(root, run, pool.members[m], weights_M[m], folds, size) for m in chosen)
    bundle = Bundle(
        root=root,
        task=pool.facts.task,
        target_names=pool.facts.target_names,
        columns=tuple(columns),
        layout=pool.facts.layout,
        members=members,
    )
    found = closure()
    copy_code(found, root / CODE)
    pins = requirements(found)
    rows = score_rows(selection, scores)
    write_json(root / "ensemble.json", _summary(pool, chosen, selection, rows))
    write_text(root / "requirements.txt", "".join(f"{pin}\n" for pin in pins))
    write_text(root / "predict.py", _PREDICT)
    write_text(root / "README.md", _readme(bundle, pool, chosen, rows, found))
    facts = {"rows": len(pool.fold_N), "folds": len(folds), "versions": list(pins)}
    bundle.write_manifest(facts)
    return bundle


def _member(
    root: Path,
    run: RunFolder,
    member: Member,
    weight: float,
    folds: list[int],
    decode_size: int,
) -> BundleMember:
    source = run.checkpoints(member.trial)
    lost = [k for k in folds if not (source / f"fold-{k}.safetensors").is_file()]
    if lost:
        raise UserError(
            f"trial {member.trial} lacks the models of folds {lost} in {source}; restore them, or "
            f"delete {run.oof(member.trial)} to build without this trial"
        )
    models = {str(k): f"models/{member.trial:04d}/fold-{k}.safetensors" for k in folds}
    for fold, name in models.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        _link(source / f"fold-{fold}.safetensors", root / name)
    return BundleMember(
        trial=member.trial,
        weight=weight,
        recipe=member.recipe,
        decode_size=decode_size,
        models=models,
    )


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them: a rebuilt bundle then costs no space."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _replace(out: Path, new: Path) -> None:
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        # A folder cannot be renamed onto a full one: step aside first.
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _summary(
    pool: Pool, chosen: list[int], selection: Selection, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "task": pool.facts.task,
        "metric": pool.facts.metric.label,
        "weights": {str(pool.members[m].trial): float(selection.weights_M[m]) for m in chosen},
        "steps": [pool.members[m].trial for m in selection.order],
        "scores": rows,
        "members": [
            {
                "trial": pool.members[m].trial,
                "weight": float(selection.weights_M[m]),
                "score": pool.members[m].score,
                "per_fold": [score.value for score in pool.members[m].scores],
            }
            for m in chosen
        ],
    }


def _readme(
    bundle: Bundle, pool: Pool, chosen: list[int], rows: list[dict[str, Any]], found: Closure
) -> str:
    layout, names = bundle.layout, bundle.target_names
    lines = [
        f"# Ensemble for {bundle.task}",
        "",
        f"{len(chosen)} models, each trained on {len(set(pool.fold_N.tolist()))} folds, "
        f"predict {len(names)} targets per image "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}).",
        "This folder is all that prediction needs.",
        "",
        "## Run",
        "",
        "```",
        "pip install -r requirements.txt",
        "python predict.py --data DIR --out submission.csv",
        "```",
        "",
        f"DIR holds `{layout.test}` with the columns `{layout.id_column}` and "
        f"`{layout.path_column}` (image files, relative to DIR). When DIR has a "
        f"`{layout.sample_submission}`, its rows and columns decide the order of the output.",
        "`--tta 1|4|8` averages the image alone, its flips, or flips and quarter turns; without it "
        "each model does what it was searched with.",
        "",
        f"## Scores ({pool.facts.metric.label}, higher is better)",
        "",
        "| what | score | kind |",
        "|---|---|---|",
        *(f"| {r['name']} | {r['score']:.4f}{_se(r)} | {r['kind']} |" for r in rows),
        "",
        "Expect the nested score on new data of the same kind, not the optimistic one.",
        "",
        "## Members",
        "",
        "| trial | weight | backbone | image size | own score |",
        "|---|---|---|---|---|",
        *(
            f"| {member.trial} | {member.weight:.3f} | {member.recipe.get('backbone')} "
            f"| {member.recipe.get('image_size')} | {pool.members[m].score:.4f} |"
            for member, m in zip(bundle.members, chosen, strict=True)
        ),
        "",
        f"`{MANIFEST}` holds recipes, layout and the digest of every file; a changed byte is "
        f"refused. `{CODE}/` holds the {len(found.files)} source files that prediction uses.",
        "",
    ]
    return "\n".join(lines)


def _se(row: dict[str, Any]) -> str:
    return f" ± {row['standard_error']:.4f}" if "standard_error" in row else ""
