"""What a data folder holds, as inspect found it: for data.json, and as warnings for people.

Shapes: N train rows, I images.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.data.columns import some
from search.data.folds import label_counts, label_warnings
from search.data.groups import AutoGroups, how_different
from search.data.images import ImageReport
from search.data.table import Table
from search.data.trust import Alike, Kinds, joined_sizes

_GROUPS = 100  # groups listed in data.json
_SHARED = ("patient", "subject", "person", "case", "slide", "study", "series", "donor", "group")
_REPEATED = 0.8  # of the rows: with more values than that, a column names rows rather than groups
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


def warnings_of(report: DataReport, named_classes: bool) -> list[str]:
    """What does not stop a run and should be known. `named_classes`: the rows name the classes, so
    that a misspelt one is a class of its own."""
    warnings = [*report.table.warnings, *_image_warnings(report)]
    if report.auto is not None:
        warnings += _likely_groups(report.table)
    if named_classes:
        warnings += _lone_classes(report.table)
    return warnings


def _likely_groups(table: Table) -> list[str]:
    """A warning about columns that name what rows may share, while nobody said that they do."""
    found = [
        f"{name!r} has {len(set(values))} values in {len(values)} rows"
        for name, values in table.columns.items()
        if any(word in name.lower() for word in _SHARED)
        and 1 < len(set(values)) <= _REPEATED * len(values)
    ]
    if not found:
        return []
    return [
        f"column {some(found)}: if such rows belong together, random folds flatter the score; give "
        "--groups COLUMN"
    ]


def _lone_classes(table: Table) -> list[str]:
    """A warning about classes of one row."""
    lone = np.flatnonzero(table.targets_TN.sum(axis=1) == 1).tolist()
    found = [f"{table.ids[table.targets_TN[t].argmax()]}: {table.target_names[t]!r}" for t in lone]
    if not found:
        return []
    return [f"classes of a single row: {some(found)}; misspelt ones want mending"]


def _odd(kind_of: Mapping[str, str]) -> str:
    """The files of another kind than most, as the end of a warning."""
    most, count = Counter(kind_of.values()).most_common(1)[0]
    if count == len(kind_of):
        return ""
    return f"; not {most}: {some([path for path, kind in kind_of.items() if kind != most])}"


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
            f"{len(alike.crossing)} pairs of a train and a test row are near duplicates: "
            f"{some(names)}; "
            "their score would say little about new images"
        )
    for apart in (report.kinds.test, report.kinds.folds):
        if apart is not None and apart.clear:
            warnings.append(apart.meaning)
    return warnings
