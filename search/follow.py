"""A run's journal read while another process, here or on another host, writes it."""

import os
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
            events, self._offset = read_events(self._path)
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
        self._begin()

    def update(self, listener: Callable[[Event], None] = lambda event: None) -> None:
        """Read what is new; the listener hears each event after the watch, which is another one
        when reading had to begin anew: then it hears nothing.

        Raises UserError for a journal that is damaged or of another format version.
        """
        events = self._tail.new()
        if events is None:  # such as a line that was taken back, since the disk was full
            self._begin()
            events, listener = self._tail.new() or [], lambda event: None
        for event in events:
            self.watch.hear(event)
            listener(event)

    def _begin(self) -> None:
        self.watch, self._tail = Watch.of(self._run), Tail(self._run.journal)
