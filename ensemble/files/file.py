"""A plain file: an array that is mapped, or a table whose columns are read when asked for.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ensemble.files.values import as_number, as_text
from search.data.columns import need_columns, read_frame, read_header, repeated, some
from spaces.errors import UserError

SUFFIXES = (".npy", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True, eq=False)
class File:
    """A file that can be opened."""

    path: Path
    array: NDArray[Any] | None = None  # of .npy: memory-mapped, one or two dimensions
    columns: tuple[str, ...] = ()  # of a table, without the id
    id_name: str | None = None

    @property
    def vagueness(self) -> int:
        """Low when the file says by itself which and how many rows it has."""
        if self.array is None:
            return 0 if self.id_name else 1
        return self.array.ndim + 1

    def frame(self, columns: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
        """A table's id and `columns`; the id and `text` as they are written."""
        keys = [] if self.id_name is None else [self.id_name]
        if self.path.suffix.lower() == ".csv":
            # All columns: pandas passes over lines that are too long when only some are read.
            return read_frame(self.path, [*keys, *text])
        frame = _read_parquet(self.path, [*keys, *columns])
        for name in frame.columns:
            dtype = frame[name].dtype
            if isinstance(dtype, pd.CategoricalDtype):
                frame[name] = frame[name].astype(dtype.categories.dtype)
        return frame

    def ids(self, frame: pd.DataFrame) -> pd.Index | None:
        """The ids of a frame of this file, unless it has none. Raises UserError for empty and
        repeated ones."""
        if self.id_name is None:
            return None
        ids = pd.Index(as_text(self.path, self.id_name, frame[self.id_name]))
        if ids.has_duplicates:
            twice = ids[ids.duplicated()].unique().tolist()
            raise UserError(f"{self.path} has duplicate ids: {some(twice)}; keep one row of each")
        return ids


def open_file(path: Path, id_column: str | None) -> File:
    """A table's id is `id_column`, else the column called id in any case, if there is one.

    Raises UserError for what is no file, not readable, or has no outputs.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path} ends in {path.suffix!r}; files are {', '.join(SUFFIXES)}: save it as one"
        )
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; check the path")
    if suffix == ".npy":
        return File(path=path, array=_map_array(path))
    header = _csv_header(path) if suffix == ".csv" else _parquet_header(path)
    if id_column is not None:
        need_columns(path, header, [id_column])
        ids = [id_column]
    else:
        ids = [name for name in header if name.strip().lower() == "id"]
    if len(ids) > 1:
        raise UserError(f"{path} has the id columns {some(ids)}; choose one with --id-column")
    columns = tuple(name for name in header if name not in ids)
    if nameless := [name for name in columns if not name or name.startswith("__index_level_")]:
        raise UserError(
            f"{path} has a column without a name ({nameless[0]!r}), as pandas writes an index; "
            "write it with index=False, or name the column id if it is one"
        )
    if not columns:
        raise UserError(f"{path} has no column besides the id {ids[0]!r}; add the values")
    return File(path=path, columns=columns, id_name=ids[0] if ids else None)


def _map_array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's header reader fails in many ways on a damaged file
        raise _unreadable(path, ".npy", error) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays (.npz); save one array with numpy.save")
    if array.ndim not in (1, 2):
        raise UserError(f"{path} has shape {array.shape}; it must be (N,) or (N, T): reshape it")
    return array


def _csv_header(path: Path) -> list[str]:
    """Raises UserError when the first line holds values. Integers may be names of classes."""
    header = read_header(path)
    numbers = [n for n in header if as_number(n) is not None and any(c in n for c in ".eE")]
    if numbers:
        raise UserError(
            f"{path} names columns {some(numbers)}; the first line must hold names: "
            "write the table with a header"
        )
    return header


def _parquet_header(path: Path) -> list[str]:
    try:
        header = list(pq.ParquetFile(path).schema_arrow.names)
    except Exception as error:  # damaged files fail in arrow, thrift and the decoders
        raise _unreadable(path, "parquet", error) from None
    if twice := repeated(header):
        raise UserError(f"{path} names columns twice: {some(twice)}; each must occur once")
    return header


def _read_parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        # Without pandas' metadata an index that was written is a column like any other.
        table = pq.ParquetFile(path).read(columns=list(columns))
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    except Exception as error:
        raise _unreadable(path, "parquet", error) from None
    return frame


def _unreadable(path: Path, form: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path} is not readable as {form} ({reason}); save it again")
