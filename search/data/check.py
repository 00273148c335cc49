"""Check a data folder before anything runs: table, images, duplicates, groups, folds, room on disk;
all faults in one report.

Shapes: N train rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from search.data.columns import some
from search.data.disk import need_space
from search.data.folds import (
    check_folds,
    label_faults,
    make_folds,
    not_targets,
    read_groups,
)
from search.data.groups import AutoGroups, auto_groups, explained
from search.data.images import ImageReport, Progress, check_images
from search.data.report import DataReport, Quarantined, warnings_of
from search.data.similar import joined_groups
from search.data.table import Table, drop, scan
from search.data.trust import Alike, find_alike, image_thumbs, tell_apart
from spaces.errors import UserError
from spaces.task import Task

Need = tuple[Path, int, str]  # where, bytes, what for: the arguments of need_space
_SHOWN = 50  # unreadable images told one by one
_EXPLAINED = 0.3  # of what there is to know of a class: clusters that tell more are no slides


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
    cache: Path | None = None,
) -> DataReport:
    """Everything that must hold before a run on the data folder `root` starts, and its folds.

    `groups` is the value of --groups, `needs` tells what will be written where. With `skip_bad`,
    train rows with unreadable images are left out; an unreadable test image stays a fault, since a
    submission must have its row. Near duplicates never part: where the user's own groups would part
    them it is a fault, or with `group_duplicates` these groups become one. What was seen of images
    is kept in `cache`, if given, for the next time. Raises UserError with all faults, of the table
    and of what could be checked despite them.
    """
    scanned = scan(task.layout, root, not_targets(groups), task.task_type)
    faults, table = list(scanned.faults), scanned.table
    if table is None:
        raise UserError(faults)
    # A path with a fault of its own is missing, or lies where nothing may be read.
    paths = dict.fromkeys(table.paths + table.test_paths)
    images = check_images(
        root, [path for path in paths if path not in scanned.bad_paths], workers, progress,
        channels=(*table.files, *table.test_files), cache=cache,
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
    named = bool(task.layout.label_column and not task.layout.classes)
    return replace(report, warnings=tuple(warnings_of(report, named)))


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
