"""A metric by name, and the same with its lists of outputs frozen, which scores rows.

Shapes: T outputs, N rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.metrics import correlation, decisions, presence, probability, ranking, regression
from search.metrics.arguments import argument_faults
from search.metrics.formula import Bools, Floats, Formula, Lists, Rows, Score
from search.metrics.values import out_of_range, refuse_non_finite
from spaces.errors import UserError, near

_FORMULAS: dict[str, Formula] = {
    **correlation.FORMULAS,
    **regression.FORMULAS,
    **ranking.FORMULAS,
    **probability.FORMULAS,
    **decisions.FORMULAS,
    **presence.FORMULAS,
}


@dataclass(frozen=True, kw_only=True)
class _Named:
    """What the name and the arguments say, fitted or not."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)  # complete

    direction = "max"

    @property
    def label(self) -> str:
        """Name of the value for people; a leading '-' says that it is negated."""
        return _FORMULAS[self.name].label

    @property
    def task_types(self) -> tuple[str, ...]:
        """The types of task that it can score."""
        types = _FORMULAS[self.name].task_types
        if "multiclass" not in self.args:
            return types
        return tuple(t for t in types if (t == "multiclass") is self.args["multiclass"])

    @property
    def decides(self) -> bool:
        """Whether it scores hard decisions, made from the predictions by thresholds or by the
        highest class."""
        return _FORMULAS[self.name].decides

    @property
    def fits_thresholds(self) -> bool:
        """Whether its thresholds are to be fitted; see `fold_scores`."""
        return self.decides and not self.args["multiclass"] and self.args["threshold"] == "fit"

    @property
    def probabilities(self) -> bool:
        """Whether predictions must lie in [0, 1]."""
        return _FORMULAS[self.name].probabilities


@dataclass(frozen=True, kw_only=True)
class FittedMetric(_Named):
    """A metric with its lists of outputs frozen. Equal lists and arguments make equal metrics."""

    outputs: int  # T
    lists: Lists

    def score(
        self, pred_TN: ArrayLike, true_TN: ArrayLike, thresholds_T: ArrayLike | None = None
    ) -> Score:
        """Score of these rows.

        `thresholds_T` are for metrics on decisions (positive when the prediction is the threshold
        or more); without them the metric's fixed one is used, or 0.5 when it is to be fitted.
        Raises ValueError for NaN, infinity, a wrong shape, predictions that are no probabilities
        and truth that is no class where the metric needs them, and where no output is defined.
        """
        pred, true = np.asarray(pred_TN), np.asarray(true_TN)
        if pred.shape != true.shape or pred.ndim != 2 or pred.shape[0] != self.outputs:
            raise ValueError(
                f"predictions have shape {pred.shape} and truth {true.shape}; "
                f"both must be ({self.outputs}, rows)"
            )
        if pred.shape[1] == 0:
            raise ValueError("there is no row to score; at least one is needed")
        refuse_non_finite("predictions", pred)
        refuse_non_finite("truth", true)
        if self.probabilities and (span := out_of_range(pred)):
            raise ValueError(
                f"predictions go from {span[0]:g} to {span[1]:g}; {self.name} needs [0, 1]"
            )
        if "regression" not in self.task_types and not ((true == 0) | (true == 1)).all():
            raise ValueError(f"truth holds values other than 0 and 1; {self.name} needs classes")
        if self.args.get("multiclass") and (true.sum(axis=0) != 1).any():
            raise ValueError(f"truth is not one-hot; multiclass {self.name} needs one class a row")
        rows = Rows(
            pred_TN=pred,
            true_TN=true,
            args=self.args,
            lists=self.lists,
            thresholds_T=None if thresholds_T is None else self._thresholds(thresholds_T),
        )
        return _FORMULAS[self.name].score(rows)

    def _thresholds(self, thresholds_T: ArrayLike) -> NDArray[np.float64]:
        values_T = np.asarray(thresholds_T, dtype=np.float64)
        if not self.decides or self.args["multiclass"]:
            raise ValueError(f"metric {self.name} {self.args} takes no thresholds; leave them out")
        if values_T.shape != (self.outputs,) or np.isnan(values_T).any():
            raise ValueError(
                f"thresholds are {values_T.tolist()}; they must be {self.outputs} numbers"
            )
        return values_T

    def defined(self, true_TN: NDArray[Any]) -> Bools:
        """(T,) whether each output has a score in rows with this truth."""
        return _FORMULAS[self.name].defined(true_TN)

    def weights(self, true_TN: NDArray[Any]) -> Floats:
        """(T,) what each output counts in the score of rows with this truth: 1 in all, or 0 where
        the metric is undefined."""
        if of := _FORMULAS[self.name].weights:
            return of(true_TN, self.args, self.lists)
        defined_T = self.defined(true_TN)
        return defined_T / max(defined_T.sum(), 1)

    @property
    def void(self) -> str:
        """What is so in rows where the metric is undefined; empty: it never is."""
        return _FORMULAS[self.name].void

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        lists = {name: list(indices) for name, indices in self.lists.items()}
        return {
            "name": self.name,
            "args": dict(self.args),
            "outputs": self.outputs,
            "lists": lists,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FittedMetric":
        """Rebuild what `to_dict` wrote. Raises UserError for an unknown or damaged metric."""
        metric = get_metric(str(data.get("name")), **data.get("args", {}))
        outputs, lists = data.get("outputs"), data.get("lists")
        if not isinstance(outputs, int) or not isinstance(lists, Mapping):
            raise UserError("a fitted metric needs the fields outputs and lists; restore the file")
        frozen = {str(name): tuple(int(i) for i in indices) for name, indices in lists.items()}
        wrong = [name for name, ids in frozen.items() if any(not 0 <= i < outputs for i in ids)]
        if wrong or frozen.keys() != set(_FORMULAS[metric.name].lists):
            raise UserError(
                f"metric {metric.name} has the lists {sorted(frozen)} with {outputs} outputs; "
                f"it needs {sorted(_FORMULAS[metric.name].lists)}, all indices below the number "
                "of outputs; restore the file"
            )
        return cls(name=metric.name, args=metric.args, outputs=outputs, lists=frozen)


@dataclass(frozen=True, kw_only=True)
class Metric(_Named):
    """A metric by name with complete arguments, not yet fitted."""

    def fit(self, targets_TN: ArrayLike) -> FittedMetric:
        """Freeze the lists of outputs from the training targets: pass ALL training rows, once."""
        targets = np.asarray(targets_TN)
        if targets.ndim != 2 or 0 in targets.shape:
            raise ValueError(f"targets have shape {targets.shape}; it must be (outputs, rows)")
        refuse_non_finite("targets", targets)
        return FittedMetric(
            name=self.name,
            args=self.args,
            outputs=targets.shape[0],
            lists=_FORMULAS[self.name].fit(targets, self.args),
        )


def get_metric(name: str, **args: Any) -> Metric:
    """The metric called `name`; `args` replace its defaults.

    Raises UserError with all faults for an unknown name, unknown and impossible arguments.
    """
    if name not in _FORMULAS:
        raise UserError(f"metric {name!r} is unknown; {near(name, _FORMULAS)}")
    defaults = _FORMULAS[name].defaults
    faults = argument_faults(name, defaults, args)
    if faults:
        raise UserError(faults)
    return Metric(name=name, args={**defaults, **args})


def metric_of(name: str, args: Mapping[str, Any], task_type: str) -> Metric:
    """As `get_metric` for a task of this type: of several classes, the highest is the decision.

    Raises UserError also where the metric cannot score such a task.
    """
    metric = get_metric(name, **args)
    if task_type == "multiclass" and "multiclass" in metric.args:
        metric = get_metric(name, **{**args, "multiclass": True})
    if task_type not in metric.task_types:
        known = ", ".join(metric.task_types)
        raise UserError(f"metric {name} scores {known}, but the task type is {task_type}")
    return metric


def known_metrics() -> list[str]:
    return sorted(_FORMULAS)
