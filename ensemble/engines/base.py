"""What an engine is: scores of weighted means of members, fold by fold; higher is better.

Shapes: M members, K folds.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Scores nearer than this are equal: engines that compute the same score in another order differ
# by about 1e-12, and must not select differently for it. Of scores below 1 it is a share: those of
# rmse and mae are as small as the unit of the targets makes them.
TIE = 1e-9


def tie(score: float) -> float:
    """How far from this score others count as equal."""
    return TIE * (min(1.0, abs(score)) or 1.0)


def best_first(score_M: NDArray[np.float64], place_M: Sequence[int]) -> list[int]:
    """Members by score, the highest first; equal ones by their place."""
    order = np.argsort(-score_M, kind="stable").tolist()
    found: list[int] = []
    while order:
        level = score_M[order[0]] - tie(float(score_M[order[0]]))
        equal = [m for m in order if score_M[m] >= level]
        found += sorted(equal, key=lambda m: place_M[m])
        order = order[len(equal) :]
    return found


class Engine(Protocol):
    """The score of an ensemble on some folds is the unweighted mean of the scores on each."""

    @property
    def members(self) -> int: ...

    @property
    def folds(self) -> int: ...

    def score(self, weights_M: NDArray, folds: Sequence[int]) -> float:
        """What selection maximises. Thresholds, where the metric fits them, are fitted on these
        very folds: optimistic."""
        ...

    def step(self, counts_M: NDArray[np.int64], folds: Sequence[int]) -> Floats:
        """(M,) `score` of the ensemble with one more count for member j."""
        ...

    def held_out(self, weights_M: NDArray, fold: int, chosen_on: Sequence[int]) -> float:
        """Score on one fold; thresholds are those fitted on the folds `chosen_on`."""
        ...


class FoldwiseEngine(ABC):
    """An engine whose score on a fold depends on that fold's rows alone.

    Steps are remembered by their counts: selections on different folds often start alike.
    """

    def __init__(self, members: int, folds: int) -> None:
        self.members, self.folds = members, folds
        self._steps: dict[bytes, Floats] = {}

    @abstractmethod
    def fold_scores(self, weights_M: NDArray) -> Floats:
        """(K,) score on each fold of the mean with these weights, which are >= 0 and not all 0."""

    @abstractmethod
    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        """(K, M) score on each fold of the mean with one more count for member j."""

    def score(self, weights_M: NDArray, folds: Sequence[int]) -> float:
        return float(self.fold_scores(weights_M)[list(folds)].mean())

    def step(self, counts_M: NDArray[np.int64], folds: Sequence[int]) -> Floats:
        key = np.asarray(counts_M, dtype=np.int64).tobytes()
        if key not in self._steps:
            self._steps[key] = self.fold_steps(counts_M)
        return self._steps[key][list(folds)].mean(axis=0)

    def held_out(self, weights_M: NDArray, fold: int, chosen_on: Sequence[int]) -> float:
        return float(self.fold_scores(weights_M)[fold])
