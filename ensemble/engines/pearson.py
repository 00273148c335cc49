"""The exact engine for metrics made of Pearson correlations: it keeps inner products only.

The correlation of a weighted sum of members with the truth follows from the members' Gram matrix
and their products with the truth. One such set per output and fold gives the gene-wise
correlations, one per row (over the outputs) the row-wise ones; together all parts of gene_expr.
After one pass over the predictions a greedy step costs O(M) per output and per row.
Pearson ignores scale, so sums stand for means throughout.

Shapes: M members, T outputs, N rows, K folds, V vectors to correlate (an output within a fold, or
a row), C their values, B a block of vectors.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics import FittedMetric, is_constant

FAMILY = ("gene_expr", "pearson")  # the metrics that GramEngine scores
_BLOCK_BYTES = 64 << 20  # float64 values held while reading
_GRAM_BYTES = 1 << 30  # Gram columns made at the start; further ones when a member is selected
# A sum of squares below this share of what its members bring is what rounding left of members
# that cancel each other: it counts as 0.
_ROUNDING = 1e-13

Floats = NDArray[np.float64]


class GramEngine:
    """Engine for the metrics of FAMILY. Members that come first are kept ready first."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        self._metric, self._nan = metric, str(metric.args["nan"])
        self.members = len(preds_MTN)
        self.folds = int(fold_N.max()) + 1
        order_N = np.argsort(fold_N, kind="stable")
        ends_K = np.cumsum(np.bincount(fold_N, minlength=self.folds))
        starts_K = np.concatenate([[0], ends_K[:-1]])
        self._fold_rows = [slice(a, b) for a, b in zip(starts_K, ends_K, strict=True)]
        arrays = [*preds_MTN, true_TN]  # the truth is the last one, index M
        self._genes = _GeneVectors(arrays, order_N, self._fold_rows)
        self._rows = _RowVectors(arrays, order_N) if metric.name == "gene_expr" else None

    def fold_scores(self, counts_M: NDArray[np.int64]) -> Floats:
        return self._scores(counts_M, step=False)[:, 0]

    def step(self, counts_M: NDArray[np.int64]) -> Floats:
        return self._scores(counts_M, step=True)

    def _scores(self, counts_M: NDArray[np.int64], step: bool) -> Floats:
        corr_VM = self._genes.correlations(counts_M, step)
        genes_KTM = corr_VM.reshape(self.folds, -1, corr_VM.shape[1])
        if self._rows is None:
            return _mean(genes_KTM, self._nan, axis=1)
        rows_NM = self._rows.correlations(counts_M, step)
        parts = (
            np.stack([_mean(rows_NM[rows], self._nan, axis=0) for rows in self._fold_rows]),
            _max(genes_KTM, self._nan, axis=1),
            _mean(genes_KTM[:, list(self._metric.lists["heg"])], self._nan, axis=1),
            _mean(genes_KTM[:, list(self._metric.lists["hvg"])], self._nan, axis=1),
        )
        return np.maximum(sum(parts) / 4, 0.0)


class _Vectors:
    """V sets of M + 1 vectors (members, then truth) and their centred inner products."""

    def __init__(self, arrays: Sequence[NDArray[Any]], count_V: NDArray[np.int64]) -> None:
        self._arrays = arrays
        self._count_V = count_V
        vectors, members = len(count_V), len(arrays) - 1
        ready = min(members, _GRAM_BYTES // max(vectors * members * 8, 1))
        self._mean_VM = np.empty((vectors, members))
        self._ss_VM = np.empty((vectors, members))
        self._cross_VM = np.empty((vectors, members))
        self._true_ss_V = np.empty(vectors)
        self._true_void_V = np.empty(vectors, dtype=bool)
        self._columns = {j: np.empty((vectors, members)) for j in range(ready)}
        for at, block_BMC, mean_BM in self._centred():
            ss_BM = np.einsum("bmc,bmc->bm", block_BMC, block_BMC)
            self._mean_VM[at], self._ss_VM[at] = mean_BM[:, :-1], ss_BM[:, :-1]
            self._cross_VM[at] = (block_BMC[:, :-1] @ block_BMC[:, -1, :, None])[:, :, 0]
            self._true_ss_V[at] = ss_BM[:, -1]
            self._true_void_V[at] = is_constant(ss_BM[:, -1], mean_BM[:, -1], block_BMC.shape[2])
            if ready:
                gram_BMM = block_BMC[:, :-1] @ block_BMC[:, :ready].transpose(0, 2, 1)
                for j, column_VM in self._columns.items():
                    column_VM[at] = gram_BMM[:, :, j]

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Where a block stands among the V, and its values (B, M + 1, C)."""
        raise NotImplementedError

    def correlations(self, counts_M: NDArray[np.int64], step: bool) -> Floats:
        """Correlation with the truth, NaN where undefined: (V, 1) of the sum of members, or with
        `step` (V, M) of that sum and one more of member j."""
        gram_VM = np.zeros_like(self._cross_VM)  # of the sum with each member
        for member in np.flatnonzero(counts_M):
            gram_VM += counts_M[member] * self._column(int(member))
        cross_VM = (self._cross_VM @ counts_M)[:, None]
        ss_VM = (gram_VM @ counts_M)[:, None]
        mean_VM = (self._mean_VM @ counts_M)[:, None]
        size_VM = (np.sqrt(self._ss_VM) @ counts_M)[:, None]
        if step:
            cross_VM = cross_VM + self._cross_VM
            ss_VM = ss_VM + 2 * gram_VM + self._ss_VM
            mean_VM = mean_VM + self._mean_VM
            size_VM = size_VM + np.sqrt(self._ss_VM)
        ss_VM = np.where(ss_VM <= _ROUNDING * size_VM**2, 0.0, ss_VM)
        # The rule broadcasts: here every vector has its own count.
        void_VM = is_constant(ss_VM, mean_VM, self._count_V[:, None])
        void_VM |= self._true_void_V[:, None]
        norm_VM = np.sqrt(ss_VM) * np.sqrt(self._true_ss_V)[:, None]
        return np.clip(cross_VM / np.where(void_VM, np.nan, norm_VM), -1, 1)

    def _column(self, member: int) -> Floats:
        """(V, M) products of one member with all. Beyond the memory set aside they are made for
        selected members only, each in a pass of its own."""
        if member not in self._columns:
            column_VM = np.empty_like(self._cross_VM)
            for at, block_BMC, _ in self._centred():
                column_VM[at] = (block_BMC[:, :-1] @ block_BMC[:, member, :, None])[:, :, 0]
            self._columns[member] = column_VM
        return self._columns[member]

    def _centred(self) -> Iterator[tuple[slice, Floats, Floats]]:
        for at, block_BMC in self.blocks():
            values_BMC = np.array(block_BMC, dtype=np.float64, order="C")
            mean_BM = values_BMC.mean(axis=2)
            values_BMC -= mean_BM[:, :, None]
            yield at, values_BMC, mean_BM


class _GeneVectors(_Vectors):
    """One vector per fold and output, over the fold's rows; V = K x T, the fold varies slowest."""

    def __init__(
        self, arrays: Sequence[NDArray[Any]], order_N: NDArray[np.int64], fold_rows: list[slice]
    ) -> None:
        self._order_N, self._fold_rows = order_N, fold_rows
        sizes_K = [rows.stop - rows.start for rows in fold_rows]
        super().__init__(arrays, np.repeat(sizes_K, len(arrays[0])))

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        outputs, rows = self._arrays[0].shape
        for genes in _pieces(outputs, per_item=len(self._arrays) * rows * 8):
            # Indexing before stacking keeps one member's piece in memory at a time.
            block_BMN = np.stack([a[genes][:, self._order_N] for a in self._arrays], axis=1)
            for fold, fold_rows in enumerate(self._fold_rows):
                first = fold * outputs
                yield (
                    slice(first + genes.start, first + genes.stop),
                    block_BMN[:, :, fold_rows],
                )


class _RowVectors(_Vectors):
    """One vector per row, over the outputs; V = N, in the order of the folds."""

    def __init__(self, arrays: Sequence[NDArray[Any]], order_N: NDArray[np.int64]) -> None:
        self._order_N = order_N
        outputs, rows = arrays[0].shape
        super().__init__(arrays, np.full(rows, outputs))

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        outputs, rows = self._arrays[0].shape
        for at in _pieces(rows, per_item=len(self._arrays) * outputs * 8):
            wanted = self._order_N[at]
            yield at, np.stack([np.asarray(a[:, wanted]).T for a in self._arrays], axis=1)


def _pieces(count: int, per_item: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // per_item)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _mean(corr: Floats, nan: str, axis: int) -> Floats:
    """Mean of correlations; the undefined ones count as 0 or are dropped (none left: 0)."""
    kept = ~np.isnan(corr)
    count = kept.sum(axis=axis) if nan == "drop" else corr.shape[axis]
    return np.where(kept, corr, 0.0).sum(axis=axis) / np.maximum(count, 1)


def _max(corr: Floats, nan: str, axis: int) -> Floats:
    kept = ~np.isnan(corr)
    best = np.where(kept, corr, 0.0 if nan == "zero" else -np.inf).max(axis=axis)
    return np.where(np.isneginf(best), 0.0, best)
