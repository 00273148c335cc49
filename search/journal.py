"""The journal: an append-only log of decisions and results, the only truth about a run.

One JSON object a line: format, sequence number, time, kind, trial, attempt, and the payload. A line
is on disk (fsync) before the decision takes effect. A torn last line (the process died while
writing) is dropped on reading; any other damage is an error.

The sequence number orders the events. Their times are for people and for the seconds that a session
took: within a session they advance by a clock that never jumps.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.run_folder import check_format
from spaces.errors import UserError

FORMAT = 2  # version of the lines


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line. `trial` and `attempt` are -1 for what concerns the run as a whole."""

    seq: int
    time: float  # seconds since 1970
    kind: str
    trial: int = -1
    attempt: int = -1
    data: dict[str, Any]


def read_events(path: Path) -> tuple[list[Event], int]:
    """All whole events, and the length in bytes of the readable part.

    Raises UserError for a damaged line that is not the last, or another format version.
    """
    raw = path.read_bytes() if path.exists() else b""
    lines = raw.split(b"\n")
    events: list[Event] = []
    good = 0
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            event = parse(path, number, line)
        except Torn as error:
            # A crash of the machine may leave a last line of zeros: that is torn as well.
            if number == len(lines) - 1:
                break
            raise _damaged(path, number, error) from None
        if event.seq != len(events):
            raise UserError(f"{path} line {number}: sequence {event.seq} is out of order")
        events.append(event)
        good += len(line) + 1
    return events, good


class Torn(ValueError):
    """What was written of a line when its writer died."""


def parse(path: Path, number: int, line: bytes) -> Event:
    """The event of one line, without its end.

    Raises Torn for what is no whole line, UserError for one that is damaged or of another format
    version.
    """
    try:
        record = _parsed(line.decode())  # bytes as they are would be searched for UTF-16
        written_in = record.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Torn(str(error)) from None
    # Told apart from damage: what another version wrote may have any fields.
    check_format(path, written_in, FORMAT)
    try:
        event = Event(**record)
        whole = event.trial, event.attempt  # they name folders
        if not all(isinstance(value, int) for value in whole):
            raise TypeError(f"trial and attempt are {whole}, which are no whole numbers")
    except TypeError as error:
        raise _damaged(path, number, error) from None
    return event


def _parsed(line: str) -> Any:
    """JSON whose keys are one object for all lines: a long run keeps hundreds a trial."""
    return json.loads(
        line, object_pairs_hook=lambda pairs: {sys.intern(name): value for name, value in pairs}
    )


def _damaged(path: Path, number: int, error: Exception) -> UserError:
    return UserError(f"{path} line {number} is damaged ({error}); restore the file from a copy")


def elapsed(events: Iterable[Event]) -> Iterator[float]:
    """Seconds that the sessions took until each event, each from its first event on.

    Whatever lies between two sessions does not count, nor what the wall clock did there.
    """
    used, begin, last = 0.0, 0.0, 0.0
    for event in events:
        if event.kind == "session":
            used += last - begin
            begin = event.time
        last = event.time
        yield used + last - begin


def seconds_used(events: Iterable[Event]) -> float:
    """Seconds that the sessions took, see `elapsed`."""
    return next(iter(deque(elapsed(events), maxlen=1)), 0.0)


class Journal:
    """Appends events and hands each to its listeners, live and on replay alike."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listeners: list[Callable[[Event], None]] = []
        self.events, good = read_events(path)
        # Unbuffered: a line that a full disk refused must not follow later behind our back.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open for the run's whole life)
        self._file.truncate(good)
        self._length = good  # bytes of whole lines
        # The wall clock may jump (NTP, summer time, a suspended machine): it is read once.
        self._epoch = time.time() - time.monotonic()

    def listen(self, listener: Callable[[Event], None], replay: bool = True) -> None:
        """Call `listener` for every new event; with `replay` first for all past ones."""
        for event in self.events if replay else ():
            listener(event)
        self._listeners.append(listener)

    def now(self) -> float:
        """Seconds since 1970, by the clock of the events' times."""
        return self._epoch + time.monotonic()

    def append(self, kind: str, trial: int = -1, attempt: int = -1, **data: Any) -> Event:
        """Write an event to the disk, then tell the listeners.

        Raises OSError when it cannot be written (a full disk): then nothing of it is left in the
        file, nobody has heard of it, and it may be tried again.
        """
        event = Event(
            seq=len(self.events), time=self.now(), kind=kind, trial=trial,
            attempt=attempt, data=data,
        )  # fmt: skip
        line = json.dumps({"format": FORMAT, **event.__dict__}, separators=(",", ":"))
        self._write(line.encode() + b"\n")
        # What is heard is what a replay would hear: plain JSON data, keys as strings.
        event = Event(**{k: v for k, v in _parsed(line).items() if k != "format"})
        self.events.append(event)
        for listener in self._listeners:
            listener(event)
        return event

    def _write(self, line: bytes) -> None:
        rest = line
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:  # Ctrl-C as well: what is heard of no event must not be in the file
            self._file.truncate(self._length)
            raise
        self._length += len(line)

    def close(self) -> None:
        self._file.close()
