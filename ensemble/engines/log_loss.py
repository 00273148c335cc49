"""The exact engine for log_loss: only the probability of what is true is kept.

Logarithms are the cost, so probabilities are multiplied in groups and one logarithm is taken of
each product. A column is a group: its values belong to one fold and have one truth, 1 or 0.

Shapes: M members, T outputs, N rows, K folds, G values of a group, C columns, B a block of members.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats, FoldwiseEngine
from ensemble.engines.threads import each
from search.metrics import FittedMetric

_GROUP = 16  # 16 factors of 1e-15, the default of eps, make 1e-240: no underflow
_BLOCK = 1 << 15  # float64 values that a thread works on: 256 kB stay in its cache


class LogLossEngine(FoldwiseEngine):
    """Engine for log_loss. Memory: float32 of each member's (rows x outputs), for classes that
    exclude each other of its rows alone."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        super().__init__(len(preds_MTN), int(fold_N.max()) + 1)
        self._eps = float(metric.args["eps"])
        group = _GROUP if self._eps**_GROUP > 1e-300 else 1
        outputs, rows = true_TN.shape
        fold_TN = np.broadcast_to(fold_N, true_TN.shape)
        if metric.args["multiclass"]:
            index_N = np.argmax(true_TN, axis=0) * rows + np.arange(rows)
            sides = [[index_N[fold_N == k] for k in range(self.folds)], []]
        else:
            sides = [
                [
                    np.flatnonzero((fold_TN == k) & ((true_TN == 1) == one))
                    for k in range(self.folds)
                ]
                for one in (True, False)
            ]
        size_K = np.bincount(fold_N) * (1 if metric.args["multiclass"] else outputs)
        # -1 pads a column: a value that is right for certain, whose logarithm is 0.
        columns, folds = [np.empty((group, 0), dtype=np.int64)], []
        for side in sides:
            for k, index in enumerate(side):
                padded = np.pad(index, (0, -len(index) % group), constant_values=-1)
                columns.append(padded.reshape(group, -1))
                folds += [k] * columns[-1].shape[1]
        index_GC = np.concatenate(columns, axis=1)
        # The columns before it have truth 1, those from it on truth 0.
        self._zeros = sum(-(-len(index) // group) for index in sides[0])
        self._share_CK = np.eye(self.folds)[folds] / size_K
        pad_GC = index_GC < 0
        pad_value_GC = np.where(np.arange(index_GC.shape[1]) < self._zeros, 1, 0)[None, :]
        self._given_MGC = np.empty((self.members, *index_GC.shape), dtype=np.float32)

        def keep(member: int) -> None:
            values_GC = np.ravel(np.asarray(preds_MTN[member])).take(index_GC, mode="clip")
            np.copyto(values_GC, pad_value_GC, where=pad_GC, casting="unsafe")
            self._given_MGC[member] = values_GC

        each(keep, range(self.members))

    def fold_scores(self, weights_M: NDArray) -> Floats:
        total = float(np.sum(weights_M))

        def score(columns: slice) -> Floats:
            return self._scores((self._sum(weights_M, columns) / total)[None], columns)[0]

        return np.sum(each(score, self._column_blocks()), axis=0)

    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        total = float(np.sum(counts_M)) + 1
        blocks = self._column_blocks()
        sum_GC = np.concatenate(each(lambda b: self._sum(counts_M, b), blocks), axis=1)
        width = blocks[0].stop - blocks[0].start
        step = max(1, _BLOCK // (width * self._given_MGC.shape[1]))
        items = [(slice(m, m + step), b) for m in range(0, self.members, step) for b in blocks]

        def steps(item: tuple[slice, slice]) -> Floats:
            members, columns = item
            mean_BGC = self._given_MGC[members, :, columns] + sum_GC[:, columns]
            mean_BGC /= total
            return self._scores(mean_BGC, columns)

        scores_KM = np.zeros((self.folds, self.members))
        for (members, _), scores_BK in zip(items, each(steps, items), strict=True):
            scores_KM[:, members] += scores_BK.T
        return scores_KM

    def _sum(self, weights_M: NDArray, columns: slice) -> Floats:
        sum_GC = np.zeros(self._given_MGC[0, :, columns].shape)
        for member in np.flatnonzero(weights_M):
            weight = np.float64(weights_M[member])
            sum_GC += weight * self._given_MGC[member, :, columns].astype(np.float64)
        return sum_GC

    def _scores(self, mean_BGC: Floats, columns: slice) -> Floats:
        """(B, K) what these columns bring to each fold's score. Overwrites the means."""
        mean_BGC[...] = mean_BGC.astype(np.float32)  # an ensemble's prediction is float32
        zeros = slice(max(self._zeros - columns.start, 0), None)
        np.subtract(1, mean_BGC[:, :, zeros], out=mean_BGC[:, :, zeros])
        np.maximum(mean_BGC, self._eps, out=mean_BGC)
        product_BC = np.multiply.reduce(mean_BGC, axis=1)
        return np.log(product_BC, out=product_BC) @ self._share_CK[columns]

    def _column_blocks(self) -> list[slice]:
        group, columns = self._given_MGC.shape[1:]
        step = max(1, _BLOCK // group)
        return [slice(c, min(c + step, columns)) for c in range(0, columns, step)]
