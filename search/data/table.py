"""Table: the rows of a data folder, read by its layout with all faults at once.

Shapes: N train rows, V views of a row, T targets. Images stand row by row, N*V of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from search.data.columns import as_text, need_columns, read_frame, read_header, repeated, some
from search.data.labels import (
    class_targets,
    found_targets,
    listed_targets,
    numeric_targets,
    stated_targets,
)
from search.data.paths import DataFolder, Files, surplus
from search.data.rows import (
    Reading,
    Sample,
    compare_ids,
    first_faults,
    read_sample,
    read_test_rows,
    rows_of,
)
from spaces.errors import UserError
from spaces.layout import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows in the order of their files. Paths are normalised, relative to `root`, inside it."""

    root: Path
    ids: tuple[str, ...]  # N
    files: Files  # N*V; each image's file, or its channels' files
    views: int = 1  # V
    target_names: tuple[str, ...]  # T
    targets_TN: np.ndarray  # float32
    classes: tuple[str, ...] = ()  # the targets, where a label column names them
    test_ids: tuple[str, ...]  # empty when the task has no test rows
    test_files: Files
    columns: dict[str, tuple[str, ...]]  # other columns of the train table, as text
    submission_ids: tuple[str, ...]  # the sample submission's order, else that of test_ids
    submission_columns: tuple[str, ...]  # the id column first
    id_width: int = 0  # ids of digits are padded with zeros to it
    warnings: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All files of the train images, in order."""
        return _flat(self.files)

    @property
    def test_paths(self) -> tuple[str, ...]:
        return _flat(self.test_files)

    @property
    def row_files(self) -> tuple[Files, ...]:
        """The V images of each train row."""
        starts = range(0, len(self.files), self.views)
        return tuple(self.files[start : start + self.views] for start in starts)

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


def read_table(
    layout: Layout, root: Path, not_targets: Sequence[str] = (), task_type: str = "regression"
) -> Table:
    """The table of the data folder `root`.

    Targets are the classes of the layout's label column, or its target columns, or the columns of
    the sample submission but the id; without all these, all numeric columns of the train table but
    those of id, images and `not_targets`. Raises UserError with all faults.
    """
    scanned = scan(layout, root, not_targets, task_type)
    if scanned.faults:
        raise UserError(scanned.faults)
    assert scanned.table
    return scanned.table


def read_test(layout: Layout, root: Path) -> tuple[tuple[str, ...], Files]:
    """Ids and images of the test rows, with the same checks; needs no train table and looks at no
    sample submission, so that new images can be predicted. Raises UserError with all faults."""
    reading = Reading(layout, DataFolder(root))
    reading.faults.extend(first_faults(layout, root))
    rows = read_test_rows(reading) if not reading.faults else ((), ())
    if reading.faults:
        raise UserError(reading.faults)
    return rows


def drop(table: Table, bad_ids: Collection[str]) -> Table:
    """The table without the train rows `bad_ids`; test rows stay."""
    bad = set(bad_ids)
    rows = [row for row, name in enumerate(table.ids) if name not in bad]
    row_files = table.row_files
    return replace(
        table,
        ids=tuple(table.ids[row] for row in rows),
        files=tuple(image for row in rows for image in row_files[row]),
        targets_TN=np.ascontiguousarray(table.targets_TN[:, rows]),
        columns={
            name: tuple(values[row] for row in rows) for name, values in table.columns.items()
        },
    )


def scan(
    layout: Layout, root: Path, not_targets: Sequence[str] = (), task_type: str = "regression"
) -> Scan:
    """Read the data folder `root` and collect all faults instead of stopping at the first."""
    if faults := first_faults(layout, root):
        return Scan(table=None, faults=tuple(faults))
    reading = Reading(layout, DataFolder(root))
    test_ids: tuple[str, ...] = ()
    test_files: Files = ()
    has_test = bool(layout.test) and (root / layout.test).exists()
    if has_test:
        test_ids, test_files = read_test_rows(reading)
    sample = read_sample(reading)
    if sample and not has_test:
        reading.warnings.append(
            f"{sample.path} is there but {layout.test} is not: no submission will be written"
        )
    elif sample and test_ids:
        reading.faults.extend(compare_ids(sample, test_ids))
    table = _read_train(reading, sample, not_targets, task_type)
    if table:
        table = replace(table, test_ids=test_ids, test_files=test_files)
        reading.warnings.extend(_overlaps(reading, table))
        reading.warnings.extend(surplus(reading.folder, layout, {*table.paths, *table.test_paths}))
        table = replace(
            table,
            submission_ids=sample.ids if sample and has_test else test_ids,
            warnings=tuple(reading.warnings),
        )
    return Scan(table=table, faults=tuple(reading.faults), bad_paths=frozenset(reading.bad_paths))


def _flat(files: Files) -> tuple[str, ...]:
    return tuple(path for image in files for path in image)


def _overlaps(reading: Reading, table: Table) -> list[str]:
    """Warnings of what train and test rows share."""
    layout, warnings = reading.layout, []
    # In a folder of test images the ids are file names, whose numbers begin anew.
    both = sorted(set(table.ids) & set(table.test_ids))
    if both and not reading.path(layout.test).is_dir():
        warnings.append(f"ids occur in {layout.train} and {layout.test}: {some(both)}")
    if both := sorted(set(table.paths) & set(table.test_paths)):
        warnings.append(f"train and test rows share images: {some(both)}")
    return warnings


def _read_train(
    reading: Reading, sample: Sample | None, not_targets: Sequence[str], task_type: str
) -> Table | None:
    """The train rows as a table without test rows."""
    layout, path = reading.layout, reading.path(reading.layout.train)
    keys = [layout.id_column, *layout.image_columns]
    try:
        header = read_header(path, layout.columns)
        stated, faults = stated_targets(path, layout, header)
        reading.faults.extend(faults)
        need_columns(path, header, [*keys, *not_targets, *stated])
        others = [name for name in header if name not in keys]
        listed = stated or (sample.columns if sample else None)
        text = {*keys, *not_targets, layout.label_column}
        if listed is not None:
            text |= set(others).difference(listed)
        frame = read_frame(path, text, columns=layout.columns)
    except UserError as error:
        reading.faults.extend(error.faults)
        return None
    ids, files = rows_of(
        reading, path, as_text(frame[layout.id_column]), frame, layout.train_images
    )
    warnings: list[str] = []
    if listed is None:
        names, faults, warnings = found_targets(path, frame, others, not_targets)
    elif stated or not sample:
        names, faults = stated, []
    else:
        names, faults, warnings = listed_targets(
            path, frame, others, not_targets, sample.path, listed
        )
    if clash := [name for name in not_targets if name in names]:
        who = sample.path if sample and not stated else "the task"
        faults.append(f"{who} makes {some(clash)} a target; choose another group column")
    if layout.label_column:
        targets = class_targets(path, frame, layout, ids, task_type)
    else:
        targets = numeric_targets(path, frame, names, ids, task_type)
    reading.faults.extend([*faults, *targets.faults])
    reading.warnings.extend(warnings)
    if shared := repeated([path for path in _flat(files) if path]):
        reading.warnings.append(f"{path} has rows that share an image: {some(shared)}")
    ordered = sample.columns if sample and set(sample.columns) == set(targets.names) else None
    table = Table(
        root=reading.folder.root,
        ids=ids,
        files=files,
        views=layout.view_count,
        target_names=targets.names,
        targets_TN=targets.values_TN,
        classes=targets.names if layout.label_column else (),
        test_ids=(),
        test_files=(),
        columns={name: as_text(frame[name]) for name in others if name not in names},
        submission_ids=(),
        submission_columns=(layout.id_column, *(ordered or targets.names)),
        warnings=(),
        id_width=layout.id_width,
    )
    if ids and not targets.faults and (constant := table.constant_targets):
        reading.warnings.append(f"{path} has targets that never vary: {some(constant)}")
    return table
