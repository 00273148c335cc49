"""Everything that belongs to one ensemble, read from plain files; faults are told together.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ensemble.files.faults import attempt, given_faults, twice_faults
from spaces.errors import UserError
from spaces.task import TASK_TYPES

if TYPE_CHECKING:
    from ensemble.files.split import Split


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainFiles:
    """Predictions, truth and folds, rows in the order of the target file."""

    names: tuple[str, ...]  # M: stems of the files, with folders where stems repeat
    preds: tuple[NDArray[np.float32], ...]  # M of (T, N); memory-mapped where the file allows it
    target_names: tuple[str, ...]  # T
    true_TN: NDArray[np.float32]  # multiclass: one-hot
    fold_N: NDArray[np.int64]  # 0 to K - 1
    group_N: NDArray[np.int64] | None  # 0 to groups - 1; None when the folds file has no groups
    ids: tuple[str, ...] | None  # N; None when the target file has none
    notes: tuple[str, ...]  # rules that were applied and a reader should know of


def read_files(
    oof: Sequence[Path],
    target: Path,
    folds: Path | None,
    task_type: str,
    id_column: str | None = None,
    seed: int = 0,
) -> PlainFiles:
    """Out-of-fold predictions `oof` of one task, its target and its folds.

    A table's id is the column `id_column`, which every table must then have, else the one called
    id in any case. The folds file has a column fold (or one column) and perhaps a column group; it
    may be the target file itself. Without it rows are split at random by `seed`. Outputs are
    matched by column name where a table has all of them, else by position. A (T, N) array is
    taken where only its second size is N. For binary tasks two columns that sum to 1 count as the
    probabilities of the classes 0 and 1. A multiclass target is one column of labels or one-hot.

    Raises UserError with the faults of all files. What the metric asks of truth and predictions is
    not checked here.
    """
    # Below here everything needs pandas, which the package itself must not load.
    from ensemble.files.file import open_file
    from ensemble.files.members import member_names, read_member
    from ensemble.files.split import beside_folds, random_split, read_split
    from ensemble.files.truth import read_truth, without_labels

    faults = given_faults(oof, target, task_type)
    notes: list[str] = []
    opened = [file for path in oof if (file := attempt(faults, open_file, path, id_column))]
    target_file = attempt(faults, open_file, target, id_column)
    split: Split | None = None
    if folds is not None and folds.resolve() == target.resolve():
        if target_file:
            split = attempt(faults, read_split, target_file, True, notes)
            target_file = attempt(faults, beside_folds, target_file)
    elif folds is not None and (fold_file := attempt(faults, open_file, folds, id_column)):
        split = attempt(faults, read_split, fold_file, False, notes)
    if not target_file or task_type not in TASK_TYPES:
        raise UserError(faults)
    if task_type == "multiclass" and len(target_file.columns) == 1:
        opened = [without_labels(file, target_file.columns[0], notes) for file in opened]
    count = None if split is None else len(split.fold_N)
    truth = attempt(faults, read_truth, target_file, task_type, opened, count, faults, notes)
    if not truth:
        raise UserError(faults)
    preds = [attempt(faults, read_member, file, truth, notes) for file in opened]
    if split:
        split = attempt(faults, split.along, truth.rows)
    elif folds is None:
        split = attempt(faults, random_split, truth.rows, seed, notes)
    if faults:
        raise UserError(faults)
    assert split is not None and truth.true_TN is not None
    return PlainFiles(
        names=member_names([file.path for file in opened]),
        preds=tuple(pred_TN for pred_TN in preds if pred_TN is not None),
        target_names=truth.names,
        true_TN=truth.true_TN,
        fold_N=split.fold_N,
        group_N=split.group_N,
        ids=truth.rows.names(),
        notes=(*notes, *truth.rows.notes()),
    )


def read_test_files(
    test: Sequence[Path],
    names: Sequence[str],
    target_names: Sequence[str],
    id_column: str | None = None,
) -> tuple[tuple[str, ...] | None, tuple[NDArray[np.float32], ...]]:
    """Ids (None when no file has any) and each member's (T, N) predictions for the test rows.

    `test` has a file for each member of `names`, in the same order. Rows follow the first table
    that has ids, else all files must have the same rows in the same order; files and outputs are
    read as `read_files` reads members. Raises UserError with the faults of all files.
    """
    from ensemble.files.file import open_file
    from ensemble.files.members import read_member
    from ensemble.files.rows import rows_of_predictions
    from ensemble.files.truth import Truth

    faults = twice_faults(test, "--test")
    if len(test) != len(names):
        faults.append(
            f"--test has {len(test)} files and --oof {len(names)}; "
            "give one for each member, in the same order"
        )
    opened = [file for path in test if (file := attempt(faults, open_file, path, id_column))]
    outputs = len(target_names)
    leader = min(opened, key=lambda file: file.vagueness, default=None)
    rows = leader and attempt(faults, rows_of_predictions, leader, outputs)
    if not rows:
        raise UserError(faults)
    form = Truth(rows=rows, names=tuple(target_names), true_TN=None, two_classes=outputs == 1)
    preds = [attempt(faults, read_member, file, form, []) for file in opened]
    if faults:
        raise UserError(faults)
    return rows.names(), tuple(pred_TN for pred_TN in preds if pred_TN is not None)
