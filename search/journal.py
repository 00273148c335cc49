"""The journal: an append-only log of decisions and results, the only truth about a run.

One JSON object a line: format, sequence number, time, kind, trial, attempt, and the payload. A line
is flushed and fsynced before the decision takes effect. A torn last line (the process died while
writing) is dropped on reading; any other damage is an error.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.run_folder import FORMAT
from spaces.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line. `trial` and `attempt` are -1 for what concerns the run as a whole."""

    seq: int
    time: float  # seconds since the epoch
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
            record = json.loads(line)
            if record.pop("format") != FORMAT:
                raise UserError(f"{path} line {number} is of another format version")
            events.append(Event(**record))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            # A crash of the machine may leave a last line of zeros: that is torn as well.
            if number == len(lines) - 1:
                break
            raise UserError(
                f"{path} line {number} is damaged ({error}); restore the file from a copy"
            ) from None
        if events[-1].seq != len(events) - 1:
            raise UserError(f"{path} line {number}: sequence {events[-1].seq} is out of order")
        good += len(line) + 1
    return events, good


class Journal:
    """Appends events and hands each to its listeners, live and on replay alike."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listeners: list[Callable[[Event], None]] = []
        self.events, good = read_events(path)
        self._file = open(path, "ab")  # noqa: SIM115 (open for the run's whole life)
        self._file.truncate(good)

    def listen(self, listener: Callable[[Event], None], replay: bool = True) -> None:
        """Call `listener` for every new event; with `replay` first for all past ones."""
        for event in self.events if replay else ():
            listener(event)
        self._listeners.append(listener)

    def append(self, kind: str, trial: int = -1, attempt: int = -1, **data: Any) -> Event:
        event = Event(
            seq=len(self.events), time=time.time(), kind=kind, trial=trial, attempt=attempt,
            data=data,
        )  # fmt: skip
        line = json.dumps({"format": FORMAT, **event.__dict__}, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        # What is heard is what a replay would hear: plain JSON data, keys as strings.
        event = Event(**{k: v for k, v in json.loads(line).items() if k != "format"})
        self.events.append(event)
        for listener in self._listeners:
            listener(event)
        return event

    def close(self) -> None:
        self._file.close()
