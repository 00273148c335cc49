"""Engines: scores of weighted means of members, fold by fold; one engine per metric family.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Engine as Engine
from ensemble.engines.base import best_first as best_first
from ensemble.engines.base import tie as tie
from ensemble.engines.callable import CallableEngine
from ensemble.engines.decisions import DecisionEngine
from ensemble.engines.log_loss import LogLossEngine
from ensemble.engines.pearson import GramEngine
from ensemble.engines.ranking import RankingEngine
from ensemble.engines.squared import SquaredErrorEngine
from search.metrics import FittedMetric

_ENGINES: dict[str, Callable[..., Engine]] = {
    "gene_expr": GramEngine,
    "pearson": GramEngine,
    "rmse": SquaredErrorEngine,
    "r2": SquaredErrorEngine,
    "log_loss": LogLossEngine,
    "auroc": RankingEngine,
    "average_precision": RankingEngine,
    "presence_locations": RankingEngine,
}


def make_engine(
    metric: FittedMetric,
    preds_MTN: Sequence[NDArray[Any]],
    true_TN: NDArray[Any],
    fold_N: NDArray[np.int64],
) -> Engine:
    """The fastest exact engine for this metric.

    `preds_MTN` holds one (T, N) array per member, which may be memory-mapped: each is read in
    blocks. Folds are 0..K-1, none empty. Raises ValueError when shapes do not match.
    """
    fold_N = np.asarray(fold_N)
    if not len(preds_MTN):
        raise ValueError("there is no member to select from; at least one is needed")
    wrong = [p.shape for p in preds_MTN if p.shape != true_TN.shape]
    if wrong or fold_N.shape != true_TN.shape[1:]:
        raise ValueError(
            f"members of shape {wrong[:3]} and folds {fold_N.shape} do not match the truth's "
            f"{true_TN.shape}; they must be (outputs, rows) and (rows,)"
        )
    present = np.unique(fold_N)
    if not np.array_equal(present, np.arange(len(present))):
        raise ValueError(f"folds are {present.tolist()}; they must be 0..K-1, none empty")
    other: Callable[..., Engine] = DecisionEngine if metric.decides else CallableEngine
    return _ENGINES.get(metric.name, other)(metric, preds_MTN, true_TN, fold_N)
