"""Tables in text files as columns, every fault told with the file, the column and the first rows.

A table is a CSV with a header, or, where its columns are named from outside, lines of fields
separated by blanks.
"""

import csv
import re
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from spaces.errors import UserError, near

SHOWN = 5  # names or ids listed in a message before the rest is only counted
_COLUMNS_SHOWN = 10  # columns that get a fault of their own


def some(names: Sequence[str]) -> str:
    """The first few names and how many there are: "a, b, c (3)"."""
    dots = ", ..." if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{dots} ({len(names)})"


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, in order of first appearance."""
    return [name for name, count in Counter(names).items() if count > 1]


def natural(name: str) -> list[str | int]:
    """A key that sorts names as people count: 2 before 10."""
    parts = re.split("([0-9]+)", name)  # every second one is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def padded(ids: Sequence[str], width: int) -> tuple[str, ...]:
    """The ids, those of digits filled with zeros to `width`: "7" becomes "0007"."""
    return tuple(i.zfill(width) if i.isascii() and i.isdigit() else i for i in ids)


def read_header(path: Path, columns: Sequence[str] = ()) -> list[str]:
    """Column names of the table at `path`: its first line, or `columns` where it has no header.
    Raises UserError when the file is not there, names no columns or repeats one."""
    if columns and path.is_file():
        return list(columns)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; put the file there") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not readable as CSV ({error}); save it as CSV in UTF-8"
        ) from None
    if not header:
        raise UserError(f"{path} is empty; its first line must name the columns")
    if twice := repeated(header):
        raise UserError(f"{path} names columns twice: {some(twice)}; each name must occur once")
    return header


def need_columns(path: Path, header: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for each of `names` that the header lacks."""
    faults = [
        f"{path} has no column {name!r} ({near(name, header)}); add it or rename one"
        for name in names
        if name not in header
    ]
    if faults:
        raise UserError(faults)


def read_frame(
    path: Path,
    text: Collection[str],
    only: Sequence[str] | None = None,
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """The table at `path`; the columns `text` (and any that holds a word) as the written text.
    With `columns`, a file without a header whose fields are separated by blanks.

    pandas' C reader: 6992 rows x 3467 floats (258 MB) took 1.5-2.1 s on two cores, pyarrow's
    4.4 s with its own block size and 1.6-2.7 s with larger ones, at the same 1 GB of memory; the C
    reader keeps a column with one word in it as text, where pyarrow refuses the whole file.
    """
    try:
        with warnings.catch_warnings():
            # pandas only warns when rows are longer than the header, and drops the surplus.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=r"\s+" if columns else ",",
                header=None if columns else 0,
                names=list(columns) or None,
                usecols=None if only is None else list(only),
                dtype=dict.fromkeys(text, str),
                keep_default_na=False,  # an id or a group may be called NA
                index_col=False,
                low_memory=False,  # one type per column, never one per chunk
                encoding="utf-8-sig",
            )
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is not readable as a table ({reason}); all lines must have "
            + (f"the fields {', '.join(columns)}" if columns else "as many fields as the first")
        ) from None


def as_text(column: pd.Series) -> tuple[str, ...]:
    return tuple(column.astype(str))


def as_floats(
    path: Path,
    frame: pd.DataFrame,
    names: Sequence[str],
    ids: Sequence[str],
    binary: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """The columns `names` as float32 (T, N), and a fault for each one with a value that is no
    finite float32, or with `binary` is neither 0 nor 1: its first such rows by id, with what is
    written there."""
    values_TN = np.empty((len(names), len(frame)), dtype=np.float32)
    with np.errstate(over="ignore"):  # what overflows float32 becomes Inf, and so a fault
        for row_N, name in zip(values_TN, names, strict=True):
            column = frame[name]
            if not pd.api.types.is_numeric_dtype(column) or column.dtype == bool:
                column = pd.to_numeric(column.astype(str), errors="coerce")
            row_N[:] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad_TN = ~(np.isin(values_TN, (0, 1)) if binary else np.isfinite(values_TN))
    rule = "0 or 1" if binary else "finite numbers"
    bad = np.flatnonzero(bad_TN.any(axis=1)).tolist()
    faults = []
    for t in bad[:_COLUMNS_SHOWN]:
        rows = np.flatnonzero(bad_TN[t]).tolist()
        found = some([f"{ids[row]}: {str(frame[names[t]].iloc[row])!r}" for row in rows])
        faults.append(
            f"{path} column {names[t]!r} must hold {rule}, but has {found}; "
            "mend the values or remove the rows"
        )
    if len(bad) > _COLUMNS_SHOWN:
        more = some([names[t] for t in bad[_COLUMNS_SHOWN:]])
        faults.append(f"{path} has more columns with values that are not {rule}: {more}")
    return values_TN, faults


def mostly_numbers(column: pd.Series) -> bool:
    """Whether more than half of the values are numbers: such a column is a target with faults
    rather than a column of words."""
    if column.dtype == bool:
        return False
    if pd.api.types.is_numeric_dtype(column):
        return True
    return bool(pd.to_numeric(column.astype(str), errors="coerce").notna().mean() > 0.5)
