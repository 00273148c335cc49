"""Rows: ids and images, as a table, a folder of test images or a sample submission lists them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from search.data.columns import (
    as_text,
    need_columns,
    padded,
    read_frame,
    read_header,
    repeated,
    some,
)
from search.data.paths import (
    DataFolder,
    Files,
    ids_of_files,
    named_images,
    strangers,
    written_images,
)
from spaces.errors import UserError
from spaces.layout import Layout


@dataclass(frozen=True)
class Reading:
    """A data folder and its layout, and what is gathered while it is read."""

    layout: Layout
    folder: DataFolder
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad_paths: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        return self.folder.root / name


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample submission: its ids and its columns but the id."""

    path: Path
    ids: tuple[str, ...]
    columns: tuple[str, ...]


def first_faults(layout: Layout, root: Path) -> list[str]:
    """What makes looking further useless."""
    if not root.is_dir():
        return [f"{root} is no folder; give the folder that holds the data"]
    if not layout.image_columns and not (layout.train_images and layout.test_images):
        return ["the task's layout says neither by columns nor by patterns where images are"]
    return []


def read_test_rows(reading: Reading) -> tuple[tuple[str, ...], Files]:
    """Ids and images of the test table, or of the folder of test images."""
    layout, path = reading.layout, reading.path(reading.layout.test)
    if path.is_dir():
        return _read_test_folder(reading, path)
    wanted = [layout.id_column, *layout.image_columns]
    try:
        need_columns(path, read_header(path), wanted)
        frame = read_frame(path, wanted, only=wanted)
    except UserError as error:
        reading.faults.extend(error.faults)
        return (), ()
    return rows_of(reading, path, as_text(frame[layout.id_column]), frame, layout.test_images)


def _read_test_folder(reading: Reading, path: Path) -> tuple[tuple[str, ...], Files]:
    layout = reading.layout
    if layout.image_columns:
        columns = ", ".join([layout.id_column, *layout.image_columns])
        reading.faults.append(f"{path} is a folder; it must be a CSV with the columns {columns}")
        return (), ()
    ids = ids_of_files(reading.folder, layout)
    if not ids:
        named = " or ".join(layout.test_images)
        reading.faults.append(f"{path} has no images; they must be named {named}")
        return (), ()
    if others := strangers(reading.folder, layout):
        reading.warnings.append(f"files that are no test images are left out: {some(others)}")
    return rows_of(reading, path, ids, None, layout.test_images)


def rows_of(
    reading: Reading,
    path: Path,
    written: Sequence[str],
    frame: pd.DataFrame | None,
    patterns: Sequence[str],
) -> tuple[tuple[str, ...], Files]:
    """Checked ids and images of the rows that `path` lists; `frame` holds the image columns, where
    there are any."""
    layout = reading.layout
    ids = padded(written, layout.id_width)
    if layout.image_columns:
        assert frame is not None
        columns = [as_text(frame[name]) for name in layout.image_columns]
        images = written_images(reading.folder, path, ids, columns)
    else:
        images = named_images(reading.folder, path, ids, layout, patterns)
    reading.faults.extend([*_check_ids(reading, path, ids), *images.faults])
    reading.bad_paths.update(images.bad)
    return ids, images.files


def read_sample(reading: Reading) -> Sample | None:
    """The sample submission; None when there is none to go by."""
    layout, path = reading.layout, reading.path(reading.layout.sample_submission)
    if not path.is_file():
        return None
    try:
        header = read_header(path)
        need_columns(path, header, [layout.id_column])
        frame = read_frame(path, [layout.id_column], only=[layout.id_column])
    except UserError as error:
        reading.faults.extend(error.faults)
        return None
    columns = tuple(name for name in header if name != layout.id_column)
    if not columns:
        reading.faults.append(f"{path} has no column beside the id; it must name the targets")
        return None
    ids = padded(as_text(frame[layout.id_column]), layout.id_width)
    return Sample(path=path, ids=ids, columns=columns)


def compare_ids(sample: Sample, test_ids: Sequence[str]) -> list[str]:
    path, faults = sample.path, []
    if twice := repeated(sample.ids):
        faults.append(f"{path} has duplicate ids: {some(twice)}; each id must occur once")
    known, listed = set(test_ids), set(sample.ids)
    if extra := [name for name in sample.ids if name not in known]:
        faults.append(f"{path} has ids that are no test rows: {some(extra)}; remove them")
    if lost := [name for name in test_ids if name not in listed]:
        faults.append(f"{path} lacks ids of test rows: {some(lost)}; add them")
    return faults


def _check_ids(reading: Reading, path: Path, ids: Sequence[str]) -> list[str]:
    faults = []
    if twice := repeated(ids):
        width = reading.layout.id_width
        how = f" when padded to {width} digits" if width else ""
        faults.append(f"{path} has duplicate ids{how}: {some(twice)}; each id must occur once")
    if empty := sum(not name.strip() for name in ids):
        faults.append(f"{path} has {empty} rows without an id; fill them in")
    if not ids:
        faults.append(f"{path} has no rows; give at least one")
    return faults
