"""Look at every image file once: whether it can be read, what is in it, and a thumbnail.

Shapes: F files, H and W pixels.
"""

import hashlib
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.data.borders import Box, find_border, find_captions
from search.data.cache import cpus
from search.data.decode import ImageFacts, UnreadableImage, examine
from search.data.seen import Files, Records, Seen, files_of, read_seen, write_seen
from spaces.errors import UserError

Progress = Callable[[int, int], None]
THUMB = 64  # pixels, side of a thumbnail
log = logging.getLogger(__name__)
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
    facts: dict[str, ImageFacts]  # path -> what is in it, of those that can be read
    borders: dict[str, Box]  # an image's first file -> what lies inside a frame of one colour
    captions: dict[str, list[Box]]  # an image's first file -> burnt-in text

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


def check_images(
    root: Path,
    paths: Sequence[str],
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    channels: Sequence[tuple[str, ...]] = (),
    cache: Path | None = None,
) -> ImageReport:
    """Read and decode every file fully, in threads (see cache.py for why threads).

    `channels` are the files of images that have one per channel: these must agree in size, and a
    border is theirs together. With a `cache` folder, what was seen is kept there, and files that
    have not changed since are not opened.
    """
    place = {path: row for row, path in enumerate(paths)}
    thumbs_FHW3 = _scratch(len(paths))
    before = read_seen(cache, root, Path(__file__)) if cache else Records()
    whole: dict[Files, list[Seen]] = {}  # images that could be read

    def look(image: tuple[str, ...]) -> list[Seen | str]:
        rows = [place[path] for path in image]
        files = files_of(root, image)
        if files in before.images and before.thumbs_FHW3 is not None:
            first, known = before.images[files]
            thumbs_FHW3[rows] = before.thumbs_FHW3[first : first + len(rows)]
            found: list[Seen | str] = [*known]
        else:
            found = _look(root, image, rows, thumbs_FHW3)
        seen = [of_file for of_file in found if isinstance(of_file, Seen)]
        if files and len(seen) == len(files):
            whole[files] = seen
        return found

    together = [image for image in channels if len(image) > 1 and all(p in place for p in image)]
    rest = place.keys() - {path for image in together for path in image}
    jobs = [*dict.fromkeys(together), *((path,) for path in paths if path in rest)]
    results: dict[str, Seen | str] = {}
    pool = ThreadPoolExecutor(workers or cpus())
    try:
        for image, found in zip(jobs, pool.map(look, jobs), strict=True):
            for path, of_path in zip(image, found, strict=True):
                results[path] = of_path
                if progress:
                    progress(len(results), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    if cache and before.images.keys() != whole.keys():
        rows = [place[path] for files in whole for path, _, _ in files]
        try:
            write_seen(cache, root, Path(__file__), whole, thumbs_FHW3, rows)
        except (UserError, OSError) as error:  # the next start looks again; this one need not stop
            log.warning("what was seen of the images is not kept: %s", error)
    return _report(tuple(paths), thumbs_FHW3, results)


def _look(
    root: Path, image: tuple[str, ...], rows: Sequence[int], thumbs_FHW3: NDArray[np.uint8]
) -> list[Seen | str]:
    """What is in an image's files, or why they cannot be read; fills their rows of thumbnails."""
    found: list[Seen | str] = []
    planes: list[Image.Image] = []
    for path, row in zip(image, rows, strict=True):
        try:
            data = (root / path).read_bytes()
            facts, plane_HW3 = examine(data)
        except (OSError, UnreadableImage) as error:
            found.append(getattr(error, "strerror", None) or str(error))
            continue
        plane = Image.fromarray(plane_HW3)
        if planes and plane.size != planes[0].size:
            sides = [f"{p.width} x {p.height}" for p in (plane, planes[0])]
            found.append(
                f"it has {sides[0]} pixels, but another channel of its image has {sides[1]}, "
                "and they must agree"
            )
            continue
        # As a store's images are made, so that what is seen here is what is trained on.
        thumbs_FHW3[row] = np.asarray(plane.resize((THUMB, THUMB), Image.Resampling.BICUBIC))
        found.append(Seen(digest=hashlib.sha256(data).hexdigest(), facts=facts))
        planes.append(plane)
    first = found[0]
    if len(planes) == len(image) and isinstance(first, Seen):
        greys = planes if len(image) == 1 else [plane.convert("L") for plane in planes]
        image_HWC = np.dstack([np.asarray(grey) for grey in greys])
        border, captions = find_border(image_HWC), find_captions(image_HWC)
        found[0] = replace(first, border=border, captions=captions)
    return found


def _report(
    paths: tuple[str, ...], thumbs_FHW3: NDArray[np.uint8], results: dict[str, Seen | str]
) -> ImageReport:
    seen: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    same: dict[str, list[str]] = {}
    for path in paths:
        found = results[path]
        if isinstance(found, str):
            unreadable[path] = found
        else:
            seen[path] = found
            same.setdefault(found.digest, []).append(path)
    facts = {path: found.facts for path, found in seen.items()}
    return ImageReport(
        paths=paths,
        thumbs_FHW3=thumbs_FHW3,
        sizes=_counts(f"{image.width}x{image.height}" for image in facts.values()),
        modes=_counts(image.mode for image in facts.values()),
        formats=_counts(image.format for image in facts.values()),
        converted=_counts(step for image in facts.values() for step in image.conversions),
        unreadable=unreadable,
        duplicates=tuple(tuple(group) for group in same.values() if len(group) > 1),
        peak=max((image.peak for image in facts.values() if image.peak is not None), default=None),
        facts=facts,
        borders={path: found.border for path, found in seen.items() if found.border},
        captions={path: list(found.captions) for path, found in seen.items() if found.captions},
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
