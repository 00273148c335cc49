"""The truth: values of the target file, with labels of classes as one-hot.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ensemble.files.file import File
from ensemble.files.rows import Rows
from ensemble.files.values import array_numbers, as_number, as_text, oriented, table_numbers
from search.data.columns import some
from spaces.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What the target file says, and how members must look to fit it."""

    rows: Rows
    names: tuple[str, ...]  # T
    true_TN: NDArray[np.float32] | None  # None: rows of the test
    two_classes: bool  # a member may give the probabilities of both classes of one output
    by_name: bool = False  # only names tell which class an output is


def read_truth(
    file: File,
    task_type: str,
    members: Sequence[File],
    rows: int | None,
    faults: list[str],
    notes: list[str],
) -> Truth:
    """The truth, its outputs named by `members` where the file does not. `rows`: how many there
    are, where the folds tell.

    Values that are no numbers are added to `faults`; raises UserError when rows or outputs are
    not even known.
    """
    path, columns = file.path, file.columns
    booleans = task_type != "regression"
    ids, labels, true_TN = None, None, None
    if file.array is not None:
        view_TN = oriented(file.array, rows)
        # A target without the folds' rows is (N, T).
        view_TN = np.atleast_2d(file.array.T) if view_TN is None else view_TN
        outputs, count = view_TN.shape
        if task_type == "multiclass" and outputs == 1:
            labels = pd.Series(np.asarray(view_TN[0]))
        else:
            true_TN, found = array_numbers(path, view_TN, booleans)
            faults += found
    else:
        outputs = len(columns)
        of_labels = task_type == "multiclass" and outputs == 1
        frame = file.frame(columns, text=columns if of_labels else ())
        ids, count = file.ids(frame), len(frame)
        if of_labels:
            labels = frame[columns[0]]
        else:
            true_TN, found = table_numbers(path, frame, columns, ids, booleans)
            faults += found
    if count == 0:
        raise UserError(f"{path} has no rows; give the target of every row")
    if task_type == "binary" and outputs != 1:
        what = some(columns) if columns else f"{outputs} outputs"
        raise UserError(
            f"{path} has {what}; a binary target is one column of 0 and 1: leave the others out"
        )
    truth = Truth(
        rows=Rows(path=path, count=count, ids=ids),
        names=columns,
        true_TN=true_TN,
        two_classes=task_type == "binary",
    )
    if labels is not None:
        return _one_hot(truth, labels, members)
    return truth if columns else replace(truth, names=_lent_names(members, outputs, notes))


def without_labels(file: File, label: str, notes: list[str]) -> File:
    """The member without the column of labels that its table may carry along."""
    if label not in file.columns or len(file.columns) == 1:
        return file
    notes.append(f"{file.path}: column {label!r} is the target's and was left out")
    return replace(file, columns=tuple(name for name in file.columns if name != label))


def _lent_names(members: Sequence[File], outputs: int, notes: list[str]) -> tuple[str, ...]:
    """Names for a target that has none: those of the first table with as many outputs, so that
    tables with the same columns in another order are matched by name."""
    if outputs == 1:
        return ("target",)
    for file in members:
        if len(file.columns) == outputs:
            notes.append(
                f"the target names no outputs: they are named as the columns of {file.path}"
            )
            return file.columns
    return tuple(str(t) for t in range(outputs))


def _one_hot(truth: Truth, labels: pd.Series, members: Sequence[File]) -> Truth:
    """The truth with the labels as one-hot (T, N) and the classes as outputs.

    Labels are columns of the first table, or integers from 0 in the order of the outputs.
    """
    path = truth.rows.path
    if not members:
        raise UserError(f"{path} holds labels, and no readable predictions say how many classes")
    codes, uniques = pd.factorize(as_text(path, "label", labels), sort=True)
    found: list[str] = uniques.tolist()
    table = next((file.columns for file in members if file.columns), ())
    classes = _outputs(members[0], truth.rows.count)
    plain = tuple(str(c) for c in range(classes))
    numbers = [as_number(label) for label in found]
    if set(found) <= set(table):
        names = plain if set(table) == set(plain) else table
    elif all(n is not None and n in range(classes) for n in numbers):
        names = plain
    else:
        known = f"{', '.join(table[:5])} of the predictions" if table else "not named by .npy files"
        raise UserError(
            f"{path} has the labels {some(found)}; labels must be columns ({known}), or integers "
            f"below the number of outputs ({members[0].path} has {classes}): rename one of them"
        )
    by_name = names != plain
    class_of = [names.index(x) if by_name else int(float(x)) for x in found]
    true_TN = np.zeros((len(names), truth.rows.count), dtype=np.float32)
    true_TN[np.asarray(class_of)[codes], np.arange(truth.rows.count)] = 1
    return replace(truth, names=names, true_TN=true_TN, by_name=by_name)


def _outputs(file: File, rows: int) -> int:
    """How many a member's file has; 0 when its array does not have these rows."""
    if file.array is None:
        return len(file.columns)
    view_TN = oriented(file.array, rows)
    return 0 if view_TN is None else len(view_TN)
