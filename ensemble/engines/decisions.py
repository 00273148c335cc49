"""The exact engine for metrics of hard decisions: accuracy, sensitivity, specificity, ppv, npv, f1
and khd.

With thresholds that are given (a number, or the highest class) the folds are separate, and counts
of right and wrong decisions say everything. Thresholds that are to be fitted are chosen jointly on
all folds of a selection: a sort of each candidate's predictions gives the counts at every one.

Shapes: M members, T outputs, N rows, K folds, B a block of members.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats, FoldwiseEngine
from ensemble.engines.cuts import Cuts
from ensemble.engines.threads import each, workers
from search.metrics import Counts, FittedMetric, best_thresholds, mean_rate, output_weights

_BLOCK = 1 << 16  # values that a thread works on at a time: its arrays stay in its cache

Rows = slice | NDArray[np.int64]


class DecisionEngine(FoldwiseEngine):
    """Engine for the metrics on decisions. Predictions stay where they are, and may be
    memory-mapped; what is held beside them is a few arrays of (T, N).

    Where thresholds are fitted, `score` and `step` are what they score with `best_thresholds` on
    the very folds asked for.
    """

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        """Raises ValueError when the metric is undefined in a fold, and for predictions that are
        no probabilities."""
        super().__init__(len(preds_MTN), int(fold_N.max()) + 1)
        self._metric, self._true_TN, self._fold_N = metric, true_TN, np.asarray(fold_N)
        self._preds_MTN = [np.asarray(pred_TN) for pred_TN in preds_MTN]
        self._positive_TN = true_TN == 1
        self._size_K = np.bincount(fold_N)
        self._positives_KT = np.stack(
            [self._positive_TN[:, fold_N == k].sum(axis=1) for k in range(self.folds)]
        )
        self._defined_KT = np.stack(
            [metric.defined(true_TN[:, fold_N == k]) for k in range(self.folds)]
        )
        if void := np.flatnonzero(~self._defined_KT.any(axis=1)).tolist():
            raise ValueError(f"{metric.name} is undefined in fold {void[0]}: there {metric.void}")
        ranges = each(lambda pred_TN: (pred_TN.min(), pred_TN.max()), self._preds_MTN)
        for member, (low, high) in enumerate(ranges):
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"predictions of member {member} go from {low:g} to {high:g}; "
                    f"{metric.name} needs [0, 1]"
                )
        # Of booleans, products with it are counts per fold.
        self._inside_NK = (self._fold_N[:, None] == np.arange(self.folds)).astype(np.float32)

    # --- thresholds that are fitted: jointly on the folds of a selection -----------------------

    def score(self, weights_M: NDArray, folds: Sequence[int]) -> float:
        if not self._metric.fits_thresholds:
            return super().score(weights_M, folds)
        rows, outputs = self._rows(folds), range(len(self._true_TN))
        total = float(np.sum(weights_M))

        def best(output: int) -> float:
            mean_N = (self._sum(weights_M, output, rows) / total).astype(np.float32)
            return float(self._cuts(output, folds, rows).best(mean_N[None])[0])

        return sum(each(best, outputs)) / len(folds)

    def step(self, counts_M: NDArray[np.int64], folds: Sequence[int]) -> Floats:
        if not self._metric.fits_thresholds:
            return super().step(counts_M, folds)
        key = np.asarray([*counts_M, *folds], dtype=np.int64).tobytes()
        if key not in self._steps:
            self._steps[key] = self._best_steps(counts_M, folds)
        return self._steps[key].copy()

    def held_out(self, weights_M: NDArray, fold: int, chosen_on: Sequence[int]) -> float:
        if not self._metric.fits_thresholds:
            return super().held_out(weights_M, fold, chosen_on)
        total, every = float(np.sum(weights_M)), slice(None)
        pred_TN = np.stack([
            (self._sum(weights_M, output, every) / total).astype(np.float32)
            for output in range(len(self._true_TN))
        ])  # fmt: skip
        chosen, scored = self._rows(chosen_on), self._rows([fold])
        thresholds_T = best_thresholds(
            self._metric, pred_TN[:, chosen], self._true_TN[:, chosen], self._fold_N[chosen]
        )
        return self._metric.score(pred_TN[:, scored], self._true_TN[:, scored], thresholds_T).value

    def _best_steps(self, counts_M: NDArray[np.int64], folds: Sequence[int]) -> Floats:
        rows, outputs = self._rows(folds), range(len(self._true_TN))
        total = float(np.sum(counts_M)) + 1
        cuts = each(lambda output: self._cuts(output, folds, rows), outputs)
        sums = each(lambda output: self._sum(counts_M, output, rows), outputs)
        size = max(1, _BLOCK // len(sums[0]))
        blocks = [range(m, min(m + size, self.members)) for m in range(0, self.members, size)]
        items = [(output, members) for output in outputs for members in blocks]

        def best(item: tuple[int, range]) -> Floats:
            output, members = item
            mean_BN = np.stack([self._preds_MTN[m][output][rows] for m in members]) + sums[output]
            mean_BN /= total
            return cuts[output].best(mean_BN.astype(np.float32))

        steps_M = np.zeros(self.members)
        for (_, members), best_B in zip(items, each(best, items), strict=True):
            steps_M[members.start : members.stop] += best_B
        return steps_M / len(folds)

    def _cuts(self, output: int, folds: Sequence[int], rows: Rows) -> Cuts:
        weight_K = np.zeros(self.folds)
        weight_K[list(folds)] = output_weights(self._defined_KT[list(folds)])[output]
        positive_N = self._positive_TN[output][rows]
        return Cuts(self._metric.name, positive_N, self._fold_N[rows], weight_K)

    def _sum(self, weights_M: NDArray, output: int, rows: Rows) -> Floats:
        sum_N = np.zeros(len(self._fold_N[rows]))
        for member in np.flatnonzero(weights_M).tolist():
            sum_N += np.float64(weights_M[member]) * self._preds_MTN[member][output][rows]
        return sum_N

    def _rows(self, folds: Sequence[int]) -> Rows:
        if len(set(folds)) == self.folds:
            return slice(None)  # reads without a copy
        return np.flatnonzero(np.isin(self._fold_N, list(folds)))

    # --- thresholds that are given: fold by fold -----------------------------------------------

    def fold_scores(self, weights_M: NDArray) -> Floats:
        return self._decided(weights_M, float(np.sum(weights_M)), step=False)[:, 0]

    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        return self._decided(counts_M, float(np.sum(counts_M)) + 1, step=True)

    def _decided(self, weights_M: NDArray, total: float, step: bool) -> Floats:
        """(K, 1) scores of the weighted mean, or (K, M) with one more of each member."""
        outputs, rows = self._true_TN.shape
        size = max(1, min(_BLOCK // outputs, -(-rows // workers())))
        blocks = [slice(n, n + size) for n in range(0, rows, size)]
        shape = (self.members if step else 1, outputs, self.folds)

        def count(part: int) -> tuple[Floats, Floats]:
            tp_MTK, called_MTK = np.zeros(shape), np.zeros(shape)
            for at in blocks[part :: workers()]:
                inside_BK, positive_TB = self._inside_NK[at], self._positive_TN[:, at]
                sum_TB = np.zeros(positive_TB.shape)
                for member in np.flatnonzero(weights_M).tolist():
                    sum_TB += np.float64(weights_M[member]) * self._preds_MTN[member][:, at]
                added = (pred_TN[:, at] for pred_TN in self._preds_MTN) if step else (0.0,)
                for m, more_TB in enumerate(added):
                    called_TB = self._decide(((sum_TB + more_TB) / total).astype(np.float32))
                    called_MTK[m] += called_TB.astype(np.float32) @ inside_BK
                    tp_MTK[m] += (called_TB & positive_TB).astype(np.float32) @ inside_BK
            return tp_MTK, called_MTK

        parts = each(count, range(min(workers(), len(blocks))))
        tp = np.sum([tp_MTK for tp_MTK, _ in parts], axis=0).transpose(2, 0, 1).astype(np.int64)
        called = np.sum([called_MTK for _, called_MTK in parts], axis=0).transpose(2, 0, 1)
        fp = called.astype(np.int64) - tp
        fn = self._positives_KT[:, None] - tp
        tn = self._size_K[:, None, None] - tp - fp - fn
        counts = Counts(tp=tp, fp=fp, tn=tn, fn=fn)
        return mean_rate(self._metric.name, counts, self._metric.args["multiclass"])

    def _decide(self, pred_TB: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self._metric.args["multiclass"]:  # of classes that tie, the first
            return np.arange(len(pred_TB))[:, None] == pred_TB.argmax(axis=0)
        # Compared in float64: a threshold such as 0.1 is no float32.
        return pred_TB >= np.float64(self._metric.args["threshold"])
