"""Check a data folder before anything runs: table, images, groups, folds, room on disk; all faults
in one report.

Shapes: N train rows.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search.data.cache import cpus
from search.data.columns import some
from search.data.decode import ImageFacts, UnreadableImage, facts_of
from search.data.disk import need_space
from search.data.folds import check_folds, make_folds, not_targets, read_groups
from search.data.table import Table, drop, scan
from spaces.errors import UserError
from spaces.layout import Layout

__all__ = ["DataReport", "ImageReport", "Need", "check_images", "inspect", "need_space"]

Progress = Callable[[int, int], None]
Need = tuple[Path, int, str]  # where, bytes, what for: the arguments of need_space
_SHOWN = 50  # unreadable images told one by one
_SIZES = 20  # sizes listed in data.json; the rest are counted together
_DARK = 1 / 8  # of the 16 bit range: no brighter pixel anywhere means fewer bits were used


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """What is in the image files. Counts are of files; commonest first."""

    count: int
    sizes: dict[str, int]  # "64x64", width first
    modes: dict[str, int]  # Pillow's, see ImageFacts
    formats: dict[str, int]
    converted: dict[str, int]  # what was done to make 8 bit RGB of them, e.g. "grey"
    unreadable: dict[str, str]  # path -> reason
    duplicates: tuple[tuple[str, ...], ...]  # paths of files with the same bytes
    peak: int | None  # largest value in all 16 bit grey images

    def to_dict(self) -> dict[str, Any]:
        shown = dict(list(self.sizes.items())[:_SIZES])
        if rest := self.count - len(self.unreadable) - sum(shown.values()):
            shown["other"] = rest
        return {
            "count": self.count,
            "sizes": shown,
            "modes": self.modes,
            "formats": self.formats,
            "converted": self.converted,
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A train row that is left out, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataReport:
    """What a data folder holds, after quarantine."""

    table: Table
    images: ImageReport
    quarantined: tuple[Quarantined, ...]
    groups: tuple[str, ...] | None  # N; None for auto and none
    fold_N: np.ndarray | None  # None for auto: then the decoded images decide
    warnings: tuple[str, ...]

    @property
    def crossing(self) -> tuple[tuple[str, ...], ...]:
        """Duplicates with one copy in train and one in test."""
        train, test = set(self.table.paths), set(self.table.test_paths)
        return tuple(
            group
            for group in self.images.duplicates
            if train.intersection(group) and test.intersection(group)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for data.json."""
        table = self.table
        return {
            "root": str(table.root),
            "rows": {"train": len(table.ids), "test": len(table.test_ids)},
            "targets": {
                "count": len(table.target_names),
                "constant": list(table.constant_targets),
                "lowest": float(table.targets_TN.min()),
                "highest": float(table.targets_TN.max()),
            },
            "other_columns": list(table.columns),
            "images": self.images.to_dict(),
            "duplicates": {
                "files": [list(group) for group in self.images.duplicates],
                "train_and_test": [list(group) for group in self.crossing],
            },
            "quarantined": [vars(row) for row in self.quarantined],
            "groups": None if self.groups is None else dict(sorted(Counter(self.groups).items())),
            "fold_sizes": None if self.fold_N is None else np.bincount(self.fold_N).tolist(),
            "warnings": list(self.warnings),
        }


def inspect(
    layout: Layout,
    root: Path,
    *,
    groups: str = "none",
    folds: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    needs: Callable[[Table], Sequence[Need]] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Everything that must hold before a run on the data folder `root` starts.

    `groups` is the value of --groups ("auto" leaves groups and folds to the caller), `needs` tells
    what will be written where. With `skip_bad`, train rows with unreadable images are left out; an
    unreadable test image stays a fault, since a submission must have its row. Raises UserError
    with all faults, of the table and of what could be checked despite them.
    """
    scanned = scan(layout, root, not_targets(groups))
    faults, table = list(scanned.faults), scanned.table
    if table is None:
        raise UserError(faults)
    # A path with a fault of its own is missing, or lies where nothing may be read.
    paths = dict.fromkeys(table.paths + table.test_paths)
    images = check_images(root, [p for p in paths if p not in scanned.bad_paths], workers, progress)
    faults += _unreadable_faults(table, images, skip_bad)
    bad = images.unreadable
    quarantined = tuple(
        Quarantined(id=name, path=path, reason=bad[path])
        for name, path in zip(table.ids, table.paths, strict=True)
        if path in bad and skip_bad
    )
    table = drop(table, {row.id for row in quarantined})
    if quarantined and not table.ids:
        faults.append(f"{root} has no train row with a readable image; give at least one")
    row_groups: tuple[str, ...] | None = None
    fold_N: np.ndarray | None = None
    try:
        if groups not in ("auto", "none"):
            row_groups = read_groups(groups, table, [row.id for row in quarantined])
        fold_N = make_folds(table.ids, row_groups, folds, seed)  # for auto: are there rows enough?
        check_folds(fold_N, row_groups)
    except UserError as error:
        faults += error.faults
    for where, needed, what in needs(table) if needs else ():
        try:
            need_space(where, needed, what)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    report = DataReport(
        table=table,
        images=images,
        quarantined=quarantined,
        groups=row_groups,
        fold_N=None if groups == "auto" else fold_N,
        warnings=(),
    )
    return replace(report, warnings=(*table.warnings, *_image_warnings(report)))


def check_images(
    root: Path, paths: Sequence[str], workers: int | None = None, progress: Progress | None = None
) -> ImageReport:
    """Read and decode every file fully, in threads (see cache.py for why threads)."""

    def look(path: str) -> tuple[str, ImageFacts | str]:
        try:
            data = (root / path).read_bytes()
        except OSError as error:
            return "", error.strerror or str(error)
        try:
            return hashlib.sha256(data).hexdigest(), facts_of(data)
        except UnreadableImage as error:
            return "", str(error)

    found: list[ImageFacts] = []
    unreadable: dict[str, str] = {}
    same: dict[str, list[str]] = {}
    pool = ThreadPoolExecutor(workers or cpus())
    try:
        for done, (path, (digest, image)) in enumerate(
            zip(paths, pool.map(look, paths), strict=True), start=1
        ):
            if isinstance(image, str):
                unreadable[path] = image
            else:
                found.append(image)
                same.setdefault(digest, []).append(path)
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return ImageReport(
        count=len(paths),
        sizes=_counts(f"{image.width}x{image.height}" for image in found),
        modes=_counts(image.mode for image in found),
        formats=_counts(image.format for image in found),
        converted=_counts(step for image in found for step in image.conversions),
        unreadable=unreadable,
        duplicates=tuple(tuple(group) for group in same.values() if len(group) > 1),
        peak=max((image.peak for image in found if image.peak is not None), default=None),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _unreadable_faults(table: Table, images: ImageReport, skip_bad: bool) -> list[str]:
    """One sentence per image that cannot be read and is not to be skipped, tests first."""
    test = set(table.test_paths)
    faults = [
        f"{table.root / path} is unreadable: {reason}; replace it (a test image cannot be skipped)"
        for path, reason in images.unreadable.items()
        if path in test
    ]
    if not skip_bad:
        faults += [
            f"{table.root / path} is unreadable: {reason}; replace it or pass --skip-bad"
            for path, reason in images.unreadable.items()
            if path not in test
        ]
    more = len(faults) - _SHOWN
    return faults if more <= 0 else [*faults[:_SHOWN], f"{more} more images are unreadable"]


def _image_warnings(report: DataReport) -> list[str]:
    images, warnings = report.images, []
    if report.quarantined:
        names = [row.id for row in report.quarantined]
        warnings.append(f"train rows with unreadable images are left out: {some(names)}")
    if images.converted:
        kinds = ", ".join(f"{step} {count}" for step, count in images.converted.items())
        warnings.append(f"images converted to 8 bit RGB: {kinds}")
    if len(images.sizes) > 1:
        names = [f"{size}: {count}" for size, count in images.sizes.items()]
        warnings.append(f"images have different sizes, all will be squeezed to one: {some(names)}")
    elif any(len(set(size.split("x"))) > 1 for size in images.sizes):
        warnings.append(f"images are not square and will be squeezed: {next(iter(images.sizes))}")
    if images.peak is not None and images.peak < _DARK * 65535:
        warnings.append(
            f"no 16 bit image has a value above {images.peak}: they will be almost black; "
            "stretch them to 0 to 65535 or save 8 bits"
        )
    if images.duplicates:
        names = [" = ".join(group[:3]) for group in images.duplicates]
        warnings.append(f"groups of files with the same bytes: {some(names)}")
    if report.crossing:
        names = [" = ".join(group[:3]) for group in report.crossing]
        warnings.append(f"the same image is in train and test: {some(names)}")
    return warnings
