"""Labels within folds: how many, and where folds cannot be learned from or scored.

Shapes: N rows, T targets, K folds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.columns import some

_DO = "ask for fewer folds or other groups (--folds, --groups)"


def label_counts(
    fold_N: NDArray[np.int64], targets_TN: NDArray[Any], names: Sequence[str]
) -> dict[str, list[int]]:
    """How many rows of each fold have each target."""
    counts_TK = _counts(fold_N, targets_TN)
    return {name: counts_K.tolist() for name, counts_K in zip(names, counts_TK, strict=True)}


def label_faults(
    fold_N: NDArray[np.int64], targets_TN: NDArray[Any], names: Sequence[str], task_type: str
) -> list[str]:
    """One sentence for each fold that holds a single class: there is little to score in it."""
    counts_TK = _counts(fold_N, targets_TN)
    if task_type == "binary":
        return [
            f"fold {k} has {has} rows with {names[0]} and {rows - has} without; it needs both: "
            f"{_DO}"
            for k, (has, rows) in enumerate(zip(counts_TK[0], np.bincount(fold_N), strict=True))
            if has in (0, rows)
        ]
    if task_type == "multiclass":
        classes_K = (counts_TK > 0).sum(axis=0)
        return [
            f"fold {k} has {counts_TK[:, k].max()} rows of {names[int(counts_TK[:, k].argmax())]} "
            f"and 0 of the other classes; it needs at least two classes: {_DO}"
            for k in np.flatnonzero(classes_K == 1).tolist()
        ]
    return []


def label_warnings(
    fold_N: NDArray[np.int64], targets_TN: NDArray[Any], names: Sequence[str], task_type: str
) -> list[str]:
    """A sentence about classes that lie in one fold alone, or about labels that folds lack."""
    counts_TK = _counts(fold_N, targets_TN)
    if task_type == "multiclass":
        told = "classes lie in one fold alone, so that no model is scored on what it has learned"
        wrong_T = (counts_TK > 0).sum(axis=1) == 1
    elif task_type == "multilabel":
        told = "targets have no positive in some folds, where they tell nothing of a model"
        # Those that never occur are told as targets that never vary.
        wrong_T = (counts_TK == 0).any(axis=1) & (counts_TK > 0).any(axis=1)
    else:
        return []
    found = [f"{names[t]} {counts_TK[t].tolist()}" for t in np.flatnonzero(wrong_T).tolist()]
    return [f"{told} (positives per fold): {some(found)}; {_DO}"] if found else []


def _counts(fold_N: NDArray[np.int64], targets_TN: NDArray[Any]) -> NDArray[np.int64]:
    """(T, K) rows of each fold with each target."""
    folds = int(fold_N.max()) + 1
    return np.stack([np.bincount(fold_N[row_N == 1], minlength=folds) for row_N in targets_TN])
