"""Writing where others may write too: room on disk, asked for first, and one writer at a time."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from spaces.errors import UserError

log = logging.getLogger(__name__)


def need_space(path: Path, needed: int, what: str) -> None:
    """Raise UserError unless the disk that holds (or will hold) `path` has `needed` bytes free for
    `what`."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {_gb(needed)}, but {folder} has {_gb(free)} free; "
            "free some space or choose another folder"
        )


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock beside `folder`; who had to wait for it should look again whether `what`, as
    the log calls it, is there by now."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that writes the %s in %s", what, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def only_process(lock: Path, folder: Path) -> FileLock:
    """The lock that a process holds while it works on `folder`. Raises UserError when another one
    holds it."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process works on {folder}; wait for it or stop it") from None
    return held


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
