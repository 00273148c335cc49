"""Values of a file: texts without gaps, finite numbers, and which side of an array is which.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.data.columns import SHOWN, some
from spaces.errors import UserError

_BLOCK = 1 << 22  # values looked at together, so that a mapped file is never in memory twice


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def as_text(path: Path, name: str, column: pd.Series) -> pd.Series:
    """The column as text. Raises UserError for empty values."""
    text = column.astype(str)
    empty_N = (column.isna() | (text == "")).to_numpy()
    if empty_N.any():
        rows = some([str(row) for row in np.flatnonzero(empty_N)])
        raise UserError(f"{path} column {name!r} is empty in rows {rows}; fill them in")
    return pd.Series(text)


def table_numbers(
    path: Path,
    frame: pd.DataFrame,
    names: Sequence[str],
    ids: pd.Index | None,
    booleans: bool = False,
) -> tuple[NDArray[np.float32], list[str]]:
    """The columns as (T, N), and a fault for each that is not all finite numbers, up to a few.

    `booleans` says whether booleans are numbers.
    """
    values_TN = np.empty((len(names), len(frame)), dtype=np.float32)
    faults = []
    for row_N, name in zip(values_TN, names, strict=True):
        column = frame[name]
        boolean = pd.api.types.is_bool_dtype(column)
        if boolean and booleans:
            column = column.astype(np.float32)
        elif boolean or not pd.api.types.is_numeric_dtype(column):
            column = pd.to_numeric(column.astype(str), errors="coerce")
        with np.errstate(over="ignore"):  # beyond float32 becomes Inf, and so a fault
            row_N[:] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~np.isfinite(row_N)).tolist()
        if bad:
            at = bad[:SHOWN]
            who = [f"row {row}" for row in at] if ids is None else [str(ids[row]) for row in at]
            shown = [str(value) for value in frame[name].iloc[at]]
            what = [f"{a}: {value!r}" for a, value in zip(who, shown, strict=True)]
            dots = ", ..." if len(bad) > SHOWN else ""
            faults.append(
                f"{path} column {name!r} must hold finite numbers, but has "
                f"{', '.join(what)}{dots} ({len(bad)}); mend the values"
            )
    if len(faults) > SHOWN:
        count = len(faults) - SHOWN
        faults = [*faults[:SHOWN], f"{path} has {count} more columns with such values; mend them"]
    return values_TN, faults


def array_numbers(
    path: Path, array_TN: NDArray[Any], booleans: bool = False
) -> tuple[NDArray[np.float32], list[str]]:
    """The array as float32 in C order, the mapped file itself where it is both; and a fault when
    not all are finite numbers. Raises UserError when none is a number."""
    if array_TN.dtype.kind not in ("iufb" if booleans else "iuf"):
        raise UserError(
            f"{path} holds values of type {array_TN.dtype}; they must be numbers: convert them"
        )
    with np.errstate(over="ignore"):
        values_TN = np.ascontiguousarray(array_TN, dtype=np.float32)
    count, first = 0, (0, 0)
    step = max(1, _BLOCK // max(1, values_TN.shape[1]))
    for start in range(0, len(values_TN), step):
        bad = np.argwhere(~np.isfinite(values_TN[start : start + step]))
        if len(bad) and not count:
            first = (start + int(bad[0, 0]), int(bad[0, 1]))
        count += len(bad)
    if not count:
        return values_TN, []
    return values_TN, [
        f"{path} must hold finite numbers of float32's range, but {count} are not, the first "
        f"{array_TN[first]} at row {first[1]}, output {first[0]}; mend the values"
    ]


def oriented(
    array: NDArray[Any], rows: int | None, outputs: Sequence[int] = ()
) -> NDArray[Any] | None:
    """(T, N) view of an array of `rows` rows or one of the numbers of `outputs`; (N, T) is what
    files hold, so that it wins where both fit. None when neither does."""
    if array.ndim == 1:
        return array[None] if rows in (None, len(array)) else None
    for view_TN in (array.T, array):
        t, n = view_TN.shape
        if rows in (None, n) and (not outputs or t in outputs):
            return view_TN
    return None
