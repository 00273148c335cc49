"""The nested score: everything is chosen without fold k and scored on fold k.

A score on the rows that chose the members is optimistic. Here each fold is scored by an ensemble,
and by a best single model, that were chosen on the other folds alone; so the two compare fairly.

Shapes: M members, K folds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.engines import Engine
from ensemble.greedy import STEPS, best_single, select


@dataclass(frozen=True)
class Estimate:
    """A score per fold, its mean and the standard error of the mean."""

    per_fold: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_fold))

    @property
    def se(self) -> float:
        return float(np.std(self.per_fold, ddof=1) / np.sqrt(len(self.per_fold)))


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Honest scores of greedy selection and of picking the best single member."""

    ensemble: Estimate
    single: Estimate
    counts_KM: tuple[tuple[int, ...], ...]  # what greedy chose without fold k
    singles: tuple[int, ...]  # the best single member without fold k

    @property
    def difference(self) -> Estimate:
        """Ensemble minus best single, paired by fold."""
        pairs = zip(self.ensemble.per_fold, self.single.per_fold, strict=True)
        return Estimate(tuple(a - b for a, b in pairs))


def nested(engine: Engine, *, steps: int = STEPS, max_members: int | None = None) -> Nested:
    """The nested score of `select` with these settings. Needs two folds at least."""
    if engine.folds < 2:
        raise ValueError(f"there is {engine.folds} fold; choosing without a fold needs 2 or more")
    ensemble, single, counts_KM, singles = [], [], [], []
    for fold in range(engine.folds):
        others = [k for k in range(engine.folds) if k != fold]
        counts_M = select(engine, others, steps=steps, max_members=max_members).counts_M
        best = best_single(engine, others)
        ensemble.append(float(engine.fold_scores(counts_M)[fold]))
        single.append(float(engine.fold_scores(_alone(best, engine.members))[fold]))
        counts_KM.append(tuple(int(count) for count in counts_M))
        singles.append(best)
    return Nested(
        ensemble=Estimate(tuple(ensemble)),
        single=Estimate(tuple(single)),
        counts_KM=tuple(counts_KM),
        singles=tuple(singles),
    )


def _alone(member: int, members: int) -> NDArray[np.int64]:
    counts_M = np.zeros(members, dtype=np.int64)
    counts_M[member] = 1
    return counts_M
