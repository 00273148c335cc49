"""Folds and groups: of a file, or at random.

Shapes: N rows, K folds.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ensemble.files.file import File
from ensemble.files.rows import Rows
from ensemble.files.values import as_text
from search.data.columns import some
from search.data.folds import make_folds
from spaces.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The fold, and perhaps the group, of each row."""

    fold_N: NDArray[np.int64]  # 0 to K - 1
    group_N: NDArray[np.int64] | None = None  # 0 to groups - 1
    path: Path
    ids: pd.Index | None

    def along(self, rows: Rows) -> "Split":
        """The same with the rows in their order. Raises UserError when they are other rows."""
        order_N = rows.order(self.path, len(self.fold_N), self.ids)
        return replace(
            self,
            fold_N=self.fold_N[order_N],
            group_N=None if self.group_N is None else self.group_N[order_N],
            ids=rows.ids,
        )


def read_split(file: File, of_target: bool, notes: list[str]) -> Split:
    """Folds and groups in the file's own row order. `of_target`: the file is the target as well.

    Raises UserError for labels that are no labels, one fold for all rows and torn groups.
    """
    path, ids, label_N = file.path, None, None
    if file.array is not None:
        if max(file.array.shape) != file.array.size:
            raise UserError(f"{path} has shape {file.array.shape}; folds must be (N,): one a row")
        if file.array.dtype.kind not in "iufbU":
            raise UserError(
                f"{path} holds {file.array.dtype}; fold labels must be integers or strings"
            )
        fold_N = _fold_codes(path, "fold", pd.Series(np.asarray(file.array).ravel()))
    else:
        fold, group = _split_columns(file, of_target, notes)
        text = [] if group is None else [group]
        frame = file.frame([fold, *text], text)
        ids = file.ids(frame)
        fold_N = _fold_codes(path, fold, frame[fold])
        # A folds file that rungfold wrote without groups has the column, but empty.
        if group is not None and not (frame[group].isna() | (frame[group] == "")).all():
            label_N = as_text(path, group, frame[group]).to_numpy()
    if not len(fold_N) or fold_N.max() == 0:
        raise UserError(f"{path} has one fold for all rows; at least 2 folds are needed")
    if label_N is None:
        return Split(path=path, ids=ids, fold_N=fold_N)
    group_N, labels = pd.factorize(label_N, sort=True)
    fold_of = np.zeros(len(labels), dtype=np.int64)
    fold_of[group_N] = fold_N
    torn = np.unique(label_N[fold_of[group_N] != fold_N]).tolist()
    if torn:
        raise UserError(
            f"{path}: groups lie in two folds: {some(torn)}; "
            "a group belongs to one fold: mend the folds, or remove the column of groups"
        )
    return Split(path=path, ids=ids, fold_N=fold_N, group_N=group_N.astype(np.int64))


def beside_folds(file: File) -> File:
    """The target where the same file holds the folds."""
    kept = tuple(c for c in file.columns if c.strip().lower() not in ("fold", "group"))
    if not kept:
        raise UserError(
            f"{file.path} is given as target and as folds, but has no column beside fold, group "
            "and the id; add the target, or give two files"
        )
    return replace(file, columns=kept)


def random_split(rows: Rows, seed: int, notes: list[str]) -> Split:
    """Folds by id where there are ids, so that the order of the target file does not matter."""
    ids = rows.names() or [f"{row:012d}" for row in range(rows.count)]
    fold_N = np.asarray(make_folds(ids, None, None, seed), dtype=np.int64)
    notes.append(
        f"no folds were given: rows were split into {fold_N.max() + 1} random folds (seed {seed}); "
        "rows that belong together, such as those of one patient, then lie in several folds and "
        "scores are too high: give the folds that the predictions were made with"
    )
    return Split(path=rows.path, ids=rows.ids, fold_N=fold_N)


def _split_columns(file: File, of_target: bool, notes: list[str]) -> tuple[str, str | None]:
    """The columns of the fold and of the group."""
    named = {name.strip().lower(): name for name in file.columns}
    fold, group = named.get("fold"), named.get("group")
    others = [name for name in file.columns if name not in (fold, group)]
    if fold is None and len(others) == 1 and not of_target:
        fold = others.pop()
    if fold is None:
        raise UserError(
            f"{file.path} has no column 'fold' but {some(file.columns)}; "
            "name the one with the folds"
        )
    if others and not of_target:
        notes.append(f"{file.path}: columns {some(others)} were left out")
    return fold, group


def _fold_codes(path: Path, name: str, column: pd.Series) -> NDArray[np.int64]:
    """0 to K - 1 in the sorted order of the labels."""
    if pd.api.types.is_float_dtype(column):
        if not (column % 1 == 0).all():  # NaN and Inf are not either
            raise UserError(
                f"{path} has folds that are no whole numbers ({name!r}); "
                "labels are integers or strings: give each row one"
            )
    elif not pd.api.types.is_integer_dtype(column):
        column = as_text(path, name, column)
    return pd.factorize(column, sort=True)[0].astype(np.int64)
