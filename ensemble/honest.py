"""The nested score: everything is chosen without fold k and scored on fold k.

A score on the rows that chose the members is optimistic. Here each fold is scored by a blend that
was chosen on the other folds alone, members, weights, thresholds and all; so combiners compare
fairly with each other and with the best single model.

Shapes: T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners import Combiner, get_combiner
from ensemble.engines import tie
from spaces.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class Estimate:
    """A score per fold, its mean and the standard error of the mean."""

    per_fold: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_fold))

    @property
    def se(self) -> float:
        """0 for a single fold, where it is not known."""
        if len(self.per_fold) < 2:
            return 0.0
        return float(np.std(self.per_fold, ddof=1) / np.sqrt(len(self.per_fold)))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference, paired by fold."""
        pairs = zip(self.per_fold, other.per_fold, strict=True)
        return Estimate(tuple(a - b for a, b in pairs))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nested:
    """The honest score of one combiner."""

    score: Estimate
    blends: tuple[Blend, ...]  # (K,) chosen without fold k


class Nesting:
    """Fits of combiners on sets of folds, each made once."""

    def __init__(self, bench: Bench, combiners: Sequence[Combiner]) -> None:
        """`combiners` in the order of their simplicity; `auto` chooses among them."""
        self.bench = bench
        self.combiners = tuple(combiners)
        self._fits: dict[tuple[str, tuple[int, ...]], Blend] = {}
        self._scores: dict[tuple[str, tuple[int, ...], int], float] = {}

    def fit(self, combiner: Combiner, folds: Sequence[int]) -> Blend:
        key = (combiner.name, tuple(folds))
        if key not in self._fits:
            self._fits[key] = combiner.fit(self.bench, folds)
        return self._fits[key]

    def nested(self, combiner: Combiner, folds: Sequence[int] | None = None) -> Nested:
        """Raises ValueError with fewer than two folds."""
        use = tuple(self.bench.folds if folds is None else folds)
        if len(use) < 2:
            raise ValueError(f"there is {len(use)} fold; choosing without one needs 2 or more")
        rests = [tuple(k for k in use if k != fold) for fold in use]
        blends = tuple(self.fit(combiner, rest) for rest in rests)
        scores = [self._held_out(combiner, fold, rest)
                  for fold, rest in zip(use, rests, strict=True)]  # fmt: skip
        return Nested(score=Estimate(tuple(scores)), blends=blends)

    def _held_out(self, combiner: Combiner, fold: int, rest: tuple[int, ...]) -> float:
        key = (combiner.name, rest, fold)
        if key not in self._scores:
            self._scores[key] = self.bench.fold_score(self.fit(combiner, rest), fold, rest)
        return self._scores[key]

    def simplest(self, folds: Sequence[int]) -> Combiner:
        """The simplest combiner within one standard error of the best, by nested scores on these
        folds: the paired difference to the best is no larger than its standard error."""
        if len(folds) < 2:
            return self.combiners[0]
        scores = [self.nested(combiner, folds).score for combiner in self.combiners]
        best = max(scores, key=lambda score: score.mean)
        for combiner, score in zip(self.combiners, scores, strict=True):
            behind = best.minus(score)
            if behind.mean <= behind.se + tie(best.mean):
                return combiner
        raise AssertionError("the best one is within its own standard error")

    def find(self, method: str) -> Combiner:
        """The combiner of that name. Raises UserError when it is unknown or cannot work here."""
        if method == AUTO:
            if len(self.bench.folds) < 3:
                raise UserError(
                    f"--method auto with {len(self.bench.folds)} folds: what it would choose "
                    "without a fold has to be chosen on two others; name a method"
                )
            return self._auto()
        for combiner in self.combiners:
            if combiner.name == method:
                return combiner
        reason = get_combiner(method).refuses(self.bench.pool)
        raise UserError(f"--method {method} cannot be used: {reason}")

    def _auto(self) -> Combiner:
        """`simplest` as a combiner, so that its nested score counts the choice too."""

        def choose(bench: Bench, folds: Sequence[int]) -> Blend:
            return self.fit(self.simplest(folds), folds)

        return Combiner(name=AUTO, what="the simplest within one standard error", choose=choose)


def nested_predictions(bench: Bench, nested: Nested) -> NDArray[np.float32]:
    """(T, N) predictions of each row by the blend that was chosen without its fold."""
    pred_TN = np.empty(bench.pool.true_TN.shape, dtype=np.float32)
    for fold, blend in zip(bench.folds, nested.blends, strict=True):
        pred_TN[:, bench.rows([fold])] = bench.predict(blend, [fold])
    return pred_TN
