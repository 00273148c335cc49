"""The submission: predictions for the test rows in the sample submission's rows and columns.

Shapes: T outputs, N test rows.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.run_folder import read_json, write_file, write_json
from spaces.errors import UserError

# Digits that are written: float32 has seven, and the last differs between machines.
DIGITS = "%.6g"


@dataclass(frozen=True, kw_only=True)
class SubmissionForm:
    """Rows and columns of a submission, and the order of the predictions that fill it."""

    target_names: tuple[str, ...]  # (T,) of the predictions
    test_ids: tuple[str, ...]  # (N,) of the predictions
    ids: tuple[str, ...]  # rows of the file: the test ids in the sample's order
    columns: tuple[str, ...]  # of the file: the id column first, then the targets

    def __post_init__(self) -> None:
        faults = []
        if sorted(self.ids) != sorted(self.test_ids):
            strange = sorted(set(self.ids) ^ set(self.test_ids))[:5]
            faults.append(
                f"the submission has {len(self.ids)} ids and the test {len(self.test_ids)}; they "
                f"must be the same, each once: look at {', '.join(strange) or 'repeated ids'}"
            )
        if sorted(self.columns[1:]) != sorted(self.target_names):
            strange = sorted(set(self.columns[1:]) ^ set(self.target_names))[:5]
            faults.append(
                f"the submission has {len(self.columns) - 1} columns after the id and the model "
                f"predicts {len(self.target_names)} targets; they must be the same: look at "
                f"{', '.join(strange) or 'repeated columns'}"
            )
        if faults:
            raise UserError(faults)

    def write(self, path: Path, pred_TN: NDArray[Any]) -> None:
        """Write the CSV. Raises ValueError for a wrong shape and for NaN."""
        shape = (len(self.target_names), len(self.test_ids))
        if pred_TN.shape != shape or not np.isfinite(pred_TN).all():
            raise ValueError(
                f"predictions have shape {pred_TN.shape}; it must be {shape} without NaN"
            )
        row_of = {name: row for row, name in enumerate(self.test_ids)}
        rows = [row_of[name] for name in self.ids]
        self.write_pieces(path, [np.asarray(pred_TN)[:, rows]])

    def write_pieces(self, path: Path, preds: Iterable[NDArray[Any]]) -> None:
        """Write the CSV from the (T, n) predictions of consecutive `ids`, which may be made while
        they are written. Raises ValueError when they are not as many, and for NaN."""
        output_of = {name: output for output, name in enumerate(self.target_names)}
        order = [output_of[name] for name in self.columns[1:]]

        def fill(temporary: Path) -> None:
            done = 0
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(self.columns)
                for pred_Tn in preds:
                    if not np.isfinite(pred_Tn).all():
                        raise ValueError(f"predictions from row {done} on hold NaN or infinity")
                    names = self.ids[done : done + pred_Tn.shape[1]]
                    values_nT = np.asarray(pred_Tn, dtype=np.float32)[order].T
                    for name, values_T in zip(names, values_nT, strict=True):
                        table.writerow([name, *(DIGITS % value for value in values_T.tolist())])
                    done += len(names)
            if done != len(self.ids):
                raise ValueError(f"predictions of {done} rows; there must be {len(self.ids)}")

        write_file(path, fill)

    def save(self, path: Path) -> None:
        """Keep the form in a run (`RunFolder.form`); `load` reads it."""
        data = {
            "target_names": self.target_names,
            "test_ids": self.test_ids,
            "ids": self.ids,
            "columns": self.columns,
        }
        write_json(path, data)

    @classmethod
    def load(cls, path: Path) -> "SubmissionForm":
        data = read_json(path)
        names = ("target_names", "test_ids", "ids", "columns")
        missing = [name for name in names if name not in data]
        if missing:
            raise UserError(f"{path} has no {', '.join(missing)}; restore it")
        return cls(**{name: tuple(data[name]) for name in names})


def read_sample(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns and ids of a sample submission, as text, in the file's order."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            columns = tuple(next(table, ()))
            ids = tuple(row[0] for row in table if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as CSV ({error}); restore it") from None
    if len(columns) < 2:
        raise UserError(f"{path} has the columns {list(columns)}; it needs an id and targets")
    return columns, ids


def read_values(path: Path, ids: Sequence[str], target_names: Sequence[str]) -> NDArray[np.float64]:
    """(T, N) values of a CSV whose first column is the id, in the given order of both.

    Other columns and rows are ignored. Raises UserError for what is absent or no number.
    """
    columns, file_ids = read_sample(path)
    row_of, column_of = ({n: i for i, n in enumerate(names)} for names in (file_ids, columns))
    faults = []
    for what, wanted, known in (("rows", ids, row_of), ("columns", target_names, column_of)):
        missing = [name for name in wanted if name not in known]
        if missing:
            faults.append(f"{path} lacks {len(missing)} {what}, {', '.join(missing[:5])}; add them")
    if faults:
        raise UserError(faults)
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row][1:]
    picked = [column_of[name] for name in target_names]
    try:
        return np.array([[float(rows[row_of[n]][c]) for c in picked] for n in ids]).T
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} holds a value that is no number ({error}); mend it") from None
