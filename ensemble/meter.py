"""Progress: who is told of it, and a line with the time left over kinds of work in turns."""

import sys
import time
from collections.abc import Callable, Mapping

Tell = Callable[[int, int, str], None]  # steps done, all steps, what comes next


def silent(done: int, steps: int, what: str) -> None:
    """A `Tell` that tells nobody."""


class Meter:
    """On a terminal the line is drawn in place, else one is printed now and then.

    The pace of each kind of work is measured by itself: decoding an image says nothing about how
    long predicting it takes. The time left is told once all paces are known.
    """

    def __init__(self, totals: Mapping[str, int]) -> None:
        """`totals`: what is to be done of each kind, by its name in the line."""
        self._totals = dict(totals)
        self._done = dict.fromkeys(totals, 0)
        self._seconds = dict.fromkeys(totals, 0.0)
        self._place = sys.stderr.isatty()
        self._last = time.monotonic()
        self._next = self._last + self._pause

    @property
    def _pause(self) -> float:
        return 0.2 if self._place else 10

    def add(self, kind: str, count: int) -> None:
        """`count` more of this kind are done, and all time since the last call was spent on it."""
        now = time.monotonic()
        self._done[kind] += count
        self._seconds[kind] += now - self._last
        self._last = now
        ended = self._done == self._totals
        if now >= self._next or ended:
            self._next = now + self._pause
            end = "\n" if ended or not self._place else "\r"
            print(f"{self.line()}   ", end=end, file=sys.stderr, flush=True)

    def line(self) -> str:
        parts = [f"{kind} {self._done[kind]}/{total}" for kind, total in self._totals.items()]
        if (left := self._left()) is not None:
            parts.append(f"{left:.0f} s left")
        return ", ".join(parts)

    def _left(self) -> float | None:
        """Seconds; None while some kind of work has not begun."""
        if not all(self._done[kind] for kind, total in self._totals.items() if total):
            return None
        return sum(
            self._seconds[kind] / self._done[kind] * (total - self._done[kind])
            for kind, total in self._totals.items()
            if total
        )
