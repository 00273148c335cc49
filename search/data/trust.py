"""What may make a score untrue: near duplicates, labels that contradict each other, test images
of another kind, hidden slides or scanners.

Shapes: N train rows, S test rows, V views of a row, I images, H and W pixels, T outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.adversarial import Separability, folds_apart, train_or_test
from search.data.similar import conflicts, near_duplicates, row_pairs, unite
from search.data.table import Table

_CELLS = 8  # of the coarse grid of colours by which a small model tells images apart
_LISTED = 200  # pairs in data.json


@dataclass(frozen=True, kw_only=True, eq=False)
class Alike:
    """Rows that show the same."""

    train: tuple[tuple[int, int], ...]  # pairs of train rows
    crossing: tuple[tuple[int, int], ...]  # a train row and a test row
    conflicts: tuple[tuple[int, int], ...]  # pairs of train rows with different labels

    def to_dict(self, table: Table) -> dict[str, Any]:
        ids, test_ids = table.ids, table.test_ids
        return {
            "train": [[ids[i], ids[j]] for i, j in self.train[:_LISTED]],
            "train_and_test": [[ids[i], test_ids[j]] for i, j in self.crossing[:_LISTED]],
            "conflicting": [[ids[i], ids[j]] for i, j in self.conflicts[:_LISTED]],
            "counts": {
                "train": len(self.train),
                "train_and_test": len(self.crossing),
                "conflicting": len(self.conflicts),
            },
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Kinds:
    """How well a small model tells rows apart that should be of one kind."""

    test: Separability | None  # train from test; None without test rows
    folds: Separability  # a fold from the others

    def to_dict(self) -> dict[str, Any]:
        found = {"train_or_test": self.test, "folds": self.folds}
        return {
            name: {"auc": round(apart.auc, 4), "meaning": apart.meaning}
            for name, apart in found.items()
            if apart is not None and not np.isnan(apart.auc)
        }


def find_alike(thumbs_IHW3: NDArray[np.uint8], table: Table, task_type: str) -> Alike:
    """Near duplicates among the rows whose images these are, train rows first."""
    count = len(table.ids)
    pairs = row_pairs(near_duplicates(thumbs_IHW3, table.views), table.views)
    train = [(i, j) for i, j in pairs if j < count]
    return Alike(
        train=tuple(train),
        crossing=tuple((i, j - count) for i, j in pairs if i < count <= j),
        conflicts=tuple(conflicts(train, table.targets_TN, task_type)),
    )


def tell_apart(
    thumbs_IHW3: NDArray[np.uint8], table: Table, fold_N: NDArray[np.int64], seed: int
) -> Kinds:
    """A small model's view of train against test, and of the folds."""
    features = _features(thumbs_IHW3, table.views)
    count = len(table.ids)
    return Kinds(
        test=train_or_test(features[:count], features[count:], seed) if table.test_ids else None,
        folds=folds_apart(features[:count], fold_N, seed),
    )


def image_thumbs(
    thumbs_FHW3: NDArray[np.uint8], paths: Sequence[str], files: Sequence[tuple[str, ...]]
) -> NDArray[np.uint8]:
    """(I, H, W, 3) thumbnails of images, from those of their files: three channels that are files
    of their own show as red, green and blue."""
    place = {path: row for row, path in enumerate(paths)}
    rows = [[place.get(path, -1) for path in image[:3]] for image in files]
    if all(len(row) == 1 for row in rows):
        if [row[0] for row in rows] == list(range(len(thumbs_FHW3))):
            return thumbs_FHW3
        return thumbs_FHW3[[row[0] for row in rows]]
    shown = np.zeros((len(files), *thumbs_FHW3.shape[1:]), np.uint8)
    for image, row in enumerate(rows):
        for channel, file in enumerate(row):
            shown[image, :, :, channel] = thumbs_FHW3[file, :, :, 0]
    return shown


def joined_sizes(alike: Alike, count: int) -> list[int]:
    """How many rows each set of near duplicates holds, largest first."""
    sizes = np.bincount(unite(alike.train, count), minlength=1)
    return sorted((int(size) for size in sizes if size > 1), reverse=True)


def _features(thumbs_IHW3: NDArray[np.uint8], views: int) -> NDArray[np.float32]:
    """Coarse colours, contrast and sharpness of each row, mean over its views."""
    side = thumbs_IHW3.shape[1] // _CELLS
    rows = []
    for start in range(0, len(thumbs_IHW3), 1024):
        part = thumbs_IHW3[start : start + 1024].astype(np.float32)
        grid = part.reshape(len(part), _CELLS, side, _CELLS, side, 3).mean(axis=(2, 4))
        edges = np.abs(np.diff(part, axis=1)).mean(axis=(1, 2))
        rows.append(
            np.concatenate([grid.reshape(len(part), -1), part.std(axis=(1, 2)), edges], axis=1)
        )
    features = np.concatenate(rows)
    return features.reshape(-1, views, features.shape[1]).mean(axis=1)
