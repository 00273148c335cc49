"""Metrics of probabilities: log_loss.

Shapes: T outputs, N rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import BLOCK, CLASSIFICATION, Floats, Formula, Rows, Score


def _score_log_loss(rows: Rows) -> Score:
    """Mean of -ln of the probability that was given to the true class, over rows and, unless one
    class excludes the others, over outputs. Probabilities over classes are taken as they are, not
    divided by their sum; none counts as less than `eps`."""
    if rows.args["multiclass"]:
        pred_N = np.take_along_axis(rows.pred_TN, rows.true_TN.argmax(axis=0)[None], axis=0)
        total, count = _surprise(pred_N.astype(np.float64), rows.args["eps"]), pred_N.size
    else:
        total, count = 0.0, rows.pred_TN.size
        for start in range(0, len(rows.pred_TN), BLOCK):
            block = slice(start, start + BLOCK)
            given = _given(rows.pred_TN[block], rows.true_TN[block])
            total += _surprise(given, rows.args["eps"])
    return Score(-total / count, {"log_loss": total / count})


def _given(pred_TN: NDArray[Any], true_TN: NDArray[Any]) -> Floats:
    """The probability of what is true."""
    pred = pred_TN.astype(np.float64)
    return np.where(true_TN == 1, pred, 1 - pred)


def _surprise(given: Floats, eps: float) -> float:
    return float(-np.log(np.maximum(given, eps)).sum())


FORMULAS = {
    "log_loss": Formula(
        label="-log_loss",
        score=_score_log_loss,
        task_types=CLASSIFICATION,
        defaults={"multiclass": False, "eps": 1e-15},
        probabilities=True,
    ),
}
