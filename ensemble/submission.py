"""The submission: predictions for the test rows, in the form that the task hands in.

Shapes: T outputs, N test rows, n consecutive ones.
"""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.masks import whole_mask
from search.run_folder import read_json, write_file, write_json
from spaces.errors import UserError
from spaces.layout import Layout, Submission

# Digits that are written: float32 has seven, and the last differs between machines.
DIGITS = "%.6g"
HALF = 0.5  # the threshold of a decision where none was fitted
_HPA_COLUMNS = ("ImageWidth", "ImageHeight", "PredictionString")


@dataclass(frozen=True, kw_only=True)
class SubmissionForm:
    """Rows and columns of a submission, and the order of the predictions that fill it."""

    target_names: tuple[str, ...]  # (T,) of the predictions
    test_ids: tuple[str, ...]  # (N,) of the predictions
    ids: tuple[str, ...]  # rows of the file: the test ids in the sample's order
    columns: tuple[str, ...]  # of a table: the id column first, then the targets
    submission: Submission = field(default_factory=Submission)
    label_column: str = ""  # the task's, written in place of probabilities where all is decided
    task_type: str = "regression"
    sizes: tuple[tuple[int, int], ...] = ()  # (N,) pixels, width first, for masks

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

    @property
    def decided_T(self) -> NDArray[np.bool_]:
        """(T,) which targets are written as decisions."""
        decided_T = np.full(len(self.target_names), self.submission.decided != "none")
        if self.submission.decided == "rest":
            decided_T[0] = False
        return decided_T

    def write(
        self, path: Path, pred_TN: NDArray[Any], thresholds_T: NDArray[Any] | None = None
    ) -> None:
        """Write the file. Raises ValueError for a wrong shape and for NaN."""
        shape = (len(self.target_names), len(self.test_ids))
        if pred_TN.shape != shape or not np.isfinite(pred_TN).all():
            raise ValueError(
                f"predictions have shape {pred_TN.shape}; it must be {shape} without NaN"
            )
        row_of = {name: row for row, name in enumerate(self.test_ids)}
        rows = [row_of[name] for name in self.ids]
        self.write_pieces(path, [np.asarray(pred_TN)[:, rows]], thresholds_T)

    def write_pieces(
        self,
        path: Path,
        preds: Iterable[NDArray[Any]],
        thresholds_T: NDArray[Any] | None = None,
    ) -> None:
        """Write the file from the (T, n) predictions of consecutive `ids`, which may be made while
        they are written. Raises ValueError when they are not as many, and for NaN."""
        if thresholds_T is None:
            thresholds_T = np.full(len(self.target_names), HALF)
        cells = self._cells(np.asarray(thresholds_T))

        def fill(temporary: Path) -> None:
            done = 0
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                lines = self.submission.form == "lines"
                table = csv.writer(file, lineterminator="\n", delimiter=" " if lines else ",")
                if not lines:
                    table.writerow(self.head)
                for pred_Tn in preds:
                    if not np.isfinite(pred_Tn).all():
                        raise ValueError(f"predictions from row {done} on hold NaN or infinity")
                    names = self.ids[done : done + pred_Tn.shape[1]]
                    values_nT = np.asarray(pred_Tn, dtype=np.float32).T
                    for name, values_T in zip(names, values_nT, strict=True):
                        table.writerow([name, *cells(name, values_T)])
                    done += len(names)
            if done != len(self.ids):
                raise ValueError(f"predictions of {done} rows; there must be {len(self.ids)}")

        write_file(path, fill)

    @property
    def labels(self) -> bool:
        """Whether the class is written, in place of a column for each."""
        return bool(self.label_column) and self.submission.decided == "all"

    @property
    def head(self) -> tuple[str, ...]:
        """What the columns of the file are called; "lines" do not write it."""
        if self.submission.form == "cells":
            return self.columns[0], *_HPA_COLUMNS
        return (self.columns[0], self.label_column) if self.labels else self.columns

    def _cells(self, thresholds_T: NDArray[Any]) -> Callable[[str, NDArray[Any]], Iterable[Any]]:
        """What follows a row's id: (id, its values (T,)) -> cells."""
        if self.submission.form == "cells":
            size_of = dict(zip(self.test_ids, self.sizes, strict=True))
            return lambda name, values_T: self._hpa(size_of[name], values_T)
        if self.labels:
            return lambda _, values_T: [self._labels(values_T, thresholds_T)]
        output_of = {name: output for output, name in enumerate(self.target_names)}
        order = [output_of[name] for name in self.columns[1:]]
        decided_T = self.decided_T

        def values(_: str, values_T: NDArray[Any]) -> Iterator[str]:
            called_T = self._called(values_T, thresholds_T).tolist()
            for output in order:
                value = float(values_T[output])
                yield str(int(called_T[output])) if decided_T[output] else DIGITS % value

        return values

    def _called(self, values_T: NDArray[Any], thresholds_T: NDArray[Any]) -> NDArray[np.bool_]:
        """(T,) the likeliest class, or what reaches its threshold."""
        if self.task_type == "multiclass":
            return np.arange(len(values_T)) == values_T.argmax()
        return np.asarray(values_T >= thresholds_T)

    def _labels(self, values_T: NDArray[Any], thresholds_T: NDArray[Any]) -> str:
        """The class, or those whose threshold is reached: the likeliest one at least."""
        called = np.flatnonzero(self._called(values_T, thresholds_T)).tolist()
        called = called or [int(values_T.argmax())]
        return "|".join(self.target_names[output] for output in called)

    def _hpa(self, size: tuple[int, int], values_T: NDArray[Any]) -> list[Any]:
        """Width, height, and each class with its confidence and a mask of the whole image."""
        mask = whole_mask(*size)
        pairs = zip(self.target_names, values_T.tolist(), strict=True)
        return [*size, " ".join(f"{name} {DIGITS % value} {mask}" for name, value in pairs)]

    def save(self, path: Path) -> None:
        """Keep the form in a run (`RunFolder.form`); `load` reads it."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "SubmissionForm":
        data = read_json(path)
        names = [f.name for f in dataclasses.fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise UserError(f"{path} has no {', '.join(missing)}; restore it")
        fields = {name: data[name] for name in names}
        fields["submission"] = Submission(**fields["submission"])
        fields["sizes"] = tuple(map(tuple, fields["sizes"]))
        for name in ("target_names", "test_ids", "ids", "columns"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def form_of(
    layout: Layout,
    task_type: str,
    *,
    target_names: Sequence[str],
    test_ids: Sequence[str],
    ids: Sequence[str],
    columns: Sequence[str],
    sizes: Callable[[], Sequence[tuple[int, int]]],
) -> SubmissionForm:
    """The form of a layout's submission; `sizes` looks up the test images' sizes where they are
    needed."""
    masks = layout.submission.form == "cells"
    return SubmissionForm(
        target_names=tuple(target_names),
        test_ids=tuple(test_ids),
        ids=tuple(ids),
        columns=tuple(columns),
        submission=layout.submission,
        label_column=layout.label_column,
        task_type=task_type,
        sizes=tuple(sizes()) if masks else (),
    )


def read_sample(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns and ids of a sample submission, as text, in the file's order."""
    columns, rows = _read_csv(path)
    if len(columns) < 2:
        raise UserError(f"{path} has the columns {list(columns)}; it needs an id and targets")
    return columns, tuple(row[0] for row in rows)


def read_truth(
    path: Path, target_names: Sequence[str], label_column: str = ""
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Ids and true values (T, N) of a CSV whose first column is the id. Beside it stand the
    targets, or the label column with the class or classes of a row ("8|5|0").

    Raises UserError for what is absent, no number or no class.
    """
    columns, rows = _read_csv(path)
    wanted = [label_column] if label_column else list(target_names)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} columns, {', '.join(missing[:5])}; add them")
    ids = tuple(row[0] for row in rows)
    try:
        if label_column:
            output_of = {name: output for output, name in enumerate(target_names)}
            true_TN = np.zeros((len(target_names), len(rows)))
            for number, row in enumerate(rows):
                for label in row[columns.index(label_column)].split("|"):
                    true_TN[output_of[label], number] = 1
            return ids, true_TN
        picked = [columns.index(name) for name in target_names]
        return ids, np.array([[float(row[c]) for row in rows] for c in picked])
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds a value that is no target's ({error}); mend it") from None


def _read_csv(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and rows, as text."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            return tuple(next(table, ())), [row for row in table if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as CSV ({error}); restore it") from None
