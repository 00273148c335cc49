"""What was seen of image files, kept in the cache folder: unchanged ones are not decoded again.

A folder of data has one set of records there. A record holds for the files of one image as long as
their paths, lengths and times of change are the same (as for an image store, see cache.py), and all
records as long as the code that looks is. Files that cannot be read are never recorded.

Shapes: F files, H and W pixels.
"""

import hashlib
import math
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from search.data import borders, decode
from search.data.borders import Box
from search.data.decode import ImageFacts
from search.data.disk import need_space, only_writer
from search.run_folder import read_json, write_file, write_json
from spaces.errors import UserError

# The files of one image: path, bytes, time of change in nanoseconds.
Files = tuple[tuple[str, int, int], ...]
Thumbs = NDArray[np.uint8]
_CHUNK = 1024  # thumbnails copied at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One file that could be read."""

    digest: str  # SHA-256 of its bytes
    facts: ImageFacts
    border: Box | None = None  # of the image; where it has several files, at the first
    captions: Sequence[Box] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """What an earlier look found."""

    images: dict[Files, tuple[int, list[Seen]]] = field(default_factory=dict)  # the first's row
    thumbs_FHW3: Thumbs | None = None  # a memory map


def files_of(root: Path, paths: Sequence[str]) -> Files | None:
    """The files of an image as they are now; None where one is missing."""
    try:
        stats = [os.stat(root / path) for path in paths]
    except OSError:
        return None
    return tuple(
        (path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)
    )


def read_seen(cache: Path, root: Path, looks: Path) -> Records:
    """The records of the data folder `root`; none where there are none that are whole. `looks` is
    the source file of the code that looks."""
    folder = _folder(cache, root, looks)
    try:
        saved = read_json(folder / "images.json")
        thumbs_FHW3 = np.load(folder / str(saved["thumbs"]), mmap_mode="r")
        images: dict[Files, tuple[int, list[Seen]]] = {}
        row = 0
        for image in saved["images"]:
            files = tuple((str(path), int(size), int(time)) for path, size, time in image["files"])
            images[files] = row, [_seen(**seen) for seen in image["seen"]]
            row += len(files)
    except (UserError, OSError, EOFError, ValueError, LookupError, TypeError):
        return Records()
    if thumbs_FHW3.dtype != np.uint8 or thumbs_FHW3.ndim != 4 or len(thumbs_FHW3) != row:
        return Records()
    return Records(images=images, thumbs_FHW3=thumbs_FHW3)


def write_seen(
    cache: Path,
    root: Path,
    looks: Path,
    images: dict[Files, list[Seen]],
    thumbs_FHW3: Thumbs,
    rows: Sequence[int],
) -> None:
    """Replace the records of `root`; `rows` are where the images' files, in order, have their
    thumbnails.

    The list is written last and names its thumbnails. Raises UserError when the disk has no room.
    """
    folder = _folder(cache, root, looks)
    shape = (len(rows), *thumbs_FHW3.shape[1:])
    need_space(folder, math.prod(shape), f"thumbnails of {len(rows)} images")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"thumbs-{uuid.uuid4().hex[:8]}.npy"

    def write_thumbs(path: Path) -> None:
        kept_FHW3 = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        for start in range(0, len(rows), _CHUNK):
            kept_FHW3[start : start + _CHUNK] = thumbs_FHW3[rows[start : start + _CHUNK]]
        kept_FHW3.flush()

    with only_writer(folder, "records of images"):
        write_file(folder / name, write_thumbs)
        records = [
            {"files": files, "seen": [asdict(seen) for seen in found]}
            for files, found in images.items()
        ]
        write_json(folder / "images.json", {"root": str(root), "thumbs": name, "images": records})
        for old in folder.glob("*thumbs-*"):  # a reader that has mapped it keeps it
            if old.name != name:
                with suppress(FileNotFoundError):
                    old.unlink()


def _folder(cache: Path, root: Path, looks: Path) -> Path:
    """Named by the data folder, and by the code: what looks in another way sees other things."""
    digest = hashlib.sha256(os.path.realpath(root).encode())
    for source in (__file__, borders.__file__, decode.__file__, looks):
        digest.update(Path(source).read_bytes())
    digest.update(PIL.__version__.encode())
    return cache / "seen" / digest.hexdigest()[:32]


def _seen(
    digest: str,
    facts: dict[str, object],
    border: dict[str, int] | None,
    captions: list[dict[str, int]],
) -> Seen:
    return Seen(
        digest=digest,
        facts=ImageFacts(**facts),  # type: ignore[arg-type]
        border=Box(**border) if border else None,
        captions=[Box(**box) for box in captions],
    )
