"""The exact engine for rmse and r2: both follow from inner products of the members' errors.

The error of a weighted mean of members is the same mean of their errors, so with their Gram matrix
G its squared error is w'Gw. The mean of r2 over outputs is 1 - w'Gw too, once each output's errors
are divided by the root of its total squares. So one (M, M) matrix per fold says everything; after
one pass over the predictions a greedy step costs O(M^2).
Errors are taken and multiplied in float64: members that cancel each other leave little, and the
root of what float32 products leave is wrong in the fourth digit.

Shapes: M members, T outputs, N rows, K folds, V values (rows of some outputs).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats, FoldwiseEngine
from ensemble.engines.threads import each, workers
from search.metrics import FittedMetric, is_constant

_BLOCK = 1 << 18  # errors held at a time by a thread: 2 MB
_ROWS = 1 << 12  # rows of one output taken at a time, where there are many


class SquaredErrorEngine(FoldwiseEngine):
    """Engine for rmse and r2. Predictions are not rounded to float32: 1e-7 of their size."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        super().__init__(len(preds_MTN), int(fold_N.max()) + 1)
        self._r2 = metric.name == "r2"
        self._gram_KMM = np.zeros((self.folds, self.members, self.members))
        blocks = []
        for fold in range(self.folds):
            rows = np.flatnonzero(fold_N == fold)
            scale_T = _share_of_total(true_TN, rows) if self._r2 else _share(true_TN, rows)
            blocks += [(fold, *block) for block in _blocks(scale_T, rows, self.members)]

        def gram(part: int) -> Floats:
            sum_KMM = np.zeros_like(self._gram_KMM)
            for fold, outputs, rows, scale_T in blocks[part :: workers()]:
                true_TV = true_TN[outputs].take(rows, axis=1).astype(np.float64)
                error_MTV = np.empty((self.members, *true_TV.shape))
                for member, pred_TN in enumerate(preds_MTN):
                    pred_TV = np.asarray(pred_TN)[outputs].take(rows, axis=1)
                    np.subtract(pred_TV, true_TV, out=error_MTV[member])
                error_MTV *= scale_T[:, None]
                error_MV = error_MTV.reshape(self.members, -1)
                sum_KMM[fold] += error_MV @ error_MV.T
            return sum_KMM

        for sum_KMM in each(gram, range(workers())):
            self._gram_KMM += sum_KMM

    def fold_scores(self, weights_M: NDArray) -> Floats:
        share_M = np.asarray(weights_M, dtype=np.float64) / np.sum(weights_M)
        return self._score(np.einsum("kij,i,j->k", self._gram_KMM, share_M, share_M))

    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        counts = np.asarray(counts_M, dtype=np.float64)
        gram_KM = self._gram_KMM @ counts
        own_KM = np.diagonal(self._gram_KMM, axis1=1, axis2=2)
        square_KM = (gram_KM @ counts)[:, None] + 2 * gram_KM + own_KM
        return self._score(square_KM / (counts.sum() + 1) ** 2)

    def _score(self, error: Floats) -> Floats:
        error = np.maximum(error, 0.0)  # rounding may leave less than nothing
        return 1 - error if self._r2 else -np.sqrt(error)


def _share(true_TN: NDArray[Any], rows: NDArray[np.int64]) -> Floats:
    """(T,) what an error is multiplied with so that squares add up to the mean square."""
    return np.full(len(true_TN), 1 / np.sqrt(len(true_TN) * len(rows)))


def _share_of_total(true_TN: NDArray[Any], rows: NDArray[np.int64]) -> Floats:
    """(T,) what an error is multiplied with so that squares add up to the mean over outputs of
    their share of the total squares; 0 for outputs that do not count, because they are constant."""
    total_T = np.zeros(len(true_TN))
    for t, true_N in enumerate(true_TN):
        true_V = true_N[rows].astype(np.float64)
        mean = true_V.mean()
        true_V -= mean
        square = true_V @ true_V
        total_T[t] = 0.0 if is_constant(square, mean, len(rows)) else square
    if not total_T.any():
        raise ValueError("r2 is undefined in a fold: no output's truth varies there")
    inverse_T = np.divide(1, total_T, out=np.zeros_like(total_T), where=total_T > 0)
    return np.sqrt(inverse_T / np.count_nonzero(total_T))


def _blocks(
    scale_T: Floats, rows: NDArray[np.int64], members: int
) -> list[tuple[slice, NDArray[np.int64], Floats]]:
    """Pieces of a fold that fit a thread's block: outputs, rows, and the outputs' scale."""
    pieces = np.array_split(rows, -(-len(rows) // _ROWS))
    step = max(1, _BLOCK // (members * len(pieces[0])))
    outputs = [slice(t, t + step) for t in range(0, len(scale_T), step)]
    return [(some, piece, scale_T[some]) for some in outputs for piece in pieces]
