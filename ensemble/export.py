"""Write a bundle: fold models, blend, report, README, requirements and the code to predict."""

import dataclasses
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.blend import Blend
from ensemble.bundle import (
    BLEND,
    CODE,
    MANIFEST,
    REPORT,
    REQUIREMENTS,
    Bundle,
    BundleMember,
    BundlePart,
)
from ensemble.explain import (
    after,
    formula,
    input_text,
    member_rows,
    output_text,
    score_text,
    targets,
)
from ensemble.members import Member, Pool
from ensemble.outputs import refuse_foreign
from ensemble.vendor import Closure, closure, copy_code, requirements
from search.run_folder import write_json, write_text
from spaces.errors import UserError

ALL = "all"  # in place of a fold's number: a model that was trained on all rows
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
    pool: Pool,
    blend: Blend,
    report: dict[str, Any],
    columns: Sequence[str],
    out: Path,
    refit: Mapping[int, Path] | None = None,
) -> Bundle:
    """Write the bundle of a blend of the pool's members to the folder `out`, whole or not at all.

    `report` becomes ensemble.json; `columns` are those of the submission. `refit` names folders of
    members' models that were trained on all rows, to take in place of the fold models. A bundle
    that lies there is replaced. Raises UserError when `out` holds something else, or when a member
    lacks a model.
    """
    refuse_foreign(out, MANIFEST, "bundle")
    new = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        bundle = _fill(new, pool, blend, report, columns, refit or {})
        _replace(out, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return dataclasses.replace(bundle, root=out)


def _fill(
    root: Path,
    pool: Pool,
    blend: Blend,
    report: dict[str, Any],
    columns: Sequence[str],
    refit: Mapping[int, Path],
) -> Bundle:
    assert pool.facts is not None
    bundle = Bundle(
        root=root,
        task=pool.task,
        target_names=pool.target_names,
        columns=tuple(columns),
        layout=pool.facts.layout,
        clean=pool.facts.clean,
        members=_members(root, pool, blend, refit),
        blend=dataclasses.replace(blend, members=tuple(range(len(blend.members)))),
    )
    found = closure()
    copy_code(found, root / CODE)
    pins = requirements(found)
    bundle.blend.save(root / BLEND)
    write_json(root / REPORT, report)
    write_text(root / REQUIREMENTS, "".join(f"{pin}\n" for pin in pins))
    write_text(root / "predict.py", _PREDICT)
    write_text(root / "README.md", _readme(bundle, report, found))
    bundle.write_manifest({"rows": len(pool.fold_N), "folds": pool.folds, "versions": list(pins)})
    return bundle


def _members(
    root: Path, pool: Pool, blend: Blend, refit: Mapping[int, Path]
) -> tuple[BundleMember, ...]:
    """The blend's members in its order, their models linked into the bundle.

    Raises UserError naming all that lack models.
    """
    members: list[BundleMember] = []
    faults: list[str] = []
    for number, (m, weight) in enumerate(zip(blend.members, blend.weights, strict=True)):
        try:
            member, models = pool.members[m], [str(k) for k in range(pool.folds)]
            if m in refit:
                (part,) = member.parts
                member = dataclasses.replace(member, parts=(part._replace(folder=refit[m]),))
                models = [ALL]
            members.append(_member(root, number, member, weight, models))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    return tuple(members)


def _member(
    root: Path, number: int, member: Member, weight: float, folds: Sequence[str]
) -> BundleMember:
    if not member.parts:
        raise UserError(
            f"member {member.name} has predictions but no models; a bundle needs a run's members"
        )
    # By number: a name may hold what a path may not.
    home, parts, faults = f"models/{number:02d}", [], []
    for place, part in enumerate(member.parts):
        lost = [k for k in folds if not (part.folder / _model(k)).is_file()]
        if lost:
            faults.append(
                f"member {member.name} lacks the models of folds {', '.join(lost)} in "
                f"{part.folder}; restore "
                f"them, or delete {member.oof_folder} to build without it"
            )
            continue
        folder = f"{home}/part-{place}" if member.layer else home
        models = _link_folds(part.folder, root, folder, folds)
        parts.append(BundlePart(recipe=part.recipe, decode_size=part.decode_size, models=models))
    if faults:
        raise UserError(faults)
    layers = _link_folds(member.layer, root, f"{home}/layer", folds) if member.layer else {}
    return BundleMember(name=member.name, weight=weight, parts=tuple(parts), layers=layers)


def _link_folds(source: Path, root: Path, folder: str, folds: Sequence[str]) -> dict[str, str]:
    """A folder's fold files as files of the bundle: fold -> name."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    files = {k: f"{folder}/{_model(k)}" for k in folds}
    for fold, name in files.items():
        _link(source / _model(fold), root / name)
    return files


def _model(fold: str) -> str:
    return f"fold-{fold}.safetensors"


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


def _readme(bundle: Bundle, report: dict[str, Any], found: Closure) -> str:
    layout, blend = bundle.layout, bundle.blend
    scores = [[row["name"], score_text(row), row["kind"]] for row in report["scores"]]
    steps = [f"{step[0].upper()}{step[1:]}." for step in after(blend, bundle.target_names)]
    averaged = "" if _refitted(bundle) else "The fold models of a member are averaged; then "
    lines = [
        f"# Ensemble for {bundle.task}",
        "",
        f"{len(bundle.members)} members with {_models_text(bundle)} each "
        f"predict for each image the targets ({bundle.task_type}) {targets(bundle.target_names)}.",
        "This folder is all that prediction needs.",
        "",
        "## Run",
        "",
        "```",
        f"pip install -r {REQUIREMENTS}",
        f"python predict.py --data DIR --out {layout.submission.file}",
        "python predict.py --explain",
        "```",
        "",
        f"DIR holds {input_text(layout)}. The file that is written is "
        f"{output_text(layout, bundle.task_type)}.",
        "`--tta 1|4|8` averages the image alone, its flips, or flips and quarter turns; without it "
        "each model does what it was searched with.",
        "",
        f"## Scores ({report['metric']}, higher is better)",
        "",
        *_markdown([["what", "score", "kind"], *scores]),
        "",
        "Expect the nested score on new data of the same kind, not the optimistic one.",
        *(["", *(f"Note: {note}." for note in report["notes"])] if report.get("notes") else []),
        "",
        "## Members",
        "",
        *_markdown(member_rows(bundle, report)),
        "",
        f"{averaged}`{blend.method}` takes {formula(blend)}.",
        *steps,
        "",
        f"`{MANIFEST}` holds recipes, layout and the digest of every file; a changed byte is "
        f"refused. `{BLEND}` holds the weights, `{REPORT}` the whole report, and `{CODE}/` the "
        f"{len(found.files)} source files that prediction uses.",
        "",
    ]
    return "\n".join(lines)


def _models_text(bundle: Bundle) -> str:
    if _refitted(bundle):
        return "one model trained on all rows"
    return f"{len(bundle.members[0].folds)} fold models"


def _refitted(bundle: Bundle) -> bool:
    return list(bundle.members[0].folds) == [ALL]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; the first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return [head, f"|{'---|' * len(rows[0])}", *rest]
