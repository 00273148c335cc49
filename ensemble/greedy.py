"""Greedy selection with replacement (Caruana et al. 2004): add, again and again, the member that
raises the score most. Ties are decided the same way every time.

Shapes: M members, K folds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble.engines import Engine, make_engine, tie
from spaces.errors import UserError
from spaces.seeds import derive

if TYPE_CHECKING:
    from ensemble.bench import Bench

STEPS = 25  # more gained nothing in simulations; the counts are the resolution of the weights
BAGS = 20  # selections that bagging averages
SHARE = 0.5  # of members, or of rows, that a bag draws
DRAWS = ("members", "rows")
_TRIES = 20
_EQUAL = 1e-9  # share below which squared errors and correlations are equal

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Variants of greedy selection; the defaults are the plain one."""

    sorted_start: int = 0  # the best members to start with, once each
    bag: tuple[str, ...] = ()  # what each of BAGS selections draws: members, rows or both
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"--bag has {name!r}; known: {', '.join(DRAWS)}"
            for name in self.bag
            if name not in DRAWS
        ]
        if self.sorted_start < 0:
            faults.append(f"--sorted-start is {self.sorted_start}; it must be 0 or more")
        if faults:
            raise UserError(faults)


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Counts per member, and the path that led there."""

    counts_M: Counts
    order: tuple[int, ...]  # the member added at each step, up to the best prefix
    trace: tuple[float, ...]  # the score after each step that was tried
    score: float  # mean over the given folds: optimistic, selected on the same rows

    @property
    def weights_M(self) -> NDArray[np.float64]:
        return self.counts_M / self.counts_M.sum()


def select(
    engine: Engine,
    folds: Sequence[int] | None = None,
    *,
    steps: int = STEPS,
    start: Sequence[int] = (),
    allowed: Callable[[Counts], NDArray[np.bool_]] | None = None,
    prefer: Callable[[Counts, list[int]], int] | None = None,
) -> Selection:
    """The shortest prefix with the best score of `start` and then greedy additions, `steps` in all.

    The score is that on `folds` (None: all). `allowed` says which members may be added to counts.
    Among equal scores a member that is already in wins; then `prefer` picks among those left; then
    the one that comes first. Raises ValueError when there is nothing to select with.
    """
    use = list(range(engine.folds)) if folds is None else list(folds)
    if not use or steps < 1:
        raise ValueError(f"got folds {use} and steps {steps}; each needs at least one")
    counts_M = np.zeros(engine.members, dtype=np.int64)
    order: list[int] = []
    trace: list[float] = []
    for step in range(steps):
        scores_M = engine.step(counts_M, use)
        if step < len(start):
            pick = start[step]
        else:
            if allowed is not None:
                scores_M = np.where(allowed(counts_M), scores_M, -np.inf)
            if not np.isfinite(scores_M).any():
                raise ValueError("no member may be added; the limits must admit at least one")
            tied = np.flatnonzero(scores_M >= scores_M.max() - tie(scores_M.max())).tolist()
            tied = [m for m in tied if counts_M[m]] or tied
            pick = tied[0] if len(tied) == 1 or prefer is None else prefer(counts_M, tied)
        counts_M[pick] += 1
        order.append(int(pick))
        trace.append(float(scores_M[pick]))
    length = int(np.flatnonzero(np.array(trace) >= max(trace) - tie(max(trace)))[0]) + 1
    return Selection(
        counts_M=np.bincount(order[:length], minlength=engine.members),
        order=tuple(order[:length]),
        trace=tuple(trace),
        score=trace[length - 1],
    )


def select_members(bench: "Bench", folds: Sequence[int], options: Options) -> NDArray[np.float64]:
    """(M,) weights of greedy selection on these folds, within the bench's limits."""
    candidates = bench.candidates(folds)
    if not options.bag:
        return path(bench, folds, options).weights_M
    rng = np.random.default_rng(derive(options.seed, "bags", *folds))
    sum_M = np.zeros(len(bench.pool.members))
    for _ in range(BAGS):
        drawn = list(candidates)
        if "members" in options.bag:
            count = max(1, round(SHARE * len(candidates)))
            kept = set(rng.permutation(len(candidates))[:count].tolist())
            drawn = [m for i, m in enumerate(candidates) if i in kept]
        engine = _half_engine(bench, folds, rng) if "rows" in options.bag else bench.engine
        use = range(len(folds)) if "rows" in options.bag else folds
        sum_M += _path(bench, engine, use, drawn, options, moments=folds).weights_M
    # Bags choose different members: what all of them together weigh has to fit the limits again.
    order = np.argsort(-sum_M, kind="stable").tolist()
    kept_M = np.zeros_like(sum_M)
    for m in bench.budget.fill(m for m in order if sum_M[m] > 0):
        kept_M[m] = sum_M[m]
    return kept_M / kept_M.sum()


def path(bench: "Bench", folds: Sequence[int], options: Options) -> Selection:
    """The plain greedy selection on these folds, within the bench's limits."""
    return _path(bench, bench.engine, folds, bench.candidates(folds), options)


def _path(
    bench: "Bench",
    engine: Engine,
    folds: Sequence[int],
    candidates: Sequence[int],
    options: Options,
    moments: Sequence[int] | None = None,
) -> Selection:
    inside_M = np.zeros(engine.members, dtype=bool)
    inside_M[list(candidates)] = True
    return select(
        engine,
        folds,
        steps=max(STEPS, options.sorted_start),
        start=bench.budget.fill(candidates)[: options.sorted_start],
        allowed=lambda counts_M: inside_M & bench.budget.mask(counts_M),
        prefer=closer_then_stranger(bench, folds if moments is None else moments),
    )


def closer_then_stranger(
    bench: "Bench", folds: Sequence[int]
) -> Callable[[Counts, list[int]], int]:
    """Ties go to the ensemble with the lower squared error, then to the member whose errors
    correlate least with the ensemble's, then by name."""

    def prefer(counts_M: Counts, tied: list[int]) -> int:
        gram_MM = bench.errors.gram(folds)
        with_M = gram_MM @ counts_M
        own_M = np.diag(gram_MM)
        total = counts_M.sum() + 1
        square_M = (counts_M @ with_M + 2 * with_M + own_M) / total**2
        least = square_M[tied].min()
        tied = [m for m in tied if square_M[m] <= least * (1 + _EQUAL)]
        closeness_M = with_M / np.sqrt(np.maximum(own_M, 1e-300))
        lowest = closeness_M[tied].min()
        tied = [m for m in tied if closeness_M[m] <= lowest + _EQUAL * abs(lowest)]
        return min(tied, key=lambda m: bench.place_M[m])

    return prefer


def _half_engine(bench: "Bench", folds: Sequence[int], rng: np.random.Generator) -> Engine:
    """An engine on a random half of each fold's rows, or of its groups where there are enough."""
    pool = bench.pool
    unit_N = np.arange(len(pool.fold_N)) if pool.group_N is None else pool.group_N
    picked = []
    for fold in folds:
        rows = np.flatnonzero(pool.fold_N == fold)
        units, unit_rows = np.unique(unit_N[rows]), unit_N[rows]
        if len(units) < 4:  # halves of two or three groups would differ by everything
            units, unit_rows = rows, rows
        half = max(1, round(SHARE * len(units)))
        for _ in range(_TRIES):
            drawn = rows[np.isin(unit_rows, rng.permutation(units)[:half])]
            # A half may lack a rare label, and then the metric says nothing about it.
            if pool.metric.defined(np.take(pool.true_TN, drawn, axis=1)).any():
                break
        else:
            drawn = rows
        picked.append(drawn)
    at = np.concatenate(picked)
    fold_n = np.repeat(np.arange(len(picked)), [len(rows) for rows in picked])
    preds = [np.take(pred_TN, at, axis=1) for pred_TN in bench.preds]
    return make_engine(pool.metric, preds, np.take(pool.true_TN, at, axis=1), fold_n)
