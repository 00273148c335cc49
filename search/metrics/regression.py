"""Metrics of error: rmse, mae, r2.

Shapes: T outputs, N rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.correlation import centred, is_constant
from search.metrics.formula import BLOCK, Bools, Floats, Formula, Rows, Score, mean_defined

_STILL = "no target has truth that varies"


def _score_rmse(rows: Rows) -> Score:
    rmse = _mean_error(rows, np.square) ** 0.5
    return Score(-rmse, {"rmse": rmse})


def _score_mae(rows: Rows) -> Score:
    mae = _mean_error(rows, np.abs)
    return Score(-mae, {"mae": mae})


def _mean_error(rows: Rows, of: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
    total = 0.0
    for start in range(0, len(rows.pred_TN), BLOCK):
        block = slice(start, start + BLOCK)
        total += float(of(rows.pred_TN[block].astype(np.float64) - rows.true_TN[block]).sum())
    return total / rows.pred_TN.size


def _score_r2(rows: Rows) -> Score:
    """Mean over outputs of 1 - SSE / SST; SST is about the mean of these very rows."""
    sse_T, sst_T = np.empty(len(rows.pred_TN)), _total_squares(rows.true_TN)
    for start in range(0, len(rows.pred_TN), BLOCK):
        block = slice(start, start + BLOCK)
        error = rows.pred_TN[block].astype(np.float64) - rows.true_TN[block]
        sse_T[block] = np.einsum("tn,tn->t", error, error)
    r2 = mean_defined("r2", 1 - sse_T / sst_T, _STILL)
    return Score(r2, {"r2": r2})


def _total_squares(true_TN: NDArray[Any]) -> Floats:
    """(T,) sum of squares about each output's mean, NaN where the output is constant."""
    sst_T = np.empty(len(true_TN))
    for start in range(0, len(true_TN), BLOCK):
        true, mean, ss = centred(true_TN[start : start + BLOCK])
        sst_T[start : start + BLOCK] = np.where(is_constant(ss, mean, true.shape[1]), np.nan, ss)
    return sst_T


def _varies(true_TN: NDArray[Any]) -> Bools:
    return ~np.isnan(_total_squares(true_TN))


FORMULAS = {
    "rmse": Formula(label="-rmse", score=_score_rmse),
    "mae": Formula(label="-mae", score=_score_mae),
    "r2": Formula(label="r2", score=_score_r2, defined=_varies, void=_STILL),
}
