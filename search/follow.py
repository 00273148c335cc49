"""A run's journal read while another process, here or on another host, writes it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from search.journal import Event, Torn, parse, read_events
from search.run_folder import RunFolder
from search.watch import Watch
from spaces.errors import UserError


class Tail:
    """The journal of another process, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = self._seq = 0  # bytes and events read so far

    def new(self) -> list[Event] | None:
        """Events since the last call; a last line that is not whole yet is left for later. None:
        the file is no longer what was read of it, so that reading must begin anew.

        Raises UserError for a damaged line before the last, or another format version.
        """
        if not self._offset:
            try:
                events, self._offset = read_events(self._path)
            except OSError as error:
                raise UserError(f"{self._path} cannot be read: {error.strerror}") from None
            self._seq = len(events)
            return events
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    return None
                file.seek(self._offset)
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return None
        except OSError:  # a shared folder that is away for a moment
            return []
        events = []
        for place, line in enumerate(lines, start=1):
            try:
                event = parse(self._path, self._seq + 1, line)
            except Torn:
                if place == len(lines):
                    break
                return None
            except UserError:
                return None  # what is wrong is told by whoever begins anew
            if event.seq != self._seq:
                return None
            events.append(event)
            self._seq += 1
            self._offset += len(line) + 1
        return events


class Follower:
    """A watch on a run whose journal another process may be writing."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._ahead: float | None = None  # seconds by which this host's clock is ahead, at most
        self._begin()

    def now(self) -> float:
        """Seconds since 1970 by the clock of the host that searches, as far as can be told: what is
        new is heard soon after it was written, however far apart the clocks are."""
        ahead = self._ahead if self._ahead is not None else 0.0
        return max(time.time() - ahead, self.watch.last)

    def update(self, listener: Callable[[Event], None] = lambda event: None) -> None:
        """Read what is new; the listener hears each event after the watch, which is another one
        when reading had to begin anew: then it hears nothing.

        Raises UserError for a journal that is damaged or of another format version.
        """
        first = not self.watch.last
        events = self._tail.new()
        if events and not first:
            ahead = time.time() - events[-1].time
            self._ahead = ahead if self._ahead is None else min(self._ahead, ahead)
        if events is None:  # such as a line that was taken back, since the disk was full
            self._begin()
            events, listener = self._tail.new() or [], lambda event: None
        for event in events:
            self.watch.hear(event)
            listener(event)

    def _begin(self) -> None:
        self.watch, self._tail = Watch.of(self._run), Tail(self._run.journal)
