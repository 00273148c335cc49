"""The metric presence_locations: whether something is there, and where.

The first output is the presence, the others are locations. Shapes: T outputs, N rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import Bools, Floats, Formula, Lists, Rows, Score
from search.metrics.ranking import aurocs, has_both

_VOID = "the first target lacks a positive or a negative"
_HALF = 0.5  # the challenge wants locations as 0 or 1


def _fit(targets_TN: NDArray[Any], args: Mapping[str, Any]) -> Lists:
    """Locations whose AUROC says something: those with enough positives in all training rows."""
    enough_T = (targets_TN == 1).sum(axis=1) >= args["min_positives"]
    return {"locations": tuple(t for t in np.flatnonzero(enough_T).tolist() if t > 0)}


def _defined(true_TN: NDArray[Any]) -> Bools:
    """Nothing is defined without the presence."""
    both_T = has_both(true_TN)
    return both_T & both_T[0]


def _weights(
    true_TN: NDArray[Any], args: Mapping[str, Any], lists: Mapping[str, tuple[int, ...]]
) -> Floats:
    """A fixed share for the presence, the rest for the listed locations that are defined, alike;
    all of it for the presence where none is."""
    defined_T = _defined(true_TN)
    weight_T = np.zeros(len(true_TN))
    weight_T[[t for t in lists["locations"] if defined_T[t]]] = 1
    if not weight_T.any():
        return np.where(np.arange(len(true_TN)) == 0, defined_T, 0.0)
    weight_T *= (1 - args["presence_weight"]) / weight_T.sum()
    weight_T[0] = args["presence_weight"]
    return weight_T


def _score(rows: Rows) -> Score:
    """A weighted mean of the AUROC of the presence, by which the k-ium 2023 challenge ranked, and
    of that of the locations. Its accuracy of locations is a part only: there are so few positives
    that all zeros score 0.97 (`all_zero_accuracy`)."""
    weight_T = _weights(rows.true_TN, rows.args, rows.lists)
    if not weight_T.any():
        raise ValueError(f"presence_locations is undefined: {_VOID} in these rows")
    auroc_T = aurocs(rows.pred_TN, rows.true_TN)
    value = float(weight_T @ np.where(weight_T > 0, auroc_T, 0))
    parts = {"auroc": float(auroc_T[0])}
    listed = auroc_T[list(rows.lists["locations"])]
    if not np.isnan(listed).all():
        parts["location_auroc"] = float(np.nanmean(listed))
    pred_TN, true_TN = rows.pred_TN[1:], rows.true_TN[1:]
    if len(true_TN):
        parts["location_accuracy"] = 1 - float(np.abs(true_TN - (pred_TN >= _HALF)).mean())
        parts["all_zero_accuracy"] = 1 - float(np.abs(true_TN).mean())
    return Score(value, parts)


FORMULAS = {
    "presence_locations": Formula(
        label="presence_locations",
        score=_score,
        task_types=("binary", "multilabel"),
        defaults={"presence_weight": 0.7, "min_positives": 10},
        fit=_fit,
        lists=("locations",),
        defined=_defined,
        void=_VOID,
        weights=_weights,
        probabilities=True,
    ),
}
