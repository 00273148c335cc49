"""Metrics of ranking: auroc and average_precision, mean over outputs (classes: one against the
rest). Only the order of predictions matters.

Shapes: T outputs, N rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import (
    CLASSIFICATION,
    Bools,
    Floats,
    Formula,
    Rows,
    Score,
    mean_defined,
)

_NONE_BOTH = "no target has both a positive and a negative"
_NO_POSITIVE = "no target has a positive"
_VALUES = 2**21  # sorted at a time


def aurocs(pred_TN: NDArray[Any], true_TN: NDArray[Any]) -> Floats:
    """(T,) share of pairs of a positive and a negative in which the positive is higher; a tie
    counts half. NaN where a class is missing."""
    return _in_blocks(_auroc_block, pred_TN, true_TN)


def average_precisions(pred_TN: NDArray[Any], true_TN: NDArray[Any]) -> Floats:
    """(T,) mean over positives of the precision among rows predicted as high or higher, which is
    scikit-learn's average_precision_score. NaN where no row is positive."""
    return _in_blocks(_precision_block, pred_TN, true_TN)


def has_positive(true_TN: NDArray[Any]) -> Bools:
    return (true_TN == 1).any(axis=1)


def has_negative(true_TN: NDArray[Any]) -> Bools:
    return (true_TN == 0).any(axis=1)


def has_both(true_TN: NDArray[Any]) -> Bools:
    return has_positive(true_TN) & has_negative(true_TN)


def _in_blocks(
    of: Callable[[NDArray[Any], Bools], Floats], pred_TN: NDArray[Any], true_TN: NDArray[Any]
) -> Floats:
    step = max(1, _VALUES // max(1, pred_TN.shape[1]))
    blocks = [slice(i, i + step) for i in range(0, len(pred_TN), step)]
    return np.concatenate([of(pred_TN[block], true_TN[block] == 1) for block in blocks])


def _auroc_block(pred_TN: NDArray[Any], positive_TN: Bools) -> Floats:
    order_TN = np.argsort(pred_TN, axis=1)
    first_TN, last_TN = _ties(np.take_along_axis(pred_TN, order_TN, axis=1))
    sorted_TN = np.take_along_axis(positive_TN, order_TN, axis=1)
    # The sum of the positives' mean ranks, from 0; all of it is exact in float64.
    ranks_T = np.where(sorted_TN, first_TN + last_TN, 0).sum(axis=1) / 2
    positives_T = positive_TN.sum(axis=1)
    pairs_T = positives_T * (positive_TN.shape[1] - positives_T)
    return _divide(ranks_T - positives_T * (positives_T - 1) / 2, pairs_T)


def _precision_block(pred_TN: NDArray[Any], positive_TN: Bools) -> Floats:
    order_TN = np.argsort(pred_TN, axis=1)
    first_TN, _ = _ties(np.take_along_axis(pred_TN, order_TN, axis=1))
    sorted_TN = np.take_along_axis(positive_TN, order_TN, axis=1)
    # Called positive at a row's own prediction: all rows from the first that ties with it.
    above_TN = np.cumsum(sorted_TN[:, ::-1], axis=1)[:, ::-1]
    called_TN = positive_TN.shape[1] - first_TN
    precision_TN = np.take_along_axis(above_TN, first_TN, axis=1) / called_TN
    return _divide(np.where(sorted_TN, precision_TN, 0.0).sum(axis=1), positive_TN.sum(axis=1))


def _ties(sorted_TN: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the last position with the same value, for each position of sorted rows."""
    index_N = np.arange(sorted_TN.shape[1])
    new_TN = np.ones((len(sorted_TN), sorted_TN.shape[1] + 1), dtype=bool)
    new_TN[:, 1:-1] = sorted_TN[:, 1:] != sorted_TN[:, :-1]
    first_TN = np.maximum.accumulate(np.where(new_TN[:, :-1], index_N, 0), axis=1)
    ends_TN = np.where(new_TN[:, 1:], index_N, len(index_N))
    last_TN = np.minimum.accumulate(ends_TN[:, ::-1], axis=1)[:, ::-1]
    return first_TN, last_TN


def _divide(part_T: NDArray[Any], whole_T: NDArray[Any]) -> Floats:
    return np.divide(part_T, whole_T, out=np.full(len(whole_T), np.nan), where=whole_T > 0)


def _score_auroc(rows: Rows) -> Score:
    value = mean_defined("auroc", aurocs(rows.pred_TN, rows.true_TN), _NONE_BOTH)
    return Score(value, {"auroc": value})


def _score_average_precision(rows: Rows) -> Score:
    each_T = average_precisions(rows.pred_TN, rows.true_TN)
    value = mean_defined("average_precision", each_T, _NO_POSITIVE)
    return Score(value, {"average_precision": value})


FORMULAS = {
    "auroc": Formula(
        label="auroc",
        score=_score_auroc,
        task_types=CLASSIFICATION,
        defined=has_both,
        void=_NONE_BOTH,
    ),
    "average_precision": Formula(
        label="average_precision",
        score=_score_average_precision,
        task_types=CLASSIFICATION,
        defined=has_positive,
        void=_NO_POSITIVE,
    ),
}
