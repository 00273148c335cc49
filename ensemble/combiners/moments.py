"""Products of members' predictions and truth, output by output and fold by fold.

Everything that is linear in the predictions of an output follows from them without another pass.

Shapes: m members, T outputs, F folds, n rows of a fold, B outputs of a block, e = m + 2: the
members, the truth, and 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.engines.threads import each

_VALUES = 4_000_000  # float64 values held at a time, per thread

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputMoments:
    """Means over the rows of each fold. Predictions and truth are taken relative to `centre`."""

    folds: tuple[int, ...]
    second_FTee: Floats
    centre_T: Floats  # the truth's mean over the rows of these folds

    @property
    def members(self) -> int:
        return self.second_FTee.shape[2] - 2

    def of(self, folds: Sequence[int]) -> Floats:
        """(T, e, e) mean over these folds, which count alike."""
        return self.second_FTee[[self.folds.index(fold) for fold in folds]].mean(axis=0)

    def error_gram(self, folds: Sequence[int]) -> Floats:
        """(T, m, m) mean products of members' errors."""
        m, second_Tee = self.members, self.of(folds)
        cross_Tm = second_Tee[:, :m, m]
        gram_Tmm = second_Tee[:, :m, :m] - cross_Tm[:, :, None] - cross_Tm[:, None, :]
        return gram_Tmm + second_Tee[:, m, m, None, None]

    def unit_T(self) -> Floats:
        """(T,) what squared errors of an output are multiplied by, so that outputs count alike:
        1 / variance of its truth, and 0 for an output that is constant."""
        second_Tee = self.of(self.folds)
        m = self.members
        spread_T = second_Tee[:, m, m] - second_Tee[:, m, m + 1] ** 2
        live_T = spread_T > 1e-12 * self.centre_T**2
        return np.divide(1, spread_T, out=np.zeros(len(spread_T)), where=live_T & (spread_T > 0))


def output_moments(bench: Bench, members: Sequence[int], folds: Sequence[int]) -> OutputMoments:
    """One pass over these members' rows of these folds, in blocks of outputs."""
    outputs, size = len(bench.pool.true_TN), len(members) + 2
    rows = {fold: bench.rows([fold]) for fold in folds}
    second_FTee = np.empty((len(folds), outputs, size, size))
    centre_T = np.empty(outputs)
    step = max(1, _VALUES // (size * max(len(rows_n) for rows_n in rows.values())))

    def block(start: int) -> None:
        at = slice(start, start + step)
        true_BN = np.asarray(bench.pool.true_TN[at])
        centre_B = np.mean([true_BN[:, r].mean(axis=1, dtype=np.float64) for r in rows.values()],
                           axis=0)  # fmt: skip
        centre_T[at] = centre_B
        for f, rows_n in enumerate(rows.values()):
            z_Ben = np.ones((len(true_BN), size, len(rows_n)))
            for i, array_TN in enumerate([*(bench.preds[m] for m in members), bench.pool.true_TN]):
                z_Ben[:, i] = np.take(array_TN[at], rows_n, axis=1)
                z_Ben[:, i] -= centre_B[:, None]
            second_FTee[f, at] = z_Ben @ z_Ben.transpose(0, 2, 1) / len(rows_n)

    each(block, range(0, outputs, step))
    return OutputMoments(folds=tuple(folds), second_FTee=second_FTee, centre_T=centre_T)
