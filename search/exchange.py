"""What a worker reads and writes of its run: in the run's own folder where its host sees that, else
in a folder of its own, with the driver's host giving what is read and taking what is written.

Nothing here knows how the two hosts talk: a Keeper is called as if it were here.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from search.run_folder import RunFolder, write_file, write_text

PIECE = 16 * 2**20  # bytes that are sent at a time


class Unreachable(RuntimeError):
    """The driver's host does not answer: nothing is wrong with what was being done."""


class Keeps(Protocol):
    """A Keeper, or what passes calls on to one on another host. Raises Unreachable there."""

    def size(self, path: str) -> int | None: ...
    def read(self, path: str, offset: int) -> bytes: ...
    def write(self, path: str, offset: int, piece: bytes, last: bool) -> None: ...


class Keeper:
    """On the driver's host: reads files of the run, and writes below its work folder, for workers
    that do not see them. Files of several workers may come at the same time."""

    def __init__(self, run: str, others: Sequence[str] = ()) -> None:
        """`others`: further files, and folders with all that is in them, that may be read."""
        self._run = Path(run).resolve()
        self._work = self._run / "work"
        self._readable = [self._run, *(Path(path).resolve() for path in others)]

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when there is none. Raises ValueError for one that nobody needs."""
        file = Path(path).resolve()
        if not any(file.is_relative_to(readable) for readable in self._readable):
            raise ValueError(f"{path} is none of the run's files")
        return file.stat().st_size if file.is_file() else None

    def read(self, path: str, offset: int) -> bytes:
        """At most PIECE bytes from `offset` on."""
        self.size(path)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(PIECE)

    def write(self, path: str, offset: int, piece: bytes, last: bool) -> None:
        """Put a piece of a file in its place; with the last one the file is there, whole. The same
        piece may come twice. Raises ValueError outside of the run's work folder, and OSError when
        the pieces before are not there."""
        file = Path(path).resolve()
        if not file.is_relative_to(self._work):
            raise ValueError(f"{path} is not below {self._work}, where workers write")
        file.parent.mkdir(parents=True, exist_ok=True)
        # Hidden, as all half-written files of a run are. An attempt has one writer.
        partial = file.with_name(f".{file.name}.partial")
        there = file.stat().st_size if file.is_file() and not partial.exists() else -1
        if offset and last and there == offset + len(piece):
            return  # the answer to the last piece got lost, and it comes again
        with open(partial, "r+b" if offset else "wb") as target:
            target.seek(offset)
            target.write(piece)
            target.truncate()
            if last:
                target.flush()
                os.fsync(target.fileno())
        if last:
            os.replace(partial, file)


def mark(run: RunFolder) -> str:
    """Leave a word in the run's folder by which hosts tell it from another one at the same path."""
    word = os.urandom(16).hex()
    write_text(run.mark, word)
    return word


class Exchange:
    """A worker's side. `run` is the folder in which it finds and leaves the run's files: the run's
    own, or one of this host."""

    def __init__(self, run: str, word: str, keeper: Keeps | None) -> None:
        """`run`: the run's folder on the driver's host, marked with `word`. Without a keeper the
        host is known to see it."""
        self._origin, self._keeper = Path(run), keeper
        self.in_place = keeper is None or _reads(RunFolder(self._origin).mark, word)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        root = self._origin
        if not self.in_place:
            self._scratch = tempfile.TemporaryDirectory(
                prefix="rungfold-worker-", ignore_cleanup_errors=True
            )
            root = Path(self._scratch.name)
        self.run = RunFolder(root)

    def fetch(self, path: Path) -> bool:
        """Have a file of `run` here as it is there now; whether there is one."""
        return path.is_file() if self.in_place else self.receive(self._there(path), path)

    def send(self, *paths: Path) -> None:
        """Files of `run`, written whole, are there from now on, in this order."""
        if self.in_place:
            return
        assert self._keeper is not None
        for path in paths:
            there, offset, left = str(self._there(path)), 0, path.stat().st_size
            with open(path, "rb") as file:
                while True:
                    piece = file.read(PIECE)
                    left -= len(piece)
                    self._keeper.write(there, offset, piece, left <= 0)
                    offset += len(piece)
                    if left <= 0:
                        break
            path.unlink()  # what is needed again is fetched: it may be another host that needs it

    def forget(self, path: Path) -> None:
        """A file of `run` that was fetched is not needed again."""
        if not self.in_place:
            path.unlink(missing_ok=True)

    def receive(self, there: Path, here: Path) -> bool:
        """Copy a file of the driver's host to `here`; whether there is one."""
        keeper = self._keeper
        if keeper is None or (size := keeper.size(str(there))) is None:
            return False

        def fill(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                while file.tell() < size:
                    piece = keeper.read(str(there), file.tell())
                    if not piece:
                        raise Unreachable(f"{there} became shorter while it was read")
                    file.write(piece)

        write_file(here, fill)
        return True

    def outside(self, path: Path) -> Path:
        """A file beside the run that every host needs: itself where it is seen, else a copy."""
        if self.in_place and path.is_file():
            return path
        copy = self.run.root / "outside" / path.relative_to(path.anchor)
        if not copy.is_file() and not self.receive(path, copy):
            return path  # whoever opens it says what is wrong
        return copy

    def close(self) -> None:
        """Delete this host's copies."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def _there(self, path: Path) -> Path:
        return self._origin / path.relative_to(self.run.root)


def _reads(path: Path, word: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == word
    except (OSError, UnicodeDecodeError):
        return False
