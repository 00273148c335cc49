"""The rows that all files must have, and in which order each file has them.

Shapes: T outputs, N rows.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ensemble.files.file import File
from ensemble.files.values import oriented
from search.data.columns import some
from spaces.errors import UserError


@dataclass(kw_only=True, eq=False)
class Rows:
    """The rows of one file, and what was seen of the others."""

    path: Path  # the file that gives them
    count: int
    ids: pd.Index | None
    positional: list[str] = field(default_factory=list)  # files without ids
    witness: tuple[Path, pd.Index] | None = None  # the first ids seen when there are none here

    def order(self, path: Path, count: int, ids: pd.Index | None) -> NDArray[np.int64] | slice:
        """Which rows of the file to take. Raises UserError when they are not these rows."""
        if ids is None or self.ids is None:
            if count != self.count:
                raise UserError(
                    f"{path} has {count} rows and {self.path} has {self.count}; without ids in "
                    "both the rows must be the same in the same order: predict the same rows, or "
                    "give tables with ids"
                )
            if ids is None:
                self.positional += [str(path)]
            else:
                self._agree(path, ids)
            return slice(None)
        if ids.equals(self.ids):
            return slice(None)
        at_N = ids.get_indexer(self.ids)
        faults = []
        if (at_N < 0).any():
            lost = some(self.ids[at_N < 0].tolist())
            faults.append(f"{path} lacks ids of {self.path}: {lost}; add these rows")
        if len(ids) > (at_N >= 0).sum():
            extra = some(ids[~ids.isin(self.ids)].tolist())
            faults.append(f"{path} has ids that {self.path} lacks: {extra}; remove these rows")
        if faults:
            raise UserError(faults)
        return np.asarray(at_N, dtype=np.int64)

    def _agree(self, path: Path, ids: pd.Index) -> None:
        """Raise UserError when two files name the same positions differently."""
        if self.witness is None:
            self.witness = (path, ids)
        other, known = self.witness
        if not ids.equals(known):
            row = int(np.flatnonzero(ids.to_numpy() != known.to_numpy())[0])
            raise UserError(
                f"{path} has id {ids[row]} in row {row} and {other} has {known[row]}; {self.path} "
                "has no ids to align them by: give a target table with ids"
            )

    def names(self) -> tuple[str, ...] | None:
        """The ids, (N,); None when the rows have none."""
        return None if self.ids is None else tuple(self.ids.tolist())

    def notes(self) -> list[str]:
        """What a reader should know of how the files were matched."""
        if self.ids is None:
            return [f"{self.path} has no ids: all files were matched row by row"]
        if not self.positional:
            return []
        return [f"no ids, so taken in the row order of {self.path}: {some(self.positional)}"]


def rows_of_predictions(file: File, outputs: int) -> Rows:
    """The rows as a file of predictions has them. Raises UserError when its outputs are not
    `outputs`, or two for one."""
    if file.array is None:
        frame = file.frame(file.columns[:1])
        return Rows(path=file.path, count=len(frame), ids=file.ids(frame))
    view_TN = oriented(file.array, None, (1, 2) if outputs == 1 else (outputs,))
    if view_TN is None:
        raise UserError(
            f"{file.path} has shape {file.array.shape}; it must be (N, {outputs}): predict every "
            "output"
        )
    return Rows(path=file.path, count=view_TN.shape[1], ids=None)
