"""Inner products of members' errors, fold by fold: what twins, ties and convex weights need.

Errors are divided by the standard deviation that their output's truth has in their fold, so that
outputs count alike and a fold's numbers depend on its own rows alone.
For weights w that sum to 1 the squared error of the ensemble is w' G w: no further pass over the
predictions is needed.

Shapes: M members, T outputs, N rows, K folds, C values of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.threads import each

_BLOCK = 1 << 22  # float32 values of all members held at a time, per thread
_CHUNK = 1 << 14  # values summed in float32 before float64 takes over

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorMoments:
    """Sums over the rows of each fold, and over outputs."""

    gram_KMM: Floats
    sum_KM: Floats
    count_K: NDArray[np.int64]  # values behind them: rows x outputs

    def gram(self, folds: Sequence[int]) -> Floats:
        """(M, M) mean over these folds of the mean product of errors: folds count alike."""
        use = list(folds)
        return (self.gram_KMM[use] / self.count_K[use, None, None]).mean(axis=0)

    def correlation(self, folds: Sequence[int]) -> Floats:
        """(M, M) correlation of errors over the rows of these folds, 0 where one has no spread."""
        use = list(folds)
        count = max(int(self.count_K[use].sum()), 1)
        mean_M = self.sum_KM[use].sum(axis=0) / count
        cov_MM = self.gram_KMM[use].sum(axis=0) / count - np.outer(mean_M, mean_M)
        sd_M = np.sqrt(np.maximum(np.diag(cov_MM), 0))
        norm_MM = np.outer(sd_M, sd_M)
        safe_MM = np.where(norm_MM > 0, norm_MM, 1)
        corr_MM = np.where(norm_MM > 0, cov_MM / safe_MM, 0.0)
        np.fill_diagonal(corr_MM, 1.0)
        return np.clip(corr_MM, -1, 1)


def error_moments(
    preds_MTN: Sequence[NDArray[Any]], true_TN: NDArray[Any], fold_N: NDArray[np.int64]
) -> ErrorMoments:
    """One pass over the predictions, in blocks of outputs. An output takes no part in folds where
    its truth is constant."""
    members, (outputs, rows) = len(preds_MTN), true_TN.shape
    order_N = np.argsort(fold_N, kind="stable")
    sizes_K = np.bincount(fold_N)
    ends_K = np.cumsum(sizes_K)
    parts = [slice(end - size, end) for end, size in zip(ends_K, sizes_K, strict=True)]
    step = max(1, _BLOCK // max(members * rows, 1))
    sorted_already = bool((order_N == np.arange(rows)).all())

    def block(start: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
        at = slice(start, start + step)

        def read(array: NDArray[Any]) -> NDArray[Any]:
            return array[at] if sorted_already else np.take(array[at], order_N, axis=1)

        true_BN = read(true_TN)
        error_MBN = np.empty((members, *true_BN.shape), dtype=np.float32)
        for member, pred_TN in enumerate(preds_MTN):
            # Subtracted in float64: the difference of close numbers is what counts here.
            np.subtract(read(pred_TN), true_BN, out=error_MBN[member], dtype=np.float64,
                        casting="same_kind")  # fmt: skip
        grams, sums, counts = [], [], []
        for part in parts:
            sd_B = true_BN[:, part].std(axis=1, dtype=np.float64)
            scale_B = np.divide(1, sd_B, out=np.zeros(len(sd_B)), where=sd_B > 0)
            error_MC = error_MBN[:, :, part] * scale_B[:, None].astype(np.float32)
            error_MC = error_MC.reshape(members, -1)
            grams.append(_gram(error_MC))
            sums.append(error_MC.sum(axis=1, dtype=np.float64))
            counts.append(np.count_nonzero(scale_B) * (part.stop - part.start))
        return np.stack(grams), np.stack(sums), np.array(counts)

    gram_KMM, sum_KM = np.zeros((len(parts), members, members)), np.zeros((len(parts), members))
    count_K = np.zeros(len(parts), dtype=np.int64)
    for grams, sums, counts in each(block, range(0, outputs, step)):
        gram_KMM += grams
        sum_KM += sums
        count_K += counts
    return ErrorMoments(gram_KMM=gram_KMM, sum_KM=sum_KM, count_K=np.maximum(count_K, 1))


def _gram(error_MC: NDArray[np.float32]) -> Floats:
    gram_MM = np.zeros((len(error_MC), len(error_MC)))
    for start in range(0, error_MC.shape[1], _CHUNK):
        piece_MC = error_MC[:, start : start + _CHUNK]
        gram_MM += piece_MC @ piece_MC.T
    return gram_MM
