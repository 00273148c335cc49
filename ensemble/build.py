"""python -m ensemble.build RUN: choose members, write the bundle and the submission.

Shapes: M members, T outputs, N test rows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import UserError, run_main

if TYPE_CHECKING:
    from ensemble.bundle import Bundle
    from ensemble.greedy import Selection
    from ensemble.honest import Nested
    from ensemble.members import Pool
    from search.run_folder import RunFolder

MAX_MEMBERS = 10  # each costs K models at prediction


@dataclass(frozen=True, kw_only=True)
class Share:
    """A chosen member as the table shows it."""

    trial: int
    weight: float
    score: float  # its own trial score
    gain: float  # what the ensemble's score loses without it, the other weights kept


@dataclass(frozen=True, kw_only=True, eq=False)
class BuildResult:
    """What was chosen, how good it is, and where it lies."""

    pool: "Pool"
    selection: "Selection"
    nested: "Nested"
    shares: tuple[Share, ...]  # heaviest first
    bundle: "Bundle"
    submission: Path | None  # None: no test rows, or a member without predictions for them

    @property
    def score(self) -> float:
        """OOF score of the ensemble: optimistic, selected on the same rows."""
        return self.selection.score


def build(
    run: "RunFolder", *, max_members: int = MAX_MEMBERS, out: Path | None = None
) -> BuildResult:
    """Select from the members that are there now, and refresh bundle and submission.

    Needs no inference. `out` puts the bundle (not the submission) elsewhere than RUN/ensemble.
    Raises UserError when there is no member or one is damaged.
    """
    from filelock import FileLock

    from ensemble.engines import make_engine
    from ensemble.export import export
    from ensemble.greedy import select
    from ensemble.honest import nested
    from ensemble.members import load_members

    if max_members < 1:
        raise UserError(f"--max-members is {max_members}; it must be 1 or more")
    # A search refreshes its ensemble as members finish, and a person may build by hand meanwhile.
    with FileLock(run.root / ".ensemble.lock"):
        pool = load_members(run)
        engine = make_engine(
            pool.facts.metric, [m.pred_TN for m in pool.members], pool.true_TN, pool.fold_N
        )
        selection = select(engine, max_members=max_members)
        scores = nested(engine, max_members=max_members)
        columns = _columns(run, pool)
        bundle = export(run, pool, selection, scores, columns, out or run.ensemble)
        return BuildResult(
            pool=pool,
            selection=selection,
            nested=scores,
            shares=_shares(engine, pool, selection),
            bundle=bundle,
            submission=_submission(run, pool, selection),
        )


def _columns(run: "RunFolder", pool: "Pool") -> tuple[str, ...]:
    from ensemble.submission import SubmissionForm

    if run.form.is_file():
        return SubmissionForm.load(run.form).columns
    return (pool.facts.layout.id_column, *pool.facts.target_names)


def _shares(engine: Any, pool: "Pool", selection: "Selection") -> tuple[Share, ...]:
    shares = []
    for m in selection.chosen:
        rest_M = selection.counts_M.copy()
        rest_M[m] = 0
        without = float(engine.fold_scores(rest_M).mean()) if rest_M.any() else 0.0
        shares.append(
            Share(
                trial=pool.members[m].trial,
                weight=float(selection.weights_M[m]),
                score=pool.members[m].score,
                gain=selection.score - without,
            )
        )
    return tuple(sorted(shares, key=lambda share: -share.weight))


def _submission(run: "RunFolder", pool: "Pool", selection: "Selection") -> Path | None:
    """RUN/submission.csv from the members' kept predictions for the test rows."""
    import numpy as np

    from ensemble.submission import SubmissionForm
    from search.oof import read_test

    if not run.form.is_file():
        return None
    form = SubmissionForm.load(run.form)
    sum_TN = np.zeros((len(form.target_names), len(form.test_ids)))
    for m in selection.chosen:
        test_TN = read_test(run.oof(pool.members[m].trial), *sum_TN.shape)
        if test_TN is None:
            return None
        sum_TN += selection.weights_M[m] * test_TN
    form.write(run.submission, sum_TN)
    return run.submission


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensemble.build", description="Build the ensemble of a run."
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--max-members", type=int, default=MAX_MEMBERS, help=f"default {MAX_MEMBERS}"
    )
    parser.add_argument("--out", type=Path, help="folder of the bundle (default RUN/ensemble)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from search.run_folder import RunFolder

    show(build(RunFolder.open(args.run), max_members=args.max_members, out=args.out))
    return 0


def show(result: BuildResult) -> None:
    """Print members and scores, each score with its kind."""
    from rich.console import Console
    from rich.table import Table

    from ensemble.export import score_rows

    console = Console()
    members = Table(
        title=f"ensemble of {len(result.shares)} from {len(result.pool.members)} members"
    )
    for name in ("trial", "weight", "own score", "contribution"):
        members.add_column(name, justify="right")
    for share in result.shares:
        members.add_row(
            str(share.trial), f"{share.weight:.3f}", f"{share.score:.4f}", f"{share.gain:+.4f}"
        )
    console.print(members)
    scores = Table(title=f"scores ({result.pool.facts.metric.label}, higher is better)")
    scores.add_column("what")
    scores.add_column("score", justify="right")
    scores.add_column("kind")
    for row in score_rows(result.selection, result.nested):
        error = f" ± {row['standard_error']:.4f}" if "standard_error" in row else ""
        scores.add_row(row["name"], f"{row['score']:.4f}{error}", row["kind"])
    console.print(scores)
    console.print(f"bundle: {result.bundle.root}", soft_wrap=True)
    if result.submission:
        console.print(f"submission: {result.submission}", soft_wrap=True)


if __name__ == "__main__":
    run_main(main)
