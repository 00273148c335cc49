"""Members: predictions with the rows and outputs of the truth, and what a member is called.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.files.faults import attempt
from ensemble.files.file import File
from ensemble.files.truth import Truth
from ensemble.files.values import array_numbers, oriented, table_numbers
from search.data.columns import repeated, some
from spaces.errors import UserError

_SUM_ERROR = 1e-3  # two class probabilities may miss 1 by this: files often hold four digits


def read_member(file: File, truth: Truth, notes: list[str]) -> NDArray[np.float32]:
    """(T, N) predictions. Raises UserError with the faults of the file."""
    path, rows = file.path, truth.rows
    rest: list[str] = []
    if file.array is not None:
        view_TN = _view(path, file.array, truth)
        if len(file.array) != rows.count:
            notes.append(f"{path} was read as (outputs, rows), since it has {rows.count} columns")
        values_TN, faults = array_numbers(path, view_TN)
        if faults:
            raise UserError(faults)
        rows.order(path, rows.count, None)
    else:
        picked, rest = _pick(file, truth, notes)
        frame = file.frame(picked)
        ids = file.ids(frame)
        values_TN, faults = table_numbers(path, frame, picked, ids)
        order_N = attempt(faults, rows.order, path, len(frame), ids)
        if faults:
            raise UserError(faults)
        assert order_N is not None
        values_TN = values_TN[:, order_N]
    if len(values_TN) == 2 and len(truth.names) == 1:
        values_TN = _second_class(path, values_TN)
        notes.append(f"{path} has two outputs: the second is taken as the probability of class 1")
    if truth.true_TN is not None and _equal(values_TN, truth.true_TN):
        if rest:
            raise UserError(
                f"{path} holds the target itself beside {', '.join(rest[:5])}; keep only the "
                "predictions"
            )
        notes.append(f"{path} equals the target in every row; see that it is no copy of it")
    return values_TN


def member_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Stems; those that repeat get as many parent folders as tell them apart, and files of one
    folder that differ only in the ending keep it."""
    whole = [path.absolute() for path in paths]
    twins = repeated([str(path.with_suffix("")) for path in whole])
    stems = [p.name if str(p.with_suffix("")) in twins else p.stem for p in whole]
    depth = [0] * len(paths)
    names = stems
    while repeats := set(repeated(names)):
        before = names
        depth = [d + (name in repeats) for d, name in zip(depth, names, strict=True)]
        names = [
            "/".join([*p.parts[max(1, len(p.parts) - 1 - d) : -1], stem])
            for p, stem, d in zip(whole, stems, depth, strict=True)
        ]
        if names == before:  # x.npy, x.csv and x.npy.csv: nothing but the path tells them apart
            return tuple(map(str, whole))
    return tuple(names)


def _view(path: Path, array: NDArray[Any], truth: Truth) -> NDArray[Any]:
    """(T, N) view, T as the truth's, or 2 where both classes may be given."""
    count, outputs = truth.rows.count, len(truth.names)
    if truth.by_name:
        raise UserError(
            f"{path} names no classes, but the labels are {', '.join(truth.names[:5])}; save it as "
            "a table with these columns, or the labels as integers from 0"
        )
    view_TN = oriented(array, count)
    if view_TN is None or len(view_TN) not in ((outputs, 2) if truth.two_classes else (outputs,)):
        form = f"({count},) or ({count}, 1)" if outputs == 1 else f"({count}, {outputs})"
        raise UserError(
            f"{path} has shape {array.shape}; for the {count} rows of {truth.rows.path} it must be "
            f"{form}: predict every row and output"
        )
    return view_TN


def _pick(file: File, truth: Truth, notes: list[str]) -> tuple[list[str], list[str]]:
    """The columns that hold the outputs in their order, and those that are left out."""
    path, columns, names = file.path, file.columns, truth.names
    if set(names) <= set(columns):
        rest = [name for name in columns if name not in names]
        if rest:
            notes.append(f"{path}: columns {some(rest)} were left out")
        return list(names), rest
    if truth.two_classes and len(columns) == 2:
        return sorted(columns) if set(columns) == {"0", "1"} else list(columns), []
    strays = [c for c, name in zip(columns, names, strict=False) if c != name and c in names]
    if len(columns) != len(names) or truth.by_name or strays:
        lost = [name for name in names if name not in columns]
        raise UserError(
            f"{path} has {len(columns)} columns, {some(columns)}, and lacks {some(lost)}; it must "
            f"have a column for each of the {len(names)} outputs: add them, or rename the columns"
        )
    if len(names) > 1:
        notes.append(f"{path}: columns {some(columns)} were taken in the order of the targets")
    return list(columns), []


def _second_class(path: Path, values_2N: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1, N). Raises UserError unless the outputs are the probabilities of two classes."""
    error_N = np.abs(values_2N.sum(axis=0, dtype=np.float64) - 1)
    if error_N.max(initial=0) > _SUM_ERROR:
        raise UserError(
            f"{path} has two outputs that do not sum to 1 (row {error_N.argmax()}); "
            "give the probability of class 1, or those of both classes"
        )
    return values_2N[1:]


def _equal(a_TN: NDArray[np.float32], b_TN: NDArray[np.float32]) -> bool:
    """One output tells nearly always, so that the others need not be read."""
    return np.array_equal(a_TN[0], b_TN[0]) and np.array_equal(a_TN, b_TN)
