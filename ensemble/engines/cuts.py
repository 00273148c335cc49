"""The best score that any threshold makes, of many sets of predictions: one sort of each.

Shapes: N rows, K folds, B sets of predictions, C cuts of all sets together.
"""

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats
from search.metrics import Counts, rate

_BITS = np.uint64(32)


class Cuts:
    """Rows of one output in some folds, with their truth."""

    def __init__(
        self,
        name: str,
        positive_N: NDArray[np.bool_],
        fold_N: NDArray[np.int64],
        weight_K: Floats,
    ) -> None:
        """`name` is the metric's, and `weight_K` how much a fold's rate counts; where it is 0,
        also because the fold has no rows here, the rate may be undefined."""
        self._name, self._weight_K = name, weight_K
        folds = len(weight_K)
        self._positives_K = np.bincount(fold_N[positive_N], minlength=folds)
        self._negatives_K = np.bincount(fold_N[~positive_N], minlength=folds)
        # Fold and truth as one number; every positive's is below every negative's.
        self._code_N = (fold_N + folds * ~positive_N).astype(np.uint64)
        self._code_type = np.uint8 if 2 * folds <= 256 else np.uint32  # small ones compare faster

    def best(self, pred_BN: NDArray[np.float32]) -> Floats:
        """(B,) highest weighted sum over folds of the rate, of all thresholds; one threshold for
        all folds. Predictions must be >= 0 and not -0.0."""
        # Floats >= 0 are in the order of their bits. Among equal ones positives come first.
        keys_BN = pred_BN.view(np.uint32).astype(np.uint64)
        keys_BN <<= _BITS
        keys_BN |= self._code_N
        keys_BN.sort(axis=1)
        code_BN = keys_BN.astype(self._code_type)  # the lowest bits
        keys_BN >>= _BITS
        set_C, below_C = np.nonzero(self._cuts(keys_BN, code_BN))
        sum_C = np.zeros(len(set_C))
        for fold in np.flatnonzero(self._weight_K).tolist():
            fn_C = _below(code_BN == fold, set_C, below_C)
            tn_C = _below(code_BN == fold + len(self._weight_K), set_C, below_C)
            counts = Counts(
                tp=self._positives_K[fold] - fn_C,
                fp=self._negatives_K[fold] - tn_C,
                tn=tn_C,
                fn=fn_C,
            )
            sum_C += self._weight_K[fold] * rate(self._name, counts)
        return np.maximum.reduceat(sum_C, np.searchsorted(set_C, np.arange(len(pred_BN))))

    def _cuts(self, value_BN: NDArray[np.uint64], code_BN: NDArray) -> NDArray[np.bool_]:
        """(B, N + 1) whether a threshold between row i - 1 and row i may be the best.

        No rate falls when one more decision is right. So above a threshold that is worth trying
        comes a positive, or nothing: else a higher one would be as good. And below it comes a
        negative, or nothing. Equal values are not to be divided; a group of them ends with a
        negative when it holds one, and begins with a positive when it holds one.
        """
        positive_BN = code_BN < len(self._weight_K)
        cuts = np.ones((len(value_BN), value_BN.shape[1] + 1), dtype=bool)
        np.not_equal(value_BN[:, 1:], value_BN[:, :-1], out=cuts[:, 1:-1])
        cuts[:, 1:-1] &= positive_BN[:, 1:]
        cuts[:, 1:-1] &= ~positive_BN[:, :-1]
        return cuts


def _below(
    mask_BN: NDArray[np.bool_], set_C: NDArray[np.intp], below_C: NDArray[np.intp]
) -> NDArray[np.int64]:
    """(C,) how many of the first `below` rows of a set are marked."""
    total_BN = np.zeros((len(mask_BN), mask_BN.shape[1] + 1), dtype=np.int32)
    np.cumsum(mask_BN, axis=1, dtype=np.int32, out=total_BN[:, 1:])
    return total_BN[set_C, below_C].astype(np.int64)
