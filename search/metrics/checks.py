"""What is wrong with truth or predictions for a metric, as sentences for the user.

Shapes: T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.core import FittedMetric
from search.metrics.values import count_non_finite, out_of_range

_NAMED = 3  # targets, rows or folds that a sentence names


def check_truth(
    fitted: FittedMetric,
    true_TN: NDArray[Any],
    fold_N: NDArray[np.int64],
    target_names: Sequence[str],
) -> list[str]:
    """One sentence per fault: values that are missing or no classes, rows without exactly one
    class, folds in which the metric is undefined. Empty: the metric can score every fold."""
    if count := count_non_finite(true_TN):
        return [
            f"the targets hold {count} values that are NaN or infinite; none may be: fill them or "
            "leave those rows out"
        ]
    if "regression" not in fitted.task_types:
        faults = _class_faults(fitted, true_TN, target_names)
        if faults:
            return faults
    if not fitted.void:
        return []
    void = [int(k) for k in np.unique(fold_N) if not fitted.defined(true_TN[:, fold_N == k]).any()]
    if not void:
        return []
    return [
        f"metric {fitted.name} is undefined in {_few('fold', void)}: there "
        f"{fitted.void}; make fewer folds, stratify them, or choose another metric"
    ]


def _class_faults(
    fitted: FittedMetric, true_TN: NDArray[Any], target_names: Sequence[str]
) -> list[str]:
    wrong_TN = (true_TN != 0) & (true_TN != 1)
    if wrong_TN.any():
        names = [target_names[i] for i in np.flatnonzero(wrong_TN.any(axis=1)).tolist()]
        return [
            f"{wrong_TN.sum()} values of {_few('target', names)} are neither 0 nor 1 (such as "
            f"{true_TN[wrong_TN][0]:g}); metric {fitted.name} scores classes only: write them as "
            "0 and 1, or choose a metric of regression"
        ]
    if not fitted.args.get("multiclass"):
        return []
    faults = []
    if len(true_TN) < 2:
        faults.append(
            f"there is {len(true_TN)} class; multiclass {fitted.name} needs 2 or more: set "
            "multiclass to false"
        )
    rows = np.flatnonzero(true_TN.sum(axis=0) != 1).tolist()
    if rows:
        faults.append(
            f"{_few('row', rows)}, counted from 0, have no class or several; "
            f"multiclass {fitted.name} needs exactly one: mend the rows, or set multiclass to false"
        )
    return faults


def check_predictions(fitted: FittedMetric, pred_TN: NDArray[Any], who: str) -> list[str]:
    """One sentence per fault of one member's predictions; `who` names the member."""
    if count := count_non_finite(pred_TN):
        return [
            f"{who}: {count} of {pred_TN.size} predictions are NaN or infinite; none may be: "
            "leave it out or predict again"
        ]
    if fitted.probabilities and pred_TN.size and (span := out_of_range(pred_TN)):
        return [
            f"{who}: predictions go from {span[0]:g} to {span[1]:g}; metric {fitted.name} needs "
            "probabilities in [0, 1]: pass them through a sigmoid or softmax, or leave it out"
        ]
    return []


def _few(noun: str, items: Sequence[Any]) -> str:
    """'fold 2', 'folds 2, 5' or 'folds 2, 5, 6 and 7 more'."""
    named = ", ".join(str(item) for item in items[:_NAMED])
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return f"{noun}{'s' if len(items) > 1 else ''} {named}{more}"
