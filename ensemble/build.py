"""python -m ensemble.build RUN [RUN ...], or with --oof: choose members, weigh them, report.

Shapes: M members, T outputs, N test rows.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.limits import MAX_MEMBERS, Limits
from ensemble.meter import Tell, silent
from spaces.errors import UserError, run_main
from spaces.task import TASK_TYPES

if TYPE_CHECKING:
    import numpy as np
    from filelock import BaseFileLock
    from numpy.typing import NDArray

    from ensemble.blend import Blend
    from ensemble.bundle import Bundle
    from ensemble.choose import Choice
    from ensemble.members import Pool
    from search.run_folder import RunFolder

METHOD, AUTO = "greedy", "auto"
DERIVED = ("soup", "features")


@dataclass(frozen=True, kw_only=True, eq=False)
class BuildResult:
    """What was chosen, and where it lies."""

    choice: "Choice"
    bundle: "Bundle"
    submission: Path | None  # None: no test rows, or a member without predictions for them
    test_TN: "NDArray[np.float32] | None" = None  # what the submission was written from


def build(
    *runs: "RunFolder",
    out: Path | None = None,
    add: Sequence[str] = (),
    tell: Tell = silent,
    **how: Any,
) -> BuildResult:
    """Choose from the members that are there now, and refresh bundle and submission.

    `out` puts the bundle elsewhere than RUN/ensemble and the submission beside it; several runs
    need it. `add` names the kinds of derived members to make first, of DERIVED; only these need
    inference. `how` goes to `choose`. Raises UserError when there is no member or one is damaged.
    """
    from ensemble.bundle import MANIFEST
    from ensemble.choose import choose
    from ensemble.export import export
    from ensemble.members import load_members
    from ensemble.outputs import refuse_foreign

    faults = []
    roots = [run.root.resolve() for run in runs]
    if len(runs) > 1 and out is None:
        faults.append("several runs are joined and no --out is given; name the bundle's folder")
    if len(set(roots)) < len(roots):
        faults.append("a run is given twice; name each run once")
    unknown = [name for name in add if name not in DERIVED]
    if unknown:
        faults.append(f"--add has {', '.join(unknown)}; known: {', '.join(DERIVED)}")
    if faults:
        raise UserError(faults)
    place = out or runs[0].ensemble
    refuse_foreign(place, MANIFEST, "bundle")
    # A search refreshes its ensemble as members finish, and a person may build by hand meanwhile.
    with ExitStack() as stack:
        for run in sorted(runs, key=lambda run: run.root.resolve()):
            stack.enter_context(building(run))
        pool, notes = _with_derived(load_members(*runs), runs, add, tell)
        notes += [note for run in runs for note in _left_out(run)]
        choice = choose(pool, tell=tell, **how)
        assert pool.facts is not None
        file = pool.facts.layout.submission.file
        target = runs[0].root / file if out is None else out.with_name(f"{out.name}-{file}")
        target.unlink(missing_ok=True)  # an older one would not be this bundle's
        choice = replace(choice, blend=_deciding(choice))
        submission, test_TN, lost = _submission(runs[0], pool, choice.blend, target)
        choice.report["notes"] = notes + lost
        bundle = export(pool, choice.blend, choice.report, columns_of(runs[0], pool), place)
        return BuildResult(choice=choice, bundle=bundle, submission=submission, test_TN=test_TN)


def building(run: "RunFolder") -> "BaseFileLock":
    """Held by whoever builds from the run's members, or changes which there are."""
    from filelock import FileLock

    return FileLock(run.root / ".ensemble.lock")


def build_files(choice: "Choice", out: Path) -> None:
    """Write what was chosen from plain files: blend.safetensors, oof.npy (the nested predictions:
    each row by what was chosen without its fold) and, last, ensemble.json."""
    from ensemble.files.predictions import save_array
    from search.run_folder import write_json

    for name in ("ensemble.json", "test.csv", "test.npy"):  # of an earlier choice
        (out / name).unlink(missing_ok=True)
    choice.blend.save(out / "blend.safetensors")
    save_array(out / "oof.npy", choice.oof_TN)
    write_json(out / "ensemble.json", choice.report)


def _with_derived(
    pool: "Pool", runs: Sequence["RunFolder"], add: Sequence[str], tell: Tell
) -> tuple["Pool", list[str]]:
    """The pool with soups and feature heads of each run's members, and what is to say of them."""
    members, notes = list(pool.members), []
    for kind in dict.fromkeys(add):
        if kind == "soup":
            from ensemble.derived.soup import make_soups as make
        else:
            from ensemble.derived.features import make_feature_heads as make
        for run in runs:
            made, said = make(pool, run, tell)
            label = "" if len(runs) == 1 else f"{run.root.name}/"
            members += [replace(member, name=f"{label}{member.name}") for member in made]
            notes += [f"{member.name}: {member.note}" for member in made] + said
    return replace(pool, members=tuple(members)), notes


def _left_out(run: "RunFolder") -> list[str]:
    lost = run.without_models()
    if not lost:
        return []
    return [
        f"{len(lost)} finished trials of {run.root} take no part: their checkpoints were deleted "
        "(--keep-gb), the worst first"
    ]


def columns_of(run: "RunFolder", pool: "Pool") -> tuple[str, ...]:
    """Of a table that is handed in, the id column first."""
    from ensemble.submission import SubmissionForm

    if run.form.is_file():
        return SubmissionForm.load(run.form).columns
    assert pool.facts is not None
    return (pool.facts.layout.id_column, *pool.facts.target_names)


def _deciding(choice: "Choice") -> "Blend":
    """The blend with a threshold for each output that is handed in as a decision, where the metric
    asks for none: the one with the most right rows, on predictions by ensembles that were chosen
    without those rows."""
    from search.metrics import best_thresholds, get_metric

    pool, blend = choice.pool, choice.blend
    assert pool.facts is not None
    decides = pool.facts.layout.submission.decided != "none"
    if not decides or blend.post.thresholds_T is not None or pool.task_type == "multiclass":
        return blend
    accuracy = get_metric("accuracy").fit(pool.true_TN)
    thresholds_T = best_thresholds(accuracy, choice.oof_TN, pool.true_TN, pool.fold_N)
    return replace(blend, post=replace(blend.post, thresholds_T=thresholds_T))


def _submission(
    run: "RunFolder", pool: "Pool", blend: "Blend", target: Path
) -> tuple[Path | None, "NDArray[np.float32] | None", list[str]]:
    """The submission from the members' kept predictions for the test rows, and these; or why there
    is none."""
    from ensemble.submission import SubmissionForm
    from search.oof import read_test

    if not run.form.is_file():
        return None, None, []
    form = SubmissionForm.load(run.form)
    preds = []
    for m in blend.members:
        folder = pool.members[m].oof_folder
        assert folder is not None
        test_TN = read_test(folder, len(form.target_names), len(form.test_ids))
        if test_TN is None:
            name = pool.members[m].name
            return None, None, [f"no submission: member {name} kept no predictions for the test "
                                "rows; predict with the bundle"]  # fmt: skip
        preds.append(test_TN)
    blended_TN = blend.apply(preds)
    form.write(target, blended_TN, blend.post.thresholds_T)
    return target, blended_TN, []


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensemble.build",
        description="Build the ensemble of a run, of several runs with the same folds, or of "
        "anyone's out-of-fold predictions.",
    )
    parser.add_argument("run", nargs="*", help="folder or URL of a run")
    parser.add_argument(
        "--method", default=METHOD, metavar="M",
        help=f"how to combine (default {METHOD}); auto: the simplest within one standard error",
    )  # fmt: skip
    parser.add_argument("--max-members", type=int, default=MAX_MEMBERS, metavar="N",
                        help=f"default {MAX_MEMBERS}")  # fmt: skip
    parser.add_argument("--max-per-family", type=int, metavar="N", help="of one backbone family")
    parser.add_argument("--max-mb", type=float, metavar="MB", help="of all models together")
    parser.add_argument("--max-ms", type=float, metavar="MS", help="to predict one image")
    parser.add_argument("--sorted-start", type=int, default=0, metavar="N",
                        help="greedy: start from the N best")  # fmt: skip
    parser.add_argument("--bag", nargs="+", default=(), metavar="members|rows",
                        help="greedy: average 20 selections, each from half of these")  # fmt: skip
    parser.add_argument("--add", nargs="+", default=(), metavar="|".join(DERIVED),
                        help="first make members by inference: means of weights of models that "
                        "began alike; a linear layer on the features of the best")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the result (default RUN/ensemble)")
    files = parser.add_argument_group("predictions from anywhere (npy, csv or parquet)")
    files.add_argument("--oof", type=Path, nargs="+", metavar="FILE", help="one per member")
    files.add_argument("--target", type=Path, metavar="FILE", help="the truth")
    files.add_argument("--folds", type=Path, metavar="FILE", help="fold (and group) of each row")
    files.add_argument("--metric", metavar="NAME", help="auroc, log_loss, rmse, khd, ...")
    files.add_argument("--task-type", choices=TASK_TYPES, help="what the outputs are")
    files.add_argument("--id-column", metavar="NAME", help="default: a column called id")
    files.add_argument("--test", type=Path, nargs="+", metavar="FILE",
                       help="test predictions of each member, in the order of --oof")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    _refuse_mixed(args)

    from ensemble.greedy import Options
    from ensemble.show import progress, say, show

    how: dict[str, Any] = {
        "method": args.method,
        "limits": Limits(
            max_members=args.max_members,
            max_per_family=args.max_per_family,
            max_mb=args.max_mb,
            max_ms=args.max_ms,
        ),
        "options": Options(sorted_start=args.sorted_start, bag=tuple(args.bag)),
        "compared": True,
    }
    if args.run:
        with progress() as tell:
            runs = [_open(path, tell) for path in args.run]
            result = build(*runs, out=args.out, add=args.add, tell=tell, **how)
        for note in result.choice.report["notes"]:
            say(note)
        show(result.choice)
        say(f"bundle: {result.bundle.root}")
        if result.submission:
            say(f"submission: {result.submission}")
        return 0
    _main_files(args, how)
    return 0


def _open(path: str, tell: Tell) -> "RunFolder":
    """A run; of one at a URL its folder on this disk, where the result is written too."""
    from search.data.remote import is_url
    from search.download import fetch_run
    from search.run_folder import RunFolder

    if is_url(path):
        return RunFolder(fetch_run(path, lambda done, total: tell(done, total, "fetching")))
    return RunFolder.open(path)


def _main_files(args: argparse.Namespace, how: dict[str, Any]) -> None:
    from ensemble.bundle import MANIFEST
    from ensemble.choose import choose
    from ensemble.files import read_files, read_test_files, write_predictions
    from ensemble.members import pool_of_files
    from ensemble.outputs import refuse_foreign
    from ensemble.show import progress, say, show
    from search.metrics import check_predictions

    out = args.out or Path("ensemble")
    refuse_foreign(out, "ensemble.json", "ensemble of plain files", never=MANIFEST)
    files = read_files(args.oof, args.target, args.folds, args.task_type, args.id_column)
    for note in files.notes:
        say(note)
    pool = pool_of_files(files, args.metric, args.task_type)
    tests = None
    if args.test:
        tests = read_test_files(args.test, files.names, files.target_names, args.id_column)
        faults = [
            fault
            for path, pred_TN in zip(args.test, tests[1], strict=True)
            for fault in check_predictions(pool.metric, pred_TN, str(path))
        ]
        if faults:
            raise UserError(faults)
    with progress() as tell:
        choice = choose(pool, tell=tell, **how)
    choice.report["notes"] = list(files.notes)
    build_files(choice, out)
    show(choice)
    say(f"written: {out}")
    if tests is not None:
        ids, preds = tests
        pred_TN = choice.blend.apply([preds[m] for m in choice.blend.members])
        say(f"test predictions: {write_predictions(out, ids, files.target_names, pred_TN)}")


def _refuse_mixed(args: argparse.Namespace) -> None:
    """Raises UserError unless either runs or plain files are given, the latter complete."""
    given = {
        "--oof": args.oof, "--target": args.target, "--folds": args.folds,
        "--metric": args.metric, "--task-type": args.task_type, "--id-column": args.id_column,
        "--test": args.test,
    }  # fmt: skip
    used = [flag for flag, value in given.items() if value is not None]
    faults = []
    if args.run and used:
        faults.append(f"{', '.join(used)} go with plain files, not with a run; leave out one side")
    if args.method not in (METHOD, AUTO) and (args.bag or args.sorted_start):
        faults.append(f"--bag and --sorted-start vary {METHOD}; --method is {args.method}")
    if not args.run:
        if args.max_per_family is not None:
            faults.append("--max-per-family counts backbones, which plain files do not tell")
        needed = ("--oof", "--target", "--metric", "--task-type")
        missing = [flag for flag in needed if given[flag] is None]
        if missing:
            faults.append(
                f"{', '.join(missing)} missing; give a RUN, or --oof, --target, --metric and "
                "--task-type"
            )
        if args.add:
            faults.append("--add needs a run's models and images; leave it out with plain files")
        if args.test and args.oof and len(args.test) != len(args.oof):
            faults.append(
                f"--test names {len(args.test)} files and --oof {len(args.oof)}; give one test "
                "file per member, in the same order"
            )
    if faults:
        raise UserError(faults)


if __name__ == "__main__":
    run_main(main)
