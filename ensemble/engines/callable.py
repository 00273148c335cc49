"""The slow engine: averages the predictions and calls the metric. Right for any metric.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics import FittedMetric, fold_scores


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

    def fold_scores(self, counts_M: NDArray[np.int64]) -> NDArray[np.float64]:
        return self._score(self._sum(counts_M) / counts_M.sum())

    def step(self, counts_M: NDArray[np.int64]) -> NDArray[np.float64]:
        sum_TN, total = self._sum(counts_M), counts_M.sum() + 1
        scores = [self._score((sum_TN + pred_TN) / total) for pred_TN in self._preds_MTN]
        return np.stack(scores, axis=1)

    def _sum(self, counts_M: NDArray[np.int64]) -> NDArray[np.float64]:
        sum_TN = np.zeros(self._true_TN.shape)
        for member in np.flatnonzero(counts_M).tolist():
            sum_TN += float(counts_M[member]) * self._preds_MTN[member]
        return sum_TN

    def _score(self, pred_TN: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = fold_scores(self._metric, pred_TN, self._true_TN, self._fold_N)
        return np.array([score.value for score in scores])
