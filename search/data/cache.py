"""The image store: every image decoded once into a memory-mapped file that all workers share.

Shapes: N images, H = W = size pixels, C channels: 3 colours, or one per file of an image.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.data.decode import Clean, UnreadableImage, check_header, decode_image
from search.data.disk import need_space, only_writer
from search.run_folder import read_json, write_json
from spaces.errors import UserError

VERSION = 2  # raise it when decode.py gives other pixels, so that old stores are left alone
PIXELS, SOURCES, MANIFEST = "images.npy", "sources.json", "manifest.json"  # a store's files
_CHUNK = 16  # images per piece of work
_SHOWN = 50  # faults told one by one

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """Decoded images, read-only; row i is the i-th image that was asked for."""

    images_NHWC: np.memmap  # uint8 (N, size, size, C)
    folder: Path
    key: str

    @property
    def size(self) -> int:
        return int(self.images_NHWC.shape[1])

    @property
    def channels(self) -> int:
        return int(self.images_NHWC.shape[3])


def default_cache() -> Path:
    """$RUNGFOLD_CACHE, else rungfold in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("RUNGFOLD_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rungfold"


def store_bytes(count: int, size: int, channels: int = 3) -> int:
    """Bytes on disk of a store of `count` images."""
    return count * size * size * channels + 4096


def open_store(
    root: Path,
    files: Sequence[tuple[str, ...]],
    size: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    *,
    clean: Clean | None = None,
    clean_key: str = "",
) -> Store:
    """The store of images at `size` x `size` pixels; `files` (relative to `root`) are each image's
    file, or one file per channel, as many for each. `clean` changes the pixels first (see
    `decode_image`), and `clean_key` names what it does.

    The first process that asks writes it; others wait for its lock and then map the same file.
    `progress` gets (done, total) in the process that writes. The manifest is written last: a store
    without one is what a killed process left, and is written again. Raises UserError for
    unreadable images, for a file that changes meanwhile, and when the disk has no room.
    """
    assert (clean is None) == (not clean_key)
    key = store_key(root, files, size, clean_key)
    shape = (len(files), size, size, _channels(files))
    folder = cache / "store" / key
    if store := _open(folder, key, shape):
        return store
    with only_writer(folder, "image store"):
        if store := _open(folder, key, shape):  # another process was quicker
            return store
        _write(root, files, shape, folder, clean, progress, workers or cpus())
        if store_key(root, files, size, clean_key) != key:
            shutil.rmtree(folder)
            raise UserError(f"images in {root} changed while they were read; start again")
        # For hosts that do not see this folder, but perhaps the images.
        write_json(folder / SOURCES, {"root": os.path.realpath(root), "files": files})
        write_json(folder / MANIFEST, {
            "version": VERSION,
            "images": len(files),
            "size": size,
            "channels": shape[-1],
            "root": str(root),
            "cleaned": clean_key,
        })  # fmt: skip
    store = _open(folder, key, shape)
    assert store
    return store


def load_store(folder: Path) -> Store:
    """The finished store in `folder`, as a worker maps it. Raises UserError when it is gone."""
    manifest = read_json(folder / MANIFEST)
    count, size, channels = (int(manifest.get(n, 0)) for n in ("images", "size", "channels"))
    store = _open(folder, folder.name, (count, size, size, channels))
    if store is None:
        raise UserError(f"{folder} is no whole image store; resume the run to have it rebuilt")
    return store


def check_headers(
    root: Path,
    files: Sequence[tuple[str, ...]],
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> None:
    """A quick look at all files of the images, for those who decode them later, part by part.

    Raises UserError naming those that are missing or do not begin like an image.
    """
    each = [(path,) for image in files for path in image]
    faults = _each(each, lambda row: check_header(root / each[row][0]), root, progress, workers)
    if faults:
        raise UserError(_shorten(faults))


def cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _channels(files: Sequence[tuple[str, ...]]) -> int:
    counts = {len(image) for image in files} or {1}
    assert len(counts) == 1, f"images of {counts} files"
    return 3 if counts == {1} else counts.pop()


def store_key(root: Path, files: Sequence[tuple[str, ...]], size: int, clean_key: str) -> str:
    """Names the store's content: folder, files in order, and each one's length and mtime. Raises
    UserError where files are missing.

    Hashing all bytes would read the whole data set at every start (seconds for gigabytes, minutes
    on a network disk), a stat takes microseconds. Length and mtime in nanoseconds miss a change
    only when someone restores the old time on other content of equal length. The folder is
    part of the key since archives often give all their files one fixed time: two data sets with
    the same names and raw TIFFs of one length must not share a store.
    """
    real = os.path.realpath(root)
    stats: list[list[tuple[str, int, int]]] = []
    missing = []
    for image in files:
        stats.append([])
        for path in image:
            try:
                stat = os.stat(os.path.join(real, path))
            except OSError:
                missing.append(f"{root / path} does not exist; add the image")
                continue
            stats[-1].append((path, stat.st_size, stat.st_mtime_ns))
    if missing:
        raise UserError(_shorten(missing))
    text = json.dumps([VERSION, size, real, clean_key, stats])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _open(folder: Path, key: str, shape: tuple[int, ...]) -> Store | None:
    """The finished store in `folder`, or None when there is none that is whole."""
    try:
        manifest = read_json(folder / MANIFEST)
        images_NHWC = np.load(folder / PIXELS, mmap_mode="r")
    except (UserError, OSError, EOFError, ValueError):  # the last two: cut short
        return None
    whole = manifest.get("version") == VERSION and images_NHWC.dtype == np.uint8
    if not whole or images_NHWC.shape != shape:
        return None
    return Store(images_NHWC=images_NHWC, folder=folder, key=key)


def _write(
    root: Path,
    files: Sequence[tuple[str, ...]],
    shape: tuple[int, int, int, int],
    folder: Path,
    clean: Clean | None,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> None:
    """Decode all images into folder/images.npy, an array of `shape` NHWC; leaves nothing behind
    when it fails.

    Threads, not processes. Measured on two cores, PNG tiles per second with one thread, two
    threads, two forked and two spawned processes (best of two): 64 px: 5280, 5120, 8930, 5750;
    224 px: 610, 990, 1170, 850. The competition's 9269 tiles take 2 s or 10 s, so what processes
    gain does not pay for forking a process that has CUDA or Ray's threads in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    count, size, _, channels = shape
    needed = store_bytes(count, size, channels)
    need_space(folder, needed, f"the image store of {count} images at {size} px")
    folder.mkdir(parents=True)
    temporary, final = folder / "images.partial.npy", folder / PIXELS
    try:
        images_NHWC = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        _claim(temporary)
        faults = _fill(images_NHWC, root, files, clean, progress, workers)
        if faults:
            raise UserError(_shorten(faults))
        images_NHWC.flush()
        del images_NHWC
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _claim(path: Path) -> None:
    """Give the sparse file at `path` its blocks now: a full disk is an error here, and a killed
    process (SIGBUS) when it is met while writing to mapped memory."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = os.strerror(error.errno)
                raise UserError(f"{path.parent}: {reason}; choose another --cache") from None
            # Other errors: a file system that cannot claim blocks, where writing still works.
            log.debug("cannot claim blocks for %s: %s", path, error)


def _fill(
    images_NHWC: np.ndarray,
    root: Path,
    files: Sequence[tuple[str, ...]],
    clean: Clean | None,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> list[str]:
    """Decode every image into its row; a fault for each that could not be read."""
    size = images_NHWC.shape[1]

    def fill(row: int) -> None:
        images_NHWC[row] = decode_image(root, files[row], size, clean)

    return _each(files, fill, root, progress, workers)


def _each(
    files: Sequence[tuple[str, ...]],
    read: Callable[[int], None],
    root: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> list[str]:
    """Call read(row) for every image, in threads; a fault for each that could not be read."""

    def work(start: int) -> list[str]:
        faults = []
        for row in range(start, min(start + _CHUNK, len(files))):
            try:
                read(row)
            except UnreadableImage as error:
                path = root / (error.file or files[row][0])
                faults.append(f"{path} is unreadable: {error}; replace it")
        return faults

    faults, done = [], 0
    pool = ThreadPoolExecutor(workers or cpus())
    try:
        for found in pool.map(work, range(0, len(files), _CHUNK)):
            faults += found
            done = min(done + _CHUNK, len(files))
            if progress:
                progress(done, len(files))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
    return faults


def _shorten(faults: list[str]) -> list[str]:
    more = len(faults) - _SHOWN
    return faults if more <= 0 else [*faults[:_SHOWN], f"and {more} more images"]
