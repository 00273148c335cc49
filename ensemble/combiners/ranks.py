"""The mean of ranks: what each member thinks of the order, whatever its scale.

Shapes: m members, T outputs, n rows, Q quantiles.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.prefix import best_size, equal_blend, mean_of
from ensemble.members import Pool
from ensemble.transforms import ranked

QUANTILES = 1001  # at most; between two of them ranks are interpolated
RANKING = ("auroc", "average_precision")  # the metrics that only the order matters to


def refuses_rank_mean(pool: Pool) -> str | None:
    if pool.metric.name in RANKING:
        return None
    return (
        f"a mean of ranks has no scale, and {pool.metric.name} needs one; "
        f"it is for {' and '.join(RANKING)}"
    )


def rank_mean(bench: Bench, folds: Sequence[int]) -> Blend:
    """The mean of the k best members' ranks among their own predictions on these folds."""
    order = bench.budget.fill(bench.candidates(folds))
    rows_n = bench.rows(folds)
    at_mTQ = [_quantiles(bench.preds[m], rows_n) for m in order]
    grow = mean_of(lambda i, pred_TB: ranked(pred_TB, at_mTQ[i]), "identity")
    k = best_size(bench, folds, order, grow)
    return equal_blend(
        bench, "rank_mean", order[:k], transform="rank", quantiles_mTQ=np.stack(at_mTQ[:k])
    )


def _quantiles(pred_TN: NDArray[np.float32], rows_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T, Q) of the sorted predictions those at equal distances. None is interpolated: equal
    predictions must stay equal."""
    rows = len(rows_n)
    at_Q = np.rint(np.linspace(0, rows - 1, min(rows, QUANTILES))).astype(np.int64)
    return np.stack([np.sort(row_N[rows_n])[at_Q] for row_N in pred_TN]).astype(np.float64)
