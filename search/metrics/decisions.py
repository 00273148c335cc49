"""Metrics of hard decisions: accuracy, sensitivity, specificity, ppv, npv, f1 and khd.

Decisions come from predictions by thresholds, or by the highest class. Every rate is computed per
output (class against the rest) and averaged over those where it is defined.

Shapes: T outputs, N rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import CLASSIFICATION, Bools, Floats, Formula, Rows, Score, all_outputs
from search.metrics.ranking import has_negative, has_positive

SMOOTH = 1e-3  # of khd
_HALF = 0.5  # the threshold where none was fitted
# Which outputs are defined, and what is so where none is; the other metrics always are.
_NEEDS = {
    "sensitivity": (has_positive, "no target has a positive"),
    "f1": (has_positive, "no target has a positive"),
    "specificity": (has_negative, "no target has a negative"),
}


class Counts(NamedTuple):
    """Rows by decision and truth: true and false positives, true and false negatives; four arrays
    of one shape."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    tn: NDArray[np.int64]
    fn: NDArray[np.int64]


def count(called_TN: Bools, positive_TN: Bools) -> Counts:
    """Counts (T,) of decisions against truth."""
    tp_T = (called_TN & positive_TN).sum(axis=1)
    fp_T, fn_T = called_TN.sum(axis=1) - tp_T, positive_TN.sum(axis=1) - tp_T
    return Counts(tp=tp_T, fp=fp_T, tn=called_TN.shape[1] - tp_T - fp_T - fn_T, fn=fn_T)


def rate(name: str, c: Counts) -> Floats:
    """The metric called `name` for each of the counts; NaN where it is undefined."""
    return khd_rate(c) if name == "khd" else _RATES[name](c)


def mean_rate(name: str, c: Counts, multiclass: bool) -> Floats:
    """The metric called `name` where the last axis of the counts is the outputs: the mean over
    those that are defined, NaN where none is. Accuracy of classes is the share of right rows."""
    if multiclass and name == "accuracy":
        return c.tp.sum(axis=-1) / (c.tp + c.fn).sum(axis=-1)
    each = rate(name, c)
    return _share(np.nansum(each, axis=-1), (~np.isnan(each)).sum(axis=-1), np.nan)


def khd_rate(c: Counts) -> Floats:
    parts = khd_parts(c)
    return sum(parts.values(), np.zeros(np.shape(c.tp))) / len(parts)


def khd_parts(c: Counts) -> dict[str, Floats]:
    """The six rates of the KHD 2020 challenge, whose evaluation.py adds 1e-3 to every divisor.
    A perfect score is therefore a little below 1."""
    accuracy = (c.tp + c.tn) / (c.tp + c.fn + c.fp + c.tn + SMOOTH)
    ppv = c.tp / (c.tp + c.fp + SMOOTH)
    sensitivity = c.tp / (c.tp + c.fn + SMOOTH)
    return {
        "accuracy": accuracy,
        "ppv": ppv,
        "sensitivity": sensitivity,
        "specificity": c.tn / (c.tn + c.fp + SMOOTH),
        "npv": c.tn / (c.tn + c.fn + SMOOTH),
        "f1": 2 * ppv * sensitivity / (ppv + sensitivity + SMOOTH),
    }


def _share(part: NDArray[Any], whole: NDArray[Any], empty: float) -> Floats:
    """part / whole, and `empty` where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), empty), where=whole > 0)


def _f1(c: Counts) -> Floats:
    f1 = _share(2 * c.tp, 2 * c.tp + c.fp + c.fn, np.nan)
    return np.where(c.tp + c.fn > 0, f1, np.nan)


# With nothing called positive the ppv is 0, so that no one gains by deciding nothing; npv alike.
_RATES: dict[str, Callable[[Counts], Floats]] = {
    "accuracy": lambda c: _share(c.tp + c.tn, c.tp + c.fp + c.tn + c.fn, np.nan),
    "sensitivity": lambda c: _share(c.tp, c.tp + c.fn, np.nan),
    "specificity": lambda c: _share(c.tn, c.tn + c.fp, np.nan),
    "ppv": lambda c: _share(c.tp, c.tp + c.fp, 0.0),
    "npv": lambda c: _share(c.tn, c.tn + c.fn, 0.0),
    "f1": _f1,
}


def _decide(rows: Rows) -> Bools:
    if rows.args["multiclass"]:  # of classes that tie, the first
        return np.arange(len(rows.pred_TN))[:, None] == rows.pred_TN.argmax(axis=0)
    thresholds_T = rows.thresholds_T
    if thresholds_T is None:
        fixed = rows.args["threshold"]
        thresholds_T = np.full(len(rows.pred_TN), _HALF if fixed == "fit" else fixed, np.float64)
    return rows.pred_TN >= thresholds_T[:, None]


def _score(rows: Rows, name: str) -> Score:
    called_TN, positive_TN = _decide(rows), rows.true_TN == 1
    counts, multiclass = count(called_TN, positive_TN), rows.args["multiclass"]
    value = float(mean_rate(name, counts, multiclass))
    if np.isnan(value):
        raise ValueError(f"{name} is undefined: {_NEEDS[name][1]} in these rows")
    if name == "khd":
        parts = {part: float(rate_T.mean()) for part, rate_T in khd_parts(counts).items()}
        return Score(value, parts)
    means = {part: float(mean_rate(part, counts, multiclass)) for part in _RATES}
    return Score(value, {part: mean for part, mean in means.items() if not np.isnan(mean)})


def _formula(name: str, threshold: str | float) -> Formula:
    defined, void = _NEEDS.get(name, (all_outputs, ""))
    return Formula(
        label=name,
        score=partial(_score, name=name),
        task_types=CLASSIFICATION,
        defaults={"threshold": threshold, "multiclass": False},
        defined=defined,
        void=void,
        decides=True,
        probabilities=True,
    )


# One side alone is best at a trivial threshold, so those are not fitted unless asked for.
FORMULAS = {
    **{name: _formula(name, "fit") for name in ("accuracy", "f1", "khd")},
    **{name: _formula(name, _HALF) for name in ("sensitivity", "specificity", "ppv", "npv")},
}
