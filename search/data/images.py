"""Look at every image file once: whether it can be read, what is in it, and a thumbnail.

Shapes: F files, H and W pixels.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.data.borders import Box, find_border, find_captions
from search.data.cache import cpus
from search.data.decode import ImageFacts, UnreadableImage, examine

Progress = Callable[[int, int], None]
THUMB = 64  # pixels, side of a thumbnail
_SIZES = 20  # sizes listed in data.json; the rest are counted together


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """What is in the image files. Counts are of files; commonest first."""

    paths: tuple[str, ...]  # F
    thumbs_FHW3: NDArray[np.uint8]  # RGB, THUMB pixels a side; black for what cannot be read
    sizes: dict[str, int]  # "64x64", width first
    modes: dict[str, int]  # Pillow's, see ImageFacts
    formats: dict[str, int]
    converted: dict[str, int]  # what was done to make 8 bit RGB of them, e.g. "grey"
    unreadable: dict[str, str]  # path -> reason
    duplicates: tuple[tuple[str, ...], ...]  # paths of files with the same bytes
    peak: int | None  # largest value in all 16 bit grey images
    borders: dict[str, Box]  # path -> what lies inside a frame of one colour
    captions: dict[str, list[Box]]  # path -> burnt-in text

    @property
    def count(self) -> int:
        return len(self.paths)

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
            "borders": list(self.borders),
            "captions": list(self.captions),
        }


@dataclass(frozen=True, eq=False)
class _Seen:
    """One file that could be read."""

    digest: str
    facts: ImageFacts
    border: Box | None
    captions: list[Box]


def check_images(
    root: Path, paths: Sequence[str], workers: int | None = None, progress: Progress | None = None
) -> ImageReport:
    """Read and decode every file fully, in threads (see cache.py for why threads)."""
    thumbs_FHW3 = _scratch(len(paths))

    def look(row: int) -> _Seen | str:
        try:
            data = (root / paths[row]).read_bytes()
        except OSError as error:
            return error.strerror or str(error)
        try:
            facts, image_HW3 = examine(data)
        except UnreadableImage as error:
            return str(error)
        # As a store's images are made, so that what is seen here is what is trained on.
        small = Image.fromarray(image_HW3).resize((THUMB, THUMB), Image.Resampling.BICUBIC)
        thumbs_FHW3[row] = np.asarray(small)
        digest = hashlib.sha256(data).hexdigest()
        return _Seen(digest, facts, find_border(image_HW3), find_captions(image_HW3))

    seen: dict[str, _Seen] = {}
    unreadable: dict[str, str] = {}
    pool = ThreadPoolExecutor(workers or cpus())
    try:
        results = zip(paths, pool.map(look, range(len(paths))), strict=True)
        for done, (path, found) in enumerate(results, start=1):
            if isinstance(found, str):
                unreadable[path] = found
            else:
                seen[path] = found
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return _report(tuple(paths), thumbs_FHW3, seen, unreadable)


def _report(
    paths: tuple[str, ...],
    thumbs_FHW3: NDArray[np.uint8],
    seen: dict[str, _Seen],
    unreadable: dict[str, str],
) -> ImageReport:
    same: dict[str, list[str]] = {}
    for path, found in seen.items():
        same.setdefault(found.digest, []).append(path)
    facts = [found.facts for found in seen.values()]
    return ImageReport(
        paths=paths,
        thumbs_FHW3=thumbs_FHW3,
        sizes=_counts(f"{image.width}x{image.height}" for image in facts),
        modes=_counts(image.mode for image in facts),
        formats=_counts(image.format for image in facts),
        converted=_counts(step for image in facts for step in image.conversions),
        unreadable=unreadable,
        duplicates=tuple(tuple(group) for group in same.values() if len(group) > 1),
        peak=max((image.peak for image in facts if image.peak is not None), default=None),
        borders={path: found.border for path, found in seen.items() if found.border},
        captions={path: found.captions for path, found in seen.items() if found.captions},
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _scratch(count: int) -> NDArray[np.uint8]:
    """Room for thumbnails in a nameless file: 12 kB each, which the system may write out."""
    shape = (count, THUMB, THUMB, 3)
    if not count:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
