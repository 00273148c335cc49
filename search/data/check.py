"""Check a data folder before anything runs: table, images, duplicates, groups, folds, room on disk;
all faults in one report.

Shapes: N train rows.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search.data.columns import some
from search.data.disk import need_space
from search.data.folds import (
    check_folds,
    label_counts,
    label_faults,
    label_warnings,
    make_folds,
    not_targets,
    read_groups,
)
from search.data.groups import AutoGroups, auto_groups, explained, how_different
from search.data.images import ImageReport, Progress, check_images
from search.data.similar import joined_groups
from search.data.table import Table, drop, scan
from search.data.trust import Alike, Kinds, find_alike, image_thumbs, joined_sizes, tell_apart
from spaces.errors import UserError
from spaces.task import Task

Need = tuple[Path, int, str]  # where, bytes, what for: the arguments of need_space
_SHOWN = 50  # unreadable images told one by one
_GROUPS = 100  # groups listed in data.json
_EXPLAINED = 0.3  # of what there is to know of a class: clusters that tell more are no slides
_DARK = 1 / 8  # of the 16 bit range: no brighter pixel anywhere means fewer bits were used


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A train row that is left out, and why."""

    id: str
    files: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataReport:
    """What a data folder holds, after quarantine, and how its rows are folded."""

    table: Table
    images: ImageReport
    thumbs_IHW3: np.ndarray  # of the table's images, train rows first
    quarantined: tuple[Quarantined, ...]
    groups: tuple[str, ...] | None  # N; None: rows are folded one by one
    auto: AutoGroups | None  # what --groups auto found
    fold_N: np.ndarray
    task_type: str
    alike: Alike
    kinds: Kinds
    warnings: tuple[str, ...]

    @property
    def crossing(self) -> tuple[tuple[str, ...], ...]:
        """Files with the same bytes, one copy in train and one in test."""
        train, test = set(self.table.paths), set(self.table.test_paths)
        return tuple(
            group
            for group in self.images.duplicates
            if train.intersection(group) and test.intersection(group)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for data.json."""
        table = self.table
        groups = None if self.groups is None else dict(sorted(Counter(self.groups).items()))
        labels = {}
        if self.task_type != "regression":
            labels = label_counts(self.fold_N, table.targets_TN, table.target_names)
        clusters = []
        if self.auto is not None and self.auto.labels is not None:
            train = self.thumbs_IHW3[: len(table.files)]
            clusters = how_different(train, self.auto.labels, table.views)
        return {
            "root": str(table.root),
            "rows": {"train": len(table.ids), "test": len(table.test_ids)},
            "views": table.views,
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
            "near_duplicates": self.alike.to_dict(table),
            "told_apart": self.kinds.to_dict(),
            "quarantined": [vars(row) for row in self.quarantined],
            "groups": groups if groups is None or len(groups) <= _GROUPS else len(groups),
            "clusters": clusters,
            "fold_sizes": np.bincount(self.fold_N).tolist(),
            "labels_per_fold": labels,
            "warnings": list(self.warnings),
        }


def inspect(
    task: Task,
    root: Path,
    *,
    groups: str = "none",
    folds: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    group_duplicates: bool = False,
    needs: Callable[[Table], Sequence[Need]] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Everything that must hold before a run on the data folder `root` starts, and its folds.

    `groups` is the value of --groups, `needs` tells what will be written where. With `skip_bad`,
    train rows with unreadable images are left out; an unreadable test image stays a fault, since a
    submission must have its row. Near duplicates never part: where the user's own groups would part
    them it is a fault, or with `group_duplicates` these groups become one. Raises UserError with
    all faults, of the table and of what could be checked despite them.
    """
    scanned = scan(task.layout, root, not_targets(groups), task.task_type)
    faults, table = list(scanned.faults), scanned.table
    if table is None:
        raise UserError(faults)
    # A path with a fault of its own is missing, or lies where nothing may be read.
    paths = dict.fromkeys(table.paths + table.test_paths)
    images = check_images(
        root, [path for path in paths if path not in scanned.bad_paths], workers, progress,
        channels=(*table.files, *table.test_files),
    )  # fmt: skip
    faults += _unreadable_faults(table, images, skip_bad)
    quarantined = _quarantine(table, images) if skip_bad else ()
    table = drop(table, {row.id for row in quarantined})
    if quarantined and not table.ids:
        faults.append(f"{root} has no train row with readable images; give at least one")
    if not faults:
        faults += _all_same(table, root / task.layout.train, task.task_type)
    thumbs = image_thumbs(images.thumbs_FHW3, images.paths, (*table.files, *table.test_files))
    asked: tuple[str, ...] | None = None
    try:
        if groups not in ("auto", "none"):
            asked = read_groups(groups, table, [row.id for row in quarantined])
    except UserError as error:
        faults += error.faults
    for where, needed, what in needs(table) if needs else ():
        try:
            need_space(where, needed, what)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    alike = find_alike(thumbs, table, task.task_type)
    if asked is not None and not group_duplicates and (torn := _torn(alike, asked, table)):
        raise UserError(torn)
    auto = _auto(thumbs, table, task.task_type, alike, seed) if groups == "auto" else None
    if auto is not None and auto.labels is not None:
        asked = tuple(f"group {label}" for label in auto.labels.tolist())
    row_groups = joined_groups(asked, alike.train, len(table.ids)) if alike.train else asked
    labels_TN = None if task.task_type == "regression" else table.targets_TN
    try:
        fold_N = make_folds(table.ids, row_groups, folds, seed, labels_TN)
        check_folds(fold_N, row_groups)
    except UserError as error:
        raise UserError([*error.faults, *_why_few(auto, alike)]) from None
    if labels_TN is not None and (
        single := label_faults(fold_N, labels_TN, table.target_names, task.task_type)
    ):
        raise UserError(single)
    report = DataReport(
        table=table,
        images=images,
        thumbs_IHW3=thumbs,
        quarantined=quarantined,
        groups=row_groups,
        auto=auto,
        fold_N=fold_N,
        task_type=task.task_type,
        alike=alike,
        kinds=tell_apart(thumbs, table, fold_N, seed),
        warnings=(),
    )
    warnings = (*table.warnings, *_image_warnings(report))
    if task.layout.label_column and not task.layout.classes:
        warnings += tuple(_lone_classes(table, root / task.layout.train))
    return replace(report, warnings=warnings)


def _auto(
    thumbs_IHW3: np.ndarray, table: Table, task_type: str, alike: Alike, seed: int
) -> AutoGroups:
    """What --groups auto finds, if folds can follow it: not when the clusters are the classes, nor
    when near duplicates join them all."""
    values_TN = table.targets_TN if task_type == "regression" else None
    found = auto_groups(
        thumbs_IHW3[: len(table.files)], seed, targets_TN=values_TN, views=table.views
    )
    if found.labels is None:
        return found
    why = ""
    if task_type != "regression" and explained(found.labels, table.targets_TN) > _EXPLAINED:
        why = "the clusters of the images follow the labels, so they are no slides"
    names = tuple(map(str, found.labels.tolist()))
    if len(set(joined_groups(names, alike.train, len(names)))) < 2:
        why = "near duplicates join all clusters of the images"
    return replace(found, labels=None, sizes=(), reason=f"no groups: {why}") if why else found


def _why_few(auto: AutoGroups | None, alike: Alike) -> list[str]:
    """What the user did not ask for and may stand behind groups that are too few."""
    reasons = []
    if auto is not None and auto.labels is not None:
        reasons.append("the groups were found in the images; --groups none switches them off")
    if alike.train:
        reasons.append(f"{len(alike.train)} pairs of near duplicates are kept in one fold each")
    return reasons


def _quarantine(table: Table, images: ImageReport) -> tuple[Quarantined, ...]:
    """The rows with an image that cannot be read."""
    found = []
    for name, row_images in zip(table.ids, table.row_files, strict=True):
        files = (path for image in row_images for path in image)
        bad = tuple(path for path in files if path in images.unreadable)
        if bad:
            found.append(Quarantined(id=name, files=bad, reason=images.unreadable[bad[0]]))
    return tuple(found)


def _all_same(table: Table, path: Path, task_type: str) -> list[str]:
    """A fault when no target varies."""
    if len(table.constant_targets) < len(table.target_names):
        return []
    if task_type == "regression":
        return [
            f"{path} has constant targets only: {some(table.target_names)}; give some that vary"
        ]
    row_T = table.targets_TN[:, 0]
    names = [name for name, has in zip(table.target_names, row_T, strict=True) if has]
    return [
        f"{path} gives all {len(table.ids)} rows one and the same class"
        + (f" ({', '.join(names)})" if names else f" (none of {some(table.target_names)})")
        + "; give rows of at least two"
    ]


def _lone_classes(table: Table, path: Path) -> list[str]:
    """A warning about classes of one row, where the classes are those that rows name."""
    lone = np.flatnonzero(table.targets_TN.sum(axis=1) == 1).tolist()
    found = [f"{table.ids[table.targets_TN[t].argmax()]}: {table.target_names[t]!r}" for t in lone]
    if not found:
        return []
    return [f"{path} has classes of a single row: {some(found)}; misspelt ones want mending"]


def _odd(kind_of: Mapping[str, str]) -> str:
    """The files of another kind than most, as the end of a warning."""
    most, count = Counter(kind_of.values()).most_common(1)[0]
    if count == len(kind_of):
        return ""
    return f"; not {most}: {some([path for path, kind in kind_of.items() if kind != most])}"


def _torn(alike: Alike, groups: Sequence[str], table: Table) -> list[str]:
    """A fault when near duplicates lie in different groups, hence perhaps in different folds."""
    torn = [(i, j) for i, j in alike.train if groups[i] != groups[j]]
    if not torn:
        return []
    names = [f"{table.ids[i]} ({groups[i]}) = {table.ids[j]} ({groups[j]})" for i, j in torn]
    return [
        f"{len(torn)} pairs of near duplicates lie in different groups: {some(names)}; a model "
        "would be scored on images it has seen: mend the groups, or pass --group-duplicates to "
        "join groups that share an image"
    ]


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
        modes = {path: facts.mode for path, facts in images.facts.items()}
        warnings.append(f"images converted to 8 bit RGB: {kinds}{_odd(modes)}")
    if len(images.sizes) > 1:
        names = [f"{size}: {count}" for size, count in images.sizes.items()]
        size_of = {path: f"{facts.width}x{facts.height}" for path, facts in images.facts.items()}
        warnings.append(
            f"images have different sizes, all will be squeezed to one: {some(names)}"
            f"{_odd(size_of)}"
        )
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
    if images.borders:
        warnings.append(
            f"{len(images.borders)} images have a border of one colour: "
            f"{some(list(images.borders))}; --crop-borders crops them"
        )
    if images.captions:
        warnings.append(
            f"{len(images.captions)} images have captions burnt in: "
            f"{some(list(images.captions))}; --mask-captions masks them"
        )
    if report.crossing:
        names = [" = ".join(group[:3]) for group in report.crossing]
        warnings.append(f"the same image is in train and test: {some(names)}")
    if report.task_type != "regression":
        warnings += label_warnings(
            report.fold_N, report.table.targets_TN, report.table.target_names, report.task_type
        )
    return [*warnings, *_trust_warnings(report)]


def _trust_warnings(report: DataReport) -> list[str]:
    alike, table, warnings = report.alike, report.table, []
    if alike.train:
        names = [f"{table.ids[i]} = {table.ids[j]}" for i, j in alike.train]
        sizes = joined_sizes(alike, len(table.ids))
        warnings.append(
            f"{sum(sizes)} train rows in {len(sizes)} sets of near duplicates, each kept in one "
            f"fold: {some(names)}"
        )
    if alike.conflicts:
        names = [f"{table.ids[i]} = {table.ids[j]}" for i, j in alike.conflicts]
        warnings.append(f"near duplicates with different labels: {some(names)}; mend the labels")
    if alike.crossing:
        names = [f"{table.ids[i]} = {table.test_ids[j]}" for i, j in alike.crossing]
        warnings.append(
            f"{len(alike.crossing)} test rows are near duplicates of train rows: {some(names)}; "
            "their score would say little about new images"
        )
    for apart in (report.kinds.test, report.kinds.folds):
        if apart is not None and apart.clear:
            warnings.append(apart.meaning)
    return warnings
