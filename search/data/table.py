"""Table: the rows of a data folder, read from its CSVs with all faults at once.

Shapes: N train rows, T targets.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from search.data.columns import (
    as_floats,
    as_text,
    mostly_numbers,
    need_columns,
    read_frame,
    read_header,
    repeated,
    some,
)
from search.data.paths import check_paths
from spaces.errors import UserError
from spaces.layout import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows in the order of their files. Paths are normalised, relative to `root`, inside it."""

    root: Path
    ids: tuple[str, ...]  # N
    paths: tuple[str, ...]  # N
    target_names: tuple[str, ...]  # T
    targets_TN: np.ndarray  # float32
    test_ids: tuple[str, ...]  # empty when the task has no test rows
    test_paths: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]  # other columns of the train CSV, as text
    submission_ids: tuple[str, ...]  # the sample submission's order, else that of test_ids
    submission_columns: tuple[str, ...]  # the id column first
    warnings: tuple[str, ...]

    @property
    def constant_targets(self) -> tuple[str, ...]:
        same_T = np.ptp(self.targets_TN, axis=1) == 0
        return tuple(name for name, same in zip(self.target_names, same_T, strict=True) if same)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What a data folder gave. `table` is as far as it could be read: with faults it only serves
    to look for more of them, and is None when not even its rows are known."""

    table: Table | None
    faults: tuple[str, ...]
    bad_paths: frozenset[str] = frozenset()  # paths with a fault: not to be opened


@dataclass(frozen=True)
class _Notes:
    """What a scan gathers on its way."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad_paths: set[str] = field(default_factory=set)


def read_table(layout: Layout, root: Path, not_targets: Sequence[str] = ()) -> Table:
    """The table of the data folder `root`.

    Targets are the columns of the sample submission but the id; without one, all numeric columns
    of the train CSV but id, path and `not_targets`. Raises UserError with all faults.
    """
    scanned = scan(layout, root, not_targets)
    if scanned.faults:
        raise UserError(scanned.faults)
    assert scanned.table
    return scanned.table


def read_test(layout: Layout, root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and paths of the test rows, with the same checks; needs no train CSV and looks at no
    sample submission, so that new images can be predicted. Raises UserError with all faults."""
    notes = _Notes(faults=_folder_faults(root))
    ids, paths = _read_rows(layout, root, layout.test, notes) if not notes.faults else ((), ())
    if notes.faults:
        raise UserError(notes.faults)
    return ids, paths


def drop(table: Table, bad_ids: Collection[str]) -> Table:
    """The table without the train rows `bad_ids`; test rows stay."""
    bad = set(bad_ids)
    rows = [row for row, name in enumerate(table.ids) if name not in bad]
    return replace(
        table,
        ids=tuple(table.ids[row] for row in rows),
        paths=tuple(table.paths[row] for row in rows),
        targets_TN=np.ascontiguousarray(table.targets_TN[:, rows]),
        columns={
            name: tuple(values[row] for row in rows) for name, values in table.columns.items()
        },
    )


def scan(layout: Layout, root: Path, not_targets: Sequence[str] = ()) -> Scan:
    """Read the data folder `root` and collect all faults instead of stopping at the first."""
    notes = _Notes(faults=_folder_faults(root))
    if notes.faults:
        return Scan(table=None, faults=tuple(notes.faults))
    test_ids: tuple[str, ...] = ()
    test_paths: tuple[str, ...] = ()
    has_test = (root / layout.test).is_file()
    if has_test:
        test_ids, test_paths = _read_rows(layout, root, layout.test, notes)
    sample = _read_sample(layout, root, notes)
    if sample and not has_test:
        notes.warnings.append(
            f"{root / layout.sample_submission} is there but {layout.test} is not: "
            "no submission will be written"
        )
    elif sample and test_ids:
        notes.faults.extend(_compare_ids(root / layout.sample_submission, sample[0], test_ids))
    table = _read_train(layout, root, sample[1] if sample else None, not_targets, notes)
    if table:
        if both := sorted(set(table.ids) & set(test_ids)):
            notes.warnings.append(f"ids occur in {layout.train} and {layout.test}: {some(both)}")
        if both := sorted(set(table.paths) & set(test_paths)):
            notes.warnings.append(f"train and test rows share images: {some(both)}")
        table = replace(
            table,
            test_ids=test_ids,
            test_paths=test_paths,
            submission_ids=sample[0] if sample and has_test else test_ids,
            warnings=tuple(notes.warnings),
        )
    return Scan(table=table, faults=tuple(notes.faults), bad_paths=frozenset(notes.bad_paths))


def _folder_faults(root: Path) -> list[str]:
    return [] if root.is_dir() else [f"{root} is no folder; give the folder that holds the data"]


def _check_ids(path: Path, ids: Sequence[str]) -> list[str]:
    faults = []
    if twice := repeated(ids):
        faults.append(f"{path} has duplicate ids: {some(twice)}; each id must occur once")
    if empty := sum(not name.strip() for name in ids):
        faults.append(f"{path} has {empty} rows without an id; fill them in")
    if not ids:
        faults.append(f"{path} has no rows; give at least one")
    return faults


def _read_rows(
    layout: Layout, root: Path, name: str, notes: _Notes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and paths of the CSV `name`."""
    path = root / name
    wanted = [layout.id_column, layout.image_columns[0]]
    try:
        need_columns(path, read_header(path), wanted)
        frame = read_frame(path, wanted, only=wanted)
    except UserError as error:
        notes.faults.extend(error.faults)
        return (), ()
    return _rows_of(frame, layout, root, path, notes)


def _rows_of(
    frame: pd.DataFrame, layout: Layout, root: Path, path: Path, notes: _Notes
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Checked ids and paths of a frame read from `path`."""
    ids = as_text(frame[layout.id_column])
    paths, faults, bad = check_paths(root, path, ids, as_text(frame[layout.image_columns[0]]))
    notes.faults.extend(_check_ids(path, ids) + faults)
    notes.bad_paths.update(bad)
    return ids, paths


def _read_sample(
    layout: Layout, root: Path, notes: _Notes
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Ids and target names of the sample submission; None when there is none to go by."""
    path = root / layout.sample_submission
    if not path.is_file():
        return None
    try:
        header = read_header(path)
        need_columns(path, header, [layout.id_column])
        frame = read_frame(path, [layout.id_column], only=[layout.id_column])
    except UserError as error:
        notes.faults.extend(error.faults)
        return None
    targets = tuple(name for name in header if name != layout.id_column)
    if not targets:
        notes.faults.append(f"{path} has no column beside the id; it must name the targets")
        return None
    return as_text(frame[layout.id_column]), targets


def _compare_ids(path: Path, ids: Sequence[str], test_ids: Sequence[str]) -> list[str]:
    faults = []
    if twice := repeated(ids):
        faults.append(f"{path} has duplicate ids: {some(twice)}; each id must occur once")
    known, listed = set(test_ids), set(ids)
    if extra := [name for name in ids if name not in known]:
        faults.append(f"{path} has ids that are no test rows: {some(extra)}; remove them")
    if lost := [name for name in test_ids if name not in listed]:
        faults.append(f"{path} lacks ids of test rows: {some(lost)}; add them")
    return faults


def _read_train(
    layout: Layout,
    root: Path,
    wanted: Sequence[str] | None,
    not_targets: Sequence[str],
    notes: _Notes,
) -> Table | None:
    """The train rows as a table without test rows; `wanted` are the sample's targets."""
    path = root / layout.train
    keys = [layout.id_column, layout.image_columns[0]]
    try:
        header = read_header(path)
        need_columns(path, header, [*keys, *not_targets])
        others = [name for name in header if name not in keys]
        known = None if wanted is None else [name for name in wanted if name in others]
        text = {*keys, *not_targets, *([] if known is None else set(others) - set(known))}
        frame = read_frame(path, text)
    except UserError as error:
        notes.faults.extend(error.faults)
        return None
    ids, paths = _rows_of(frame, layout, root, path, notes)
    if wanted is None:
        targets = [n for n in others if n not in not_targets and mostly_numbers(frame[n])]
        if words := [n for n in others if n not in not_targets and n not in targets]:
            notes.warnings.append(f"{path} columns of text are no targets: {some(words)}")
        if not targets:
            notes.faults.append(f"{path} has no column of numbers; add at least one target")
    else:
        assert known is not None
        sample = root / layout.sample_submission
        targets = known
        if lost := [name for name in wanted if name not in others]:
            notes.faults.append(
                f"{sample} has columns that {path} lacks: {some(lost)}; both must name the targets"
            )
        if clash := [name for name in not_targets if name in known]:
            notes.faults.append(
                f"{sample} makes {some(clash)} a target; choose another group column"
            )
        surplus = [n for n in others if n not in known and n not in not_targets]
        numeric = [n for n in surplus if mostly_numbers(frame[n])]
        if numeric:
            notes.warnings.append(
                f"{path} columns that {sample.name} lacks are no targets: {some(numeric)}"
            )
    targets_TN, value_faults = as_floats(path, frame, targets, ids)
    notes.faults.extend(value_faults)
    if shared := repeated([p for p in paths if p]):
        notes.warnings.append(f"{path} has rows that share an image: {some(shared)}")
    table = Table(
        root=root,
        ids=ids,
        paths=paths,
        target_names=tuple(targets),
        targets_TN=targets_TN,
        test_ids=(),
        test_paths=(),
        columns={name: as_text(frame[name]) for name in others if name not in targets},
        submission_ids=(),
        submission_columns=(layout.id_column, *targets),
        warnings=(),
    )
    if ids and not value_faults and (constant := table.constant_targets):
        notes.warnings.append(f"{path} has targets that never vary: {some(constant)}")
    return table
