"""What a metric is made of: its formula, the rows that it scores, and the score.

Shapes: T outputs, N rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Lists = dict[str, tuple[int, ...]]  # list name -> indices of outputs

REGRESSION = ("regression",)
CLASSIFICATION = ("binary", "multilabel", "multiclass")
BLOCK = 256  # outputs held in float64 at a time: 3467 x 6992 values never exist in float64 at once


@dataclass(frozen=True)
class Score:
    """A score and the named quantities behind it. `value` is better when higher; `parts` are
    quantities under their own names (an rmse is positive there); one that is undefined in the
    scored rows is left out."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows to score, with the arguments and lists of the fitted metric."""

    pred_TN: NDArray[Any]
    true_TN: NDArray[Any]
    args: Mapping[str, Any]
    lists: Mapping[str, tuple[int, ...]]
    thresholds_T: Floats | None  # None: the metric's own


# (T, N) truth, arguments, lists -> (T,) what each output counts in the score of these rows
Weigh = Callable[[NDArray[Any], Mapping[str, Any], Mapping[str, tuple[int, ...]]], Floats]


def _no_lists(targets_TN: NDArray[Any], args: Mapping[str, Any]) -> Lists:
    return {}


def all_outputs(true_TN: NDArray[Any]) -> Bools:
    return np.ones(len(true_TN), dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """How one metric is computed, and on what."""

    label: str  # name of the value for people; a leading '-' says that it is negated
    score: Callable[[Rows], Score]
    task_types: tuple[str, ...] = REGRESSION
    defaults: dict[str, Any] = field(default_factory=dict)  # of all arguments
    fit: Callable[[NDArray[Any], Mapping[str, Any]], Lists] = _no_lists
    lists: tuple[str, ...] = ()  # the names that `fit` returns
    defined: Callable[[NDArray[Any]], Bools] = all_outputs  # truth -> (T,) which have a score
    void: str = ""  # what is so in rows where the metric is undefined; empty: it never is
    weights: Weigh | None = None  # None: the defined outputs count alike
    decides: bool = False
    probabilities: bool = False


def mean_defined(name: str, values_T: Floats, void: str) -> float:
    """Mean over the outputs that are not NaN. Raises ValueError that says `void` when all are."""
    kept = values_T[~np.isnan(values_T)]
    if not len(kept):
        raise ValueError(f"{name} is undefined: {void} in these rows")
    return float(kept.mean())
