"""Greedy selection with replacement (Caruana et al. 2004): add, again and again, the member that
raises the score most. Ties are decided the same way every time.

Shapes: M members, K folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.engines import Engine

STEPS = 25  # more gained nothing in simulations; the counts are the resolution of the weights
# Scores nearer than this are equal: engines that compute the same score in another order differ
# by about 1e-12, and must not select differently for it.
TIE = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Counts per member, and the path that led there."""

    counts_M: NDArray[np.int64]
    order: tuple[int, ...]  # the member added at each step, up to the best prefix
    trace: tuple[float, ...]  # the score after each step that was tried
    score: float  # mean over the given folds: optimistic, selected on the same rows

    @property
    def weights_M(self) -> NDArray[np.float64]:
        return self.counts_M / self.counts_M.sum()

    @property
    def chosen(self) -> tuple[int, ...]:
        """Members with a weight above 0, ascending."""
        return tuple(int(m) for m in np.flatnonzero(self.counts_M))


def select(
    engine: Engine,
    folds: Sequence[int] | None = None,
    *,
    steps: int = STEPS,
    max_members: int | None = None,
) -> Selection:
    """The shortest prefix with the best score of `steps` greedy additions.

    The score is the unweighted mean over `folds` (None: all). Among equal scores a member that
    is already in wins, then the one that comes first: order the members best first. With
    `max_members` different members in, only these are added again.
    """
    use = list(range(engine.folds)) if folds is None else list(folds)
    if not use or steps < 1 or (max_members is not None and max_members < 1):
        raise ValueError(
            f"got folds {use}, steps {steps}, max_members {max_members}; "
            "each needs at least one to select with"
        )
    counts_M = np.zeros(engine.members, dtype=np.int64)
    order: list[int] = []
    trace: list[float] = []
    for _ in range(steps):
        scores_M = engine.step(counts_M)[use].mean(axis=0)
        if max_members is not None and np.count_nonzero(counts_M) >= max_members:
            scores_M = np.where(counts_M > 0, scores_M, -np.inf)
        tied = np.flatnonzero(scores_M >= scores_M.max() - TIE)
        inside = tied[counts_M[tied] > 0]
        pick = int(inside[0] if len(inside) else tied[0])
        counts_M[pick] += 1
        order.append(pick)
        trace.append(float(scores_M[pick]))
    length = int(np.flatnonzero(np.array(trace) >= max(trace) - TIE)[0]) + 1
    return Selection(
        counts_M=np.bincount(order[:length], minlength=engine.members),
        order=tuple(order[:length]),
        trace=tuple(trace),
        score=trace[length - 1],
    )


def best_single(engine: Engine, folds: Sequence[int] | None = None) -> int:
    """The member with the best mean score over `folds` (None: all); ties go to the first."""
    return select(engine, folds, steps=1).order[0]
