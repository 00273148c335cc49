"""The image files of a table's rows: relative paths, inside the data folder, and there.

Shapes: N rows, V views of a row; images stand row by row, N*V of them, each with its files: one,
or one per channel.
"""

import os
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from search.data.columns import natural, some
from spaces.layout import Layout

Files = tuple[tuple[str, ...], ...]  # of each image
_SHOWN = 10  # rows that get a fault of their own


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of the rows of one table; `bad` are the paths at fault: not to be opened."""

    files: Files  # N*V
    faults: tuple[str, ...]
    bad: frozenset[str]


class DataFolder:
    """What lies in a data folder. Each folder in it is listed once, which for thousands of images
    is quicker than asking for each, above all on a network's disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self.names = cache(self._names)
        self._inside = cache(self._is_inside)

    def fault(self, path: str) -> str:
        """Why the normalised relative `path` is no image of this folder: it is "outside" (also
        through a link), or "missing" (or no file); else ""."""
        if posixpath.isabs(path) or path.split("/")[0] == "..":
            return "outside"
        folder, name = posixpath.split(path)
        names = self.names(folder)
        if name not in names:
            return "missing"
        full = os.path.join(self._real, path)
        where = os.path.realpath(full) if names[name] else full
        return "" if self._inside(os.path.dirname(where)) else "outside"

    def _names(self, folder: str) -> dict[str, bool]:
        """The names of the files in `folder`, and whether each is a link."""
        try:
            with os.scandir(os.path.join(self._real, folder)) as entries:
                return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except (OSError, ValueError):  # no folder; a name that no system allows
            return {}

    def _is_inside(self, folder: str) -> bool:
        return os.path.commonpath([self._real, os.path.realpath(folder)]) == self._real


def written_images(
    folder: DataFolder, source: Path, ids: Sequence[str], columns: Sequence[Sequence[str]]
) -> Images:
    """Images whose paths stand in the table `source`: V `columns` of N paths."""
    paths = [
        (name, posixpath.normpath(path) if path else "")
        for name, *views in zip(ids, *columns, strict=True)
        for path in views
    ]
    fault_of = {path: folder.fault(path) if path else "empty" for _, path in paths}
    faults = []
    if empty := [name for name, path in paths if not path]:
        faults.append(f"{source} has no image path for ids {some(empty)}; fill them in")
    for kind in ("outside", "missing"):
        if found := [f"{name}: {path}" for name, path in paths if fault_of[path] == kind]:
            faults.append(_path_fault(kind, source, folder.root, found))
    return Images(
        files=tuple((path,) for _, path in paths),
        faults=tuple(faults),
        bad=frozenset(path for path, fault in fault_of.items() if fault),
    )


def named_images(
    folder: DataFolder, source: Path, ids: Sequence[str], layout: Layout, patterns: Sequence[str]
) -> Images:
    """Images that the layout's `patterns` name; of each, the first file that is there."""
    files: list[tuple[str, ...]] = []
    outside: list[str] = []
    lacks: dict[int, list[str]] = {}  # row -> its views and channels without a file
    bad = set()
    rank = ("", "outside", "missing").index  # a path outside tells more than a missing one
    for row, name in enumerate(ids):
        for view in layout.views or ("",):
            image = []
            for channel in layout.channels or ("",):
                found = [(folder.fault(p), p) for p in _filled(patterns, name, view, channel)]
                fault, path = min(found, key=lambda pair: rank(pair[0]))
                image.append(path)
                if fault:
                    bad.add(path)
                if fault == "outside":
                    outside.append(f"{name}: {path}")
                elif fault:
                    lacks.setdefault(row, []).append(f"{view} {channel}".strip() or path)
            files.append(tuple(image))
    faults = [_path_fault("outside", source, folder.root, outside)] if outside else []
    if lacks and layout.views + layout.channels:
        of_ids = [(ids[row], parts) for row, parts in lacks.items()]
        faults += _lacking(layout, patterns, of_ids)
    elif lacks:
        missing = [f"{ids[row]}: {path}" for row, (path,) in lacks.items()]
        faults.append(_path_fault("missing", source, folder.root, missing))
    return Images(files=tuple(files), faults=tuple(faults), bad=frozenset(bad))


def ids_of_files(folder: DataFolder, layout: Layout) -> list[str]:
    """The ids in the names of the test images, in the order people count."""
    found = {name for _, name in _named(folder, layout, layout.test_images)}
    return sorted(found, key=natural)


def strangers(folder: DataFolder, layout: Layout) -> list[str]:
    """Files beside the test images that are none, such as .DS_Store."""
    known = {path for path, _ in _named(folder, layout, layout.test_images)}
    there = {
        posixpath.join(place, name)
        for place in _shapes(layout, layout.test_images)
        for name in folder.names(place)
    }
    return sorted(there - known, key=natural)


def surplus(folder: DataFolder, layout: Layout, used: Collection[str]) -> list[str]:
    """A warning when files are named like images of a row but are none of the `used`."""
    found = {path for path, _ in _named(folder, layout, layout.train_images + layout.test_images)}
    extra = sorted(found.difference(used), key=natural)
    if not extra:
        return []
    return [
        f"{folder.root} has images that no row uses: {some(extra)}; "
        f"{len(found)} files, {len(set(used))} expected"
    ]


def _filled(patterns: Sequence[str], name: str, view: str, channel: str) -> Iterator[str]:
    """The path that each pattern names."""
    values = {"{id}": name, "{view}": view, "{channel}": channel}
    for pattern in patterns:
        # In one pass: an id may hold what looks like a placeholder.
        path = re.sub(r"\{(id|view|channel)\}", lambda found: values[found[0]], pattern)
        yield posixpath.normpath(path)


def _named(
    folder: DataFolder, layout: Layout, patterns: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(path, id) of the files whose names follow one of the patterns; hidden files never do."""
    for place, shape in _shapes(layout, patterns).items():
        for name in folder.names(place):
            match = shape.fullmatch(name)
            if match and not name.startswith("."):
                yield posixpath.join(place, name), next(filter(None, match.groups()))


def _shapes(layout: Layout, patterns: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """For each folder that patterns name in full: what its images are called, the id a group."""
    parts = {
        # The shortest id that fits leaves the longest view.
        "{id}": "(.+?)",
        "{view}": f"(?:{'|'.join(map(re.escape, layout.views))})",
        "{channel}": f"(?:{'|'.join(map(re.escape, layout.channels))})",
    }
    shapes: dict[str, list[str]] = {}
    for pattern in patterns:
        place, name = posixpath.split(posixpath.normpath(pattern))
        if "{" not in place and "{id}" in name:
            pieces = re.split(r"(\{id\}|\{view\}|\{channel\})", name)
            shape = "".join(parts.get(piece, re.escape(piece)) for piece in pieces)
            shapes.setdefault(place, []).append(shape)
    return {place: re.compile("|".join(found), re.DOTALL) for place, found in shapes.items()}


def _lacking(
    layout: Layout, patterns: Sequence[str], lacks: Sequence[tuple[str, list[str]]]
) -> list[str]:
    """A fault for each id without all of its views or channels."""
    noun = "channels" if not layout.views else "images" if layout.channels else "views"
    count = (len(layout.views) or 1) * (len(layout.channels) or 1)
    places = ", ".join(dict.fromkeys(posixpath.dirname(pattern) or "." for pattern in patterns))
    faults = [
        f"id {name} lacks "
        + (f"all {count} {noun}" if len(parts) == count else f"{noun} {', '.join(parts)}")
        + f" in {places}; add the files or remove the row"
        for name, parts in lacks[:_SHOWN]
    ]
    more = [name for name, _ in lacks[_SHOWN:]]
    return [*faults, *([f"more ids lack {noun} in {places}: {some(more)}"] if more else [])]


def _path_fault(kind: str, source: Path, root: Path, found: Sequence[str]) -> str:
    if kind == "outside":
        return (
            f"{source} has paths that leave the data folder {root}: {some(found)}; "
            "paths must be relative and stay inside it"
        )
    return (
        f"{source} names images that do not exist in {root}: {some(found)}; "
        "add the files or remove the rows"
    )
