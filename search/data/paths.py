"""Image paths of a table: relative, inside the data folder, and there."""

import os
import posixpath
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from search.data.columns import some


def check_paths(
    root: Path, source: Path, ids: Sequence[str], written: Sequence[str]
) -> tuple[tuple[str, ...], list[str], set[str]]:
    """The paths `written` in the CSV `source`, normalised; the faults among them (empty, absolute,
    outside `root` also through a link, missing, not a file); and the paths at fault."""
    real_root = os.path.realpath(root)

    @cache  # a folder of thousands of images is resolved once
    def inside(folder: str) -> bool:
        real = os.path.realpath(folder)
        return os.path.commonpath([real_root, real]) == real_root

    empty, outside, missing = [], [], []
    bad = set()
    paths = tuple(posixpath.normpath(path) if path else "" for path in written)
    for name, path in zip(ids, paths, strict=True):
        full = os.path.join(real_root, path)
        if not path:
            empty.append(name)
        elif posixpath.isabs(path) or path.split("/")[0] == "..":
            outside.append(f"{name}: {path}")
        elif not os.path.isfile(full):  # a broken link, too
            missing.append(f"{name}: {path}")
        elif not inside(os.path.realpath(full) if os.path.islink(full) else os.path.dirname(full)):
            outside.append(f"{name}: {path}")
        else:
            continue
        bad.add(path)
    faults = []
    if empty:
        faults.append(f"{source} has no image path for ids {some(empty)}; fill them in")
    if outside:
        faults.append(
            f"{source} has paths that leave the data folder {root}: {some(outside)}; "
            "paths must be relative and stay inside it"
        )
    if missing:
        faults.append(
            f"{source} names images that do not exist in {root}: {some(missing)}; "
            "add the files or remove the rows"
        )
    return paths, faults, bad
