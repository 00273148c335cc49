"""The bench: a pool with all that combiners fit and score on, each made once.

A combiner looks at the rows of the folds it is given, and at nothing else: that is what makes a
nested score honest.

Shapes: M members, m members of a blend, T outputs, N rows, K folds.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.blend import Blend
from ensemble.engines import Engine, best_first, make_engine
from ensemble.error_moments import ErrorMoments, error_moments
from ensemble.limits import Budget, Limits
from ensemble.members import Pool

TWINS = 0.999  # members whose predictions and errors both correlate more say the same
_VALUES = 16_000_000  # predictions of a blend's members held at a time


class Bench:
    """What combiners work with."""

    def __init__(self, pool: Pool, limits: Limits | None = None) -> None:
        """Raises UserError for limits that the pool cannot keep."""
        self.pool = pool
        names = [member.name for member in pool.members]
        costs = [member.cost for member in pool.members]
        self.budget = Budget(limits or Limits(), costs, names)
        by_name = sorted(range(len(names)), key=lambda m: _natural(names[m]))
        # (M,) where each member stands when they are sorted by name: what decides the last ties.
        self.place_M = [by_name.index(m) for m in range(len(names))]
        self._candidates: dict[tuple[int, ...], tuple[int, ...]] = {}

    @property
    def folds(self) -> tuple[int, ...]:
        return tuple(range(self.pool.folds))

    @cached_property
    def preds(self) -> list[NDArray[np.float32]]:
        """(T, N) of each member, in the pool's order."""
        return [member.pred_TN for member in self.pool.members]

    @cached_property
    def engine(self) -> Engine:
        pool = self.pool
        return make_engine(pool.metric, self.preds, pool.true_TN, pool.fold_N)

    @cached_property
    def errors(self) -> ErrorMoments:
        return error_moments(self.preds, self.pool.true_TN, self.pool.fold_N)

    @cached_property
    def single_KM(self) -> NDArray[np.float64]:
        """Each member's own score on each fold; thresholds, if any, from the other folds."""
        every = range(len(self.pool.members))
        return np.array([[self._alone(m, fold) for m in every] for fold in self.folds])

    def _alone(self, member: int, fold: int) -> float:
        weights_M = np.zeros(len(self.pool.members))
        weights_M[member] = 1
        others = [k for k in self.folds if k != fold] or [fold]
        return self.engine.held_out(weights_M, fold, others)

    def candidates(self, folds: Sequence[int]) -> tuple[int, ...]:
        """Members by their score on these folds, best first (ties by name), without the twins of
        better ones and without those that exceed a limit alone."""
        key = tuple(folds)
        if key not in self._candidates:
            like_MM = self.errors.likeness(folds)
            kept: list[int] = []
            for member in self.ranked(folds):
                if self.budget.admits([member]) and all(like_MM[member, kept] <= TWINS):
                    kept.append(member)
            self._candidates[key] = tuple(kept)
        return self._candidates[key]

    def ranked(self, folds: Sequence[int]) -> list[int]:
        """All members by their score on these folds, best first; ties by name."""
        none_M = np.zeros(len(self.pool.members), dtype=np.int64)
        return best_first(self.engine.step(none_M, folds), self.place_M)

    def rows(self, folds: Sequence[int]) -> NDArray[np.int64]:
        """Indices of the rows of these folds, ascending."""
        return np.flatnonzero(np.isin(self.pool.fold_N, list(folds)))

    def read(self, members: Sequence[int], rows_n: NDArray[np.int64]) -> list[NDArray[Any]]:
        """(T, n) predictions of these members for these rows."""
        return [np.take(self.preds[m], rows_n, axis=1) for m in members]

    def predict(self, blend: Blend, folds: Sequence[int]) -> NDArray[np.float32]:
        """(T, n) predictions of a blend for the rows of these folds."""
        rows_n = self.rows(folds)
        outputs = len(self.pool.true_TN)
        pred_Tn = np.empty((outputs, len(rows_n)), dtype=np.float32)
        step = max(1, _VALUES // (outputs * len(blend.members)))
        for start in range(0, len(rows_n), step):
            at = slice(start, start + step)
            pred_Tn[:, at] = blend.apply(self.read(blend.members, rows_n[at]))
        return pred_Tn

    def fold_score(self, blend: Blend, fold: int, chosen_on: Sequence[int]) -> float:
        """Score of a blend on one fold, with its thresholds, which were fitted on `chosen_on`."""
        if blend.is_mean:
            weights_M = blend.weights_of(len(self.pool.members))
            return self.engine.held_out(weights_M, fold, chosen_on)
        true_Tn = self.pool.true_TN[:, self.rows([fold])]
        thresholds_T = blend.post.thresholds_T
        return self.pool.metric.score(self.predict(blend, [fold]), true_Tn, thresholds_T).value

    def score(self, blend: Blend, folds: Sequence[int]) -> float:
        """Mean score over folds on which the blend was fitted: optimistic."""
        if blend.is_mean:
            return self.engine.score(blend.weights_of(len(self.pool.members)), folds)
        return float(np.mean([self.fold_score(blend, fold, folds) for fold in folds]))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
