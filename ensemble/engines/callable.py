"""The slow engine: averages the predictions and calls the metric. Right for any metric.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats
from search.metrics import FittedMetric, best_thresholds, joint_score


class CallableEngine:
    """Scores every candidate ensemble from its predictions: O(M T N) per step."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        self._metric, self._true_TN, self._fold_N = metric, true_TN, fold_N
        self._preds_MTN = preds_MTN
        self.members = len(preds_MTN)
        self.folds = int(fold_N.max()) + 1

    def score(self, weights_M: NDArray[Any], folds: Sequence[int]) -> float:
        return self._mean_score(self._sum(weights_M) / np.sum(weights_M), folds)

    def step(self, counts_M: NDArray[np.int64], folds: Sequence[int]) -> Floats:
        sum_TN, total = self._sum(counts_M), counts_M.sum() + 1
        means = ((sum_TN + pred_TN) / total for pred_TN in self._preds_MTN)
        return np.array([self._mean_score(mean_TN, folds) for mean_TN in means])

    def held_out(self, weights_M: NDArray[Any], fold: int, chosen_on: Sequence[int]) -> float:
        pred_TN = (self._sum(weights_M) / np.sum(weights_M)).astype(np.float32)
        thresholds_T = None
        if self._metric.fits_thresholds:
            use = np.isin(self._fold_N, list(chosen_on))
            thresholds_T = best_thresholds(
                self._metric, pred_TN[:, use], self._true_TN[:, use], self._fold_N[use]
            )
        rows = self._fold_N == fold
        return self._metric.score(pred_TN[:, rows], self._true_TN[:, rows], thresholds_T).value

    def _mean_score(self, mean_TN: Floats, folds: Sequence[int]) -> float:
        rows = np.isin(self._fold_N, list(folds))
        # Rounded as it would be stored: ties and thresholds are those of the file.
        pred_Tn = mean_TN[:, rows].astype(np.float32)
        return joint_score(self._metric, pred_Tn, self._true_TN[:, rows], self._fold_N[rows])

    def _sum(self, weights_M: NDArray[Any]) -> Floats:
        sum_TN = np.zeros(self._true_TN.shape)
        for member in np.flatnonzero(weights_M).tolist():
            sum_TN += np.float64(weights_M[member]) * self._preds_MTN[member].astype(np.float64)
        return sum_TN
