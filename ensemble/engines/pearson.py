"""The exact engine for metrics made of Pearson correlations: it keeps inner products only.

One set of products per output and fold gives the gene-wise correlations, one per row (over the
outputs) the row-wise ones; together all parts of gene_expr. One pass over the predictions makes
both, in float64; after it a greedy step costs O(M) per output and per row.
Pearson ignores scale, so sums stand for means throughout. They are not rounded to float32, as
stored predictions are: where values vary by more than 1e-4 of their size no score shows it.

Shapes: M members, A = M + 1 (the truth, then the members), T outputs, N rows, K folds, V sets of
vectors to correlate (an output within a fold, or a row), B a block of them, C their values.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats, FoldwiseEngine
from ensemble.engines.grams import Grams
from ensemble.engines.threads import each
from ensemble.engines.values import Values
from search.metrics import FittedMetric, gene_expr_value, gene_parts, mean_correlation

_GRAM_BYTES = 1 << 30  # Gram columns made at the start; further ones when a member is selected


class GramEngine(FoldwiseEngine):
    """Engine for gene_expr and pearson. Members that come first are kept ready first."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        self._values = Values(true_TN, preds_MTN, fold_N)
        self._fold_rows = self._values.fold_rows
        super().__init__(len(preds_MTN), len(self._fold_rows))
        self._metric, self._nan = metric, str(metric.args["nan"])
        outputs, rows = true_TN.shape
        counts = [np.repeat([len(rows) for rows in self._fold_rows], outputs)]
        if metric.name == "gene_expr":
            counts.append(np.full(rows, outputs))
        ready = min(self.members, _GRAM_BYTES // (sum(map(len, counts)) * self.members * 8))
        self._grams = [Grams(self.members, count_V, ready) for count_V in counts]
        self._read([grams.add for grams in self._grams])
        shifts = (self._values.output_shift_AV, self._values.row_shift_AN)
        for grams, shift_AV in zip(self._grams, shifts, strict=False):
            grams.finish(shift_AV)

    def fold_scores(self, weights_M: NDArray[Any]) -> Floats:
        weights_M = np.asarray(weights_M, dtype=np.float64) / np.sum(weights_M)
        late = self._grams[0].missing(weights_M)
        made = self._products(weights_M) if late else [g.product(weights_M) for g in self._grams]
        pairs = zip(self._grams, made, strict=True)
        return self._score([grams.correlation(weights_M, made_MV) for grams, made_MV in pairs])

    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        for member in self._grams[0].missing(counts_M):
            made = self._products(np.eye(self.members)[member])
            for grams, column_MV in zip(self._grams, made, strict=True):
                grams.keep(member, column_MV)
        for grams in self._grams:
            grams.start_steps(counts_M)
        return np.stack(each(self._step, range(self.members)), axis=1)

    def _step(self, member: int) -> Floats:
        return self._score([grams.step(member) for grams in self._grams])

    def _products(self, weights_M: Floats) -> list[Floats]:
        """For each of the Grams the (M, V) products of a weighted sum with each member, in a pass
        over all predictions."""
        made = [np.zeros((self.members + 1, grams.sets)) for grams in self._grams]

        def add(made_AV: Floats, at: slice, x_BXC: Floats) -> None:
            sum_BC = weights_M @ x_BXC[:, 2:]
            made_AV[:, at] += (x_BXC[:, 1:] @ sum_BC[:, :, None])[:, :, 0].T

        self._read([partial(add, made_AV) for made_AV in made])
        pairs = zip(self._grams, made, strict=True)
        return [grams.centred(weights_M, made_AV[1:]) for grams, made_AV in pairs]

    def _read(self, uses: list[Any]) -> None:
        self._values.read(uses[0], uses[1] if len(uses) > 1 else None)

    def _score(self, correlations: list[Floats]) -> Floats:
        """(K,) the metric from the correlations of the outputs and, for gene_expr, of the rows."""
        genes_KT = correlations[0].reshape(self.folds, -1)
        if self._metric.name == "pearson":
            return mean_correlation(genes_KT, self._nan)
        cells = [mean_correlation(correlations[1][rows], self._nan) for rows in self._fold_rows]
        parts = gene_parts(genes_KT, self._nan, self._metric.lists)
        return gene_expr_value(np.stack(cells), *parts.values())
