"""Thresholds that make the best decisions on given folds.

Shapes: T outputs, N rows, K folds, C candidates.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.metrics.core import FittedMetric
from search.metrics.decisions import Counts, rate
from search.metrics.formula import Floats
from search.metrics.values import refuse_non_finite

# Means over folds that differ by less are equal: they differ by the order of summation alone.
TIE = 1e-12
_MIDDLE = 0.5


def best_thresholds(
    fitted: FittedMetric, pred_TN: ArrayLike, true_TN: ArrayLike, fold_N: ArrayLike
) -> Floats:
    """(T,) the thresholds with the best mean over folds of the metric's score.

    All decisions that a threshold can make on these rows are compared (`threshold_candidates`).
    A fold's score is the mean over the outputs that are defined there, so an output weighs more in
    a fold with fewer of them, and nothing where it is undefined. Of equal thresholds the nearest
    to 0.5 is taken, then the lower. Folds may have any numbers. Raises ValueError for a metric
    without thresholds, NaN and shapes that do not match.
    """
    if not fitted.decides or fitted.args["multiclass"]:
        raise ValueError(f"metric {fitted.name} {fitted.args} has no thresholds to fit")
    pred, true, fold = aligned(pred_TN, true_TN, fold_N)
    refuse_non_finite("predictions", pred)
    present, index_N = np.unique(fold, return_inverse=True)
    weight_TK = output_weights([fitted.defined(true[:, fold == k]) for k in present])
    return np.array([
        _best(fitted.name, pred_N, true_N == 1, index_N, weight_K)
        for pred_N, true_N, weight_K in zip(pred, true, weight_TK, strict=True)
    ])  # fmt: skip


def output_weights(defined_KT: ArrayLike) -> Floats:
    """(T, K) what each output counts in each fold's score: its share of the defined ones."""
    defined = np.asarray(defined_KT, dtype=bool)
    return (defined / np.maximum(defined.sum(axis=1, keepdims=True), 1)).T


def threshold_candidates(sorted_N: NDArray[Any]) -> tuple[Floats, NDArray[np.intp]]:
    """(C,) thresholds, rising, that make each possible decision on sorted predictions, and (C,)
    how many rows lie below each.

    They lie halfway between neighbouring distinct values. The first is below the lowest value and
    the last above the highest: 0.5 where that does it, else the next number.
    """
    value_N = sorted_N.astype(np.float64)
    edges = np.flatnonzero(value_N[1:] != value_N[:-1]) + 1
    low, high = value_N[edges - 1], value_N[edges]
    middle = (low + high) / 2
    cuts = np.concatenate([
        [min(_MIDDLE, np.nextafter(value_N[0], -np.inf))],
        np.where(middle > low, middle, high),  # neighbours in float64 have no number between
        [max(_MIDDLE, np.nextafter(value_N[-1], np.inf))],
    ])  # fmt: skip
    return cuts, np.concatenate([[0], edges, [len(value_N)]])


def _best(
    name: str,
    pred_N: NDArray[Any],
    positive_N: NDArray[np.bool_],
    fold_N: NDArray[np.intp],
    weight_K: Floats,
) -> float:
    order_N = np.argsort(pred_N)
    cuts_C, below_C = threshold_candidates(pred_N[order_N])
    positive_N, fold_N = positive_N[order_N], fold_N[order_N]
    member_KN = fold_N == np.arange(len(weight_K))[:, None]
    fn_KC = _counts_below(member_KN & positive_N, below_C)
    tn_KC = _counts_below(member_KN & ~positive_N, below_C)
    # The last candidate calls every row negative.
    counts = Counts(tp=fn_KC[:, -1:] - fn_KC, fp=tn_KC[:, -1:] - tn_KC, tn=tn_KC, fn=fn_KC)
    used = weight_K > 0
    mean_C = np.zeros(len(cuts_C))
    if used.any():
        mean_C = np.average(rate(name, counts)[used], axis=0, weights=weight_K[used])
    tied = cuts_C[mean_C >= mean_C.max() - TIE]
    return float(tied[np.abs(tied - _MIDDLE).argmin()])


def _counts_below(mask_KN: NDArray[np.bool_], below_C: NDArray[np.intp]) -> NDArray[np.int64]:
    """(K, C) how many of the first `below` rows are marked."""
    total_KN = np.zeros((len(mask_KN), mask_KN.shape[1] + 1), dtype=np.int64)
    np.cumsum(mask_KN, axis=1, out=total_KN[:, 1:])
    return total_KN[:, below_C]


def aligned(
    pred_TN: ArrayLike, true_TN: ArrayLike, fold_N: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The three as arrays. Raises ValueError when their shapes do not match or no row is there."""
    pred, true, fold = np.asarray(pred_TN), np.asarray(true_TN), np.asarray(fold_N)
    if pred.ndim != 2 or pred.shape != true.shape or fold.shape != pred.shape[1:] or not len(fold):
        raise ValueError(
            f"predictions {pred.shape}, truth {true.shape} and folds {fold.shape} do not match; "
            "they must be (outputs, rows) twice and (rows,), with a row at least"
        )
    return pred, true, fold
