"""The image store: every image decoded once into a memory-mapped file that all workers share.

Shapes: N images, H = W = size pixels, C = 3 colours.
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
from filelock import FileLock, Timeout

from search.data.decode import UnreadableImage, check_header, decode
from search.data.disk import need_space
from search.run_folder import read_json, write_json
from spaces.errors import UserError

VERSION = 1  # raise it when decode.py gives other pixels, so that old stores are left alone
_CHUNK = 16  # images per piece of work
_SHOWN = 50  # faults told one by one

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """Decoded images, read-only; row i is the i-th path that was asked for."""

    images_NHWC: np.memmap  # uint8 (N, size, size, 3)
    folder: Path
    key: str

    @property
    def size(self) -> int:
        return int(self.images_NHWC.shape[1])


def default_cache() -> Path:
    """$RUNGFOLD_CACHE, else rungfold in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("RUNGFOLD_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rungfold"


def store_bytes(count: int, size: int) -> int:
    """Bytes on disk of a store of `count` images."""
    return count * size * size * 3 + 4096


def open_store(
    root: Path,
    paths: Sequence[str],
    size: int,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Store:
    """The store of the images `paths` (relative to `root`) at `size` x `size` pixels.

    The first process that asks writes it; others wait for its lock and then map the same file.
    `progress` gets (done, total) in the process that writes. The manifest is written last: a store
    without one is what a killed process left, and is written again. Raises UserError for
    unreadable images, for a file that changes meanwhile, and when the disk has no room.
    """
    key = _key(root, paths, size)
    folder = cache / "store" / key
    if store := _open(folder, key, len(paths), size):
        return store
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that writes the image store %s", folder)
        lock.acquire()
    try:
        if store := _open(folder, key, len(paths), size):  # another process was quicker
            return store
        _write(root, paths, size, folder, progress, workers or cpus())
        if _key(root, paths, size) != key:
            shutil.rmtree(folder)
            raise UserError(f"images in {root} changed while they were read; start again")
        manifest = {"version": VERSION, "images": len(paths), "size": size, "root": str(root)}
        write_json(folder / "manifest.json", manifest)
    finally:
        lock.release()
    store = _open(folder, key, len(paths), size)
    assert store
    return store


def load_store(folder: Path) -> Store:
    """The finished store in `folder`, as a worker maps it. Raises UserError when it is gone."""
    manifest = read_json(folder / "manifest.json")
    store = _open(folder, folder.name, int(manifest["images"]), int(manifest["size"]))
    if store is None:
        raise UserError(f"{folder} is no whole image store; resume the run to have it rebuilt")
    return store


def check_headers(
    root: Path,
    paths: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> None:
    """A quick look at all images, for those who decode them later, part by part.

    Raises UserError naming those that are missing or do not begin like an image.
    """
    faults = _each(paths, lambda row: check_header(root / paths[row]), root, progress, workers)
    if faults:
        raise UserError(_shorten(faults))


def cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(root: Path, paths: Sequence[str], size: int) -> str:
    """Names the store's content: folder, paths in order, and each file's length and mtime.

    Hashing all bytes would read the whole data set at every start (seconds for gigabytes, minutes
    on a network disk), a stat takes microseconds. Length and mtime in nanoseconds miss a change
    only when someone restores the old time on other content of equal length. The folder is
    part of the key since archives often give all their files one fixed time: two data sets with
    the same names and raw TIFFs of one length must not share a store.
    """
    real = os.path.realpath(root)
    files = []
    missing = []
    for path in paths:
        try:
            stat = os.stat(os.path.join(real, path))
        except OSError:
            missing.append(f"{root / path} does not exist; add the image")
            continue
        files.append((path, stat.st_size, stat.st_mtime_ns))
    if missing:
        raise UserError(_shorten(missing))
    text = json.dumps([VERSION, size, real, files])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _open(folder: Path, key: str, count: int, size: int) -> Store | None:
    """The finished store in `folder`, or None when there is none that is whole."""
    try:
        manifest = read_json(folder / "manifest.json")
        images_NHWC = np.load(folder / "images.npy", mmap_mode="r")
    except (UserError, OSError, ValueError):  # ValueError: shorter than its header says
        return None
    whole = manifest.get("version") == VERSION and images_NHWC.dtype == np.uint8
    if not whole or images_NHWC.shape != (count, size, size, 3):
        return None
    return Store(images_NHWC=images_NHWC, folder=folder, key=key)


def _write(
    root: Path,
    paths: Sequence[str],
    size: int,
    folder: Path,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> None:
    """Decode all images into folder/images.npy; leaves nothing behind when it fails.

    Threads, not processes. Measured on two cores, PNG tiles per second with one thread, two
    threads, two forked and two spawned processes (best of two): 64 px: 5280, 5120, 8930, 5750;
    224 px: 610, 990, 1170, 850. The competition's 9269 tiles take 2 s or 10 s, so what processes
    gain does not pay for forking a process that has CUDA or Ray's threads in it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    needed = store_bytes(len(paths), size)
    need_space(folder, needed, f"the image store of {len(paths)} images at {size} px")
    folder.mkdir(parents=True)
    temporary, final = folder / "images.partial.npy", folder / "images.npy"
    try:
        images_NHWC = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.uint8, shape=(len(paths), size, size, 3)
        )
        _claim(temporary)
        faults = _fill(images_NHWC, root, paths, size, progress, workers)
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
    paths: Sequence[str],
    size: int,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> list[str]:
    """Decode every path into its row; a fault for each image that could not be read."""

    def fill(row: int) -> None:
        images_NHWC[row] = decode(root / paths[row], size)

    return _each(paths, fill, root, progress, workers)


def _each(
    paths: Sequence[str],
    read: Callable[[int], None],
    root: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> list[str]:
    """Call read(row) for every path, in threads; a fault for each image that could not be read."""

    def work(start: int) -> list[str]:
        faults = []
        for row in range(start, min(start + _CHUNK, len(paths))):
            try:
                read(row)
            except UnreadableImage as error:
                faults.append(f"{root / paths[row]} is unreadable: {error}; replace it")
        return faults

    faults, done = [], 0
    pool = ThreadPoolExecutor(workers or cpus())
    try:
        for found in pool.map(work, range(0, len(paths), _CHUNK)):
            faults += found
            done = min(done + _CHUNK, len(paths))
            if progress:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
    return faults


def _shorten(faults: list[str]) -> list[str]:
    more = len(faults) - _SHOWN
    return faults if more <= 0 else [*faults[:_SHOWN], f"and {more} more images"]
