"""Inner products of members' errors, fold by fold: what twins, ties and convex weights need.

Errors are divided by the standard deviation that their output's truth has in their fold, so that
outputs count alike and a fold's numbers depend on its own rows alone.
For weights w that sum to 1 the squared error of the ensemble is w' G w: no further pass over the
predictions is needed. A prediction is the truth plus an error, so with the truth beside the errors
the same products tell how predictions correlate.

Shapes: M members, E = M + 1 the members' errors and then the truth, T outputs, N rows, K folds,
B outputs of a block, C values of a block.
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

    mean_KMM: Floats  # products of the errors' means in each output
    centred_KEE: Floats  # products of what is left
    count_K: NDArray[np.int64]  # values behind them: rows x outputs

    def gram(self, folds: Sequence[int]) -> Floats:
        """(M, M) mean over these folds of the mean product of errors: folds count alike."""
        use = list(folds)
        gram_KMM = self.mean_KMM[use] + self.centred_KEE[use, :-1, :-1]
        return (gram_KMM / self.count_K[use, None, None]).mean(axis=0)

    def correlation(self, folds: Sequence[int]) -> Floats:
        """(M, M) correlation of errors over the rows of these folds, 0 where one has no spread."""
        return _correlation(self.centred_KEE[list(folds), :-1, :-1].sum(axis=0))

    def likeness(self, folds: Sequence[int]) -> Floats:
        """(M, M) the lower one of the correlations of errors and of predictions.

        Errors alone are alike where the truth is mostly noise, and predictions alone where all are
        good; only members that say the same are alike in both.
        """
        sum_EE = self.centred_KEE[list(folds)].sum(axis=0)
        with_true_M = sum_EE[:-1, -1]
        pred_MM = sum_EE[:-1, :-1] + with_true_M[:, None] + with_true_M + sum_EE[-1, -1]
        return np.minimum(_correlation(sum_EE[:-1, :-1]), _correlation(pred_MM))


def _correlation(gram_MM: Floats) -> Floats:
    sd_M = np.sqrt(np.maximum(np.diag(gram_MM), 0))
    norm_MM = np.outer(sd_M, sd_M)
    corr_MM = np.where(norm_MM > 0, gram_MM / np.where(norm_MM > 0, norm_MM, 1), 0.0)
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
        error_EBN = np.empty((members + 1, *true_BN.shape), dtype=np.float32)
        for member, pred_TN in enumerate(preds_MTN):
            # Subtracted in float64: the difference of close numbers is what counts here.
            np.subtract(read(pred_TN), true_BN, out=error_EBN[member], dtype=np.float64,
                        casting="same_kind")  # fmt: skip
        means, grams, counts = [], [], []
        for part in parts:
            part_BC = true_BN[:, part].astype(np.float64)
            mean_B, sd_B = part_BC.mean(axis=1), part_BC.std(axis=1)
            error_EBN[-1, :, part] = part_BC - mean_B[:, None]
            scale_B = np.divide(1, sd_B, out=np.zeros(len(sd_B)), where=sd_B > 0)
            error_EBC = error_EBN[:, :, part] * scale_B[:, None].astype(np.float32)
            mean_EB = error_EBC.mean(axis=2, dtype=np.float64)
            error_EBC -= mean_EB[:, :, None].astype(np.float32)
            means.append(mean_EB[:-1] @ mean_EB[:-1].T * (part.stop - part.start))
            grams.append(_gram(error_EBC.reshape(members + 1, -1)))
            counts.append(np.count_nonzero(scale_B) * (part.stop - part.start))
        return np.stack(means), np.stack(grams), np.array(counts)

    mean_KMM = np.zeros((len(parts), members, members))
    centred_KEE = np.zeros((len(parts), members + 1, members + 1))
    count_K = np.zeros(len(parts), dtype=np.int64)
    for means, grams, counts in each(block, range(0, outputs, step)):
        mean_KMM += means
        centred_KEE += grams
        count_K += counts
    return ErrorMoments(mean_KMM=mean_KMM, centred_KEE=centred_KEE, count_K=np.maximum(count_K, 1))


def _gram(error_MC: NDArray[np.float32]) -> Floats:
    gram_MM = np.zeros((len(error_MC), len(error_MC)))
    for start in range(0, error_MC.shape[1], _CHUNK):
        piece_MC = error_MC[:, start : start + _CHUNK]
        gram_MM += piece_MC @ piece_MC.T
    return gram_MM
