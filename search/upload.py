"""A run that goes on is copied to a URL, from which it can be resumed when this machine is lost.

Object stores have no append, no rename and no lock, so the run lives on the driver's disk and a
thread copies it: first new and changed files, then a segment of the journal's new lines, then the
manifest that names them all (see download.py), and only then what was deleted here is deleted
there. Files and journal are of one moment: whatever the manifest's events speak of is among its
files. Epoch checkpoints go there more rarely: a lost driver costs the epochs of EPOCHS seconds.
"""

import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from search.data.remote import Place, Remote, in_parallel
from search.download import JOURNAL, MANIFEST, Manifest, begins_with, read_manifest, segment
from search.journal import Event, Journal
from search.run_folder import RunFolder
from spaces.errors import UserError

log = logging.getLogger(__name__)

PAUSE = 5.0  # seconds between two looks at the run
EPOCHS = 600.0  # seconds between two copies of one fold's epoch checkpoint
AT_ONCE = 4  # files copied at the same time: trials need the network and the cores too
LAST_TRIES, LAST_PAUSE = 4, 10.0  # at the end of the run: how often, and seconds in between
_LOOKS = 50  # at a run that changes all the time
LEFT_OUT = (JOURNAL, "tensorboard")  # sent in segments; grows all the time, made from the journal
_GONE = Remote(-1, -1)  # of a file that may lie there and is to be deleted
_EPOCH = re.compile(r"work/[^/]+/epoch-\d+\.safetensors")


class Superseded(UserError):
    """Another process copies its run to this URL."""


class _File(NamedTuple):
    """A file of the run on this disk."""

    facts: Remote
    inode: tuple[int, int]  # with its device: the same for hard links to one file


class _Moment(NamedTuple):
    """The run at one moment."""

    seen: dict[str, _File]  # what is here
    files: dict[str, Remote]  # what shall lie at the URL
    changed: list[str]  # those of them that do not lie there yet
    events: int  # of the journal


class Uploader:
    """Copies a run to a URL while it goes on. A failing copy never stops the run."""

    def __init__(
        self, run: RunFolder, url: str, journal: Journal, tell: Callable[[str], None]
    ) -> None:
        """Takes the URL over for this process. `tell` speaks to the user.

        Raises UserError when the URL cannot be written to, and when the run that lies there is
        another one or went on without this folder.
        """
        self._run, self._place, self._tell = run, Place(url), tell
        there = read_manifest(self._place)
        if there and not begins_with(run.journal, there):
            raise UserError(
                f"{url} holds another run than {run.root}, or this one went on from there in "
                f"another place; --resume {url} goes on from there. To go on here without a copy "
                f"at the URL, delete {run.url}"
            )
        there = there or Manifest(writer="")
        self._there = replace(there, writer=uuid.uuid4().hex)
        self._place.write(MANIFEST, self._there.to_json())
        # What lies there, named by the manifest or not yet or not any more.
        self._sent = there.files | dict.fromkeys(there.gone, _GONE)
        self._sha256 = sha256(run.journal.read_bytes()[: there.journal_bytes])
        self._epochs: dict[str, float] = {}  # when epoch checkpoints were copied or first seen
        self._heard = len(journal.events)
        journal.listen(self._hear, replay=False)
        self._failing = False
        self._superseded: str | None = None  # by whom the URL was taken over
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="upload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, flush: bool = True) -> str | None:
        """End the copying, with `flush` after all that is here is there; what went wrong with that,
        if anything did."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        fault = self._superseded
        for attempt in range(LAST_TRIES if flush else 0):
            if self._superseded:
                break
            if attempt:
                time.sleep(LAST_PAUSE)
            fault = self.copy(everything=True)
            if fault is None:
                self._tell(f"all of the run is at {self._place.url}")
                break
        shutil.rmtree(self._run.staging, ignore_errors=True)
        if fault is None:
            return None
        return (
            f"the run is whole in {self._run.root}, but not at {self._place.url}: {fault}; mend "
            f"this and --resume {self._run.root} to copy the rest"
        )

    def _hear(self, event: Event) -> None:
        self._heard = event.seq + 1  # written to the disk, and nothing was deleted after it yet

    def _loop(self) -> None:
        while not self._superseded and not self._closing.wait(PAUSE):
            self.copy()

    def copy(self, everything: bool = False) -> str | None:
        """Bring what lies there up to now, with `everything` epoch checkpoints too; what went
        wrong, if anything did. Tells it the first time. The thread calls it again and again."""
        try:
            if not self._bring_up(everything):
                return "the run changed all the time"
        except Superseded as error:
            self._superseded = str(error)
            self._tell(f"{error}; nothing more is copied")
            return self._superseded
        except Exception as error:
            if not isinstance(error, UserError | OSError):
                log.exception("copying the run failed")
            fault = str(error) or type(error).__name__
            if not self._failing:
                self._tell(f"not copied to {self._place.url} for now, it is tried again: {fault}")
            self._failing = True
            return fault
        if self._failing:
            self._tell(f"copied to {self._place.url} again")
        self._failing = False
        return None

    def _bring_up(self, everything: bool) -> bool:
        """Copy what is new and delete what is gone; whether a moment was found to copy."""
        now = self._moment(everything)
        if now is None:
            return False
        gone = [name for name in self._sent if name not in now.files]
        lines = self._lines(now.events)
        if not (now.changed or gone or lines):
            return True
        self._need_ours()
        self._send(now)
        there = replace(
            self._there, files=now.files, gone=tuple(gone), events=now.events,
            segments=self._there.segments + bool(lines),
            journal_bytes=self._there.journal_bytes + len(lines),
        )  # fmt: skip
        digest = self._sha256.copy()
        digest.update(lines)
        there = replace(there, journal_sha256=digest.hexdigest())
        if lines:
            self._place.write(segment(there.segments), lines)
        self._need_ours()  # much may have been sent since
        self._place.write(MANIFEST, there.to_json())
        self._there, self._sha256 = there, digest
        in_parallel(self._delete, gone, AT_ONCE)
        return True

    def _need_ours(self) -> None:
        """Raises Superseded when somebody else took the URL over: a run that was resumed elsewhere
        must not be damaged by a driver that was cut off and comes back."""
        there = read_manifest(self._place)
        if there is None or there.writer != self._there.writer:
            raise Superseded(
                f"another process copies to {self._place.url}, or what lay there was deleted"
            )

    # -- what there is to copy -------------------------------------------------------------------

    def _moment(self, everything: bool) -> _Moment | None:
        """The run at one moment, with links to what must be copied, which nobody deletes; None when
        it changed at every look.

        Files are deleted after the event that tells it, and are there before it. So what is seen
        twice, with no event in between, is what the journal speaks of.
        """
        for _ in range(_LOOKS):
            events, seen = self._heard, self._list()
            files = self._due(seen, everything)
            changed = [name for name, facts in files.items() if self._sent.get(name) != facts]
            if not changed and (files, events) == (self._there.files, self._there.events):
                return _Moment(seen, files, changed, events)  # as it lies there
            try:
                self._link(changed)
            except FileNotFoundError:
                continue
            if self._list() == seen and self._heard == events:
                return _Moment(seen, files, changed, events)
        return None

    def _list(self) -> dict[str, _File]:
        """All files of the run but its journal, hidden ones, and what workers have begun."""
        found: dict[str, _File] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._run.root / folder) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.name.startswith(".") or name in LEFT_OUT:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif not folder.startswith("work/") or _EPOCH.fullmatch(name):
                            stat = entry.stat()
                            facts = Remote(stat.st_size, stat.st_mtime_ns)
                            found[name] = _File(facts, (stat.st_dev, stat.st_ino))
            except FileNotFoundError:  # deleted meanwhile: the next look differs
                continue
        return found

    def _due(self, seen: dict[str, _File], everything: bool) -> dict[str, Remote]:
        """What shall lie there: all that was seen, but epoch checkpoints that are not due yet as
        they lie there, if they do."""
        now = time.monotonic()
        self._epochs = {n: self._epochs.get(n, now) for n in seen if _EPOCH.fullmatch(n)}
        files = {name: file.facts for name, file in seen.items()}
        for name, since in self._epochs.items():
            if everything or now - since >= EPOCHS:
                continue
            del files[name]
            if self._sent.get(name, _GONE) != _GONE:
                files[name] = self._sent[name]
        return files

    def _link(self, changed: list[str]) -> None:
        """Hold what is to be copied, in files named by its places in the list. Raises
        FileNotFoundError when one is gone."""
        staging = self._run.staging
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for number, name in enumerate(changed):
            source, held = self._run.root / name, staging / str(number)
            try:
                os.link(source, held)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links
                shutil.copyfile(source, held)

    def _lines(self, events: int) -> bytes:
        """The journal's lines that are not there yet, of as many events."""
        with open(self._run.journal, "rb") as file:
            file.seek(self._there.journal_bytes)
            lines = file.read().splitlines(keepends=True)
        return b"".join(lines[: events - self._there.events])

    # -- copying ---------------------------------------------------------------------------------

    def _send(self, now: _Moment) -> None:
        """Copy what has changed. A bundle's models are links to those of its members: what lies
        there under another name is copied there."""
        lies = {f.inode: name for name, f in now.seen.items() if self._sent.get(name) == f.facts}
        puts: list[tuple[int, str]] = []
        twins: list[tuple[str, str]] = []
        for number, name in enumerate(now.changed):
            twin = lies.setdefault(now.seen[name].inode, name)
            if twin == name:
                puts.append((number, name))
            else:
                twins.append((twin, name))

        def put(item: tuple[int, str]) -> None:
            number, name = item
            self._place.put(self._run.staging / str(number), name)
            self._note(name, now)

        def link(item: tuple[str, str]) -> None:
            twin, name = item
            self._place.copy(twin, name)
            self._note(name, now)

        in_parallel(put, puts, AT_ONCE)
        in_parallel(link, twins, AT_ONCE)

    def _note(self, name: str, now: _Moment) -> None:
        self._sent[name] = now.files[name]
        if name in self._epochs:
            self._epochs[name] = time.monotonic()

    def _delete(self, name: str) -> None:
        self._place.delete(name)
        del self._sent[name]
