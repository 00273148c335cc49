"""A run on the terminal while it is under way, in the process that searches or in another one."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from search.follow import Follower
from search.journal import Event
from search.progress import TrialLines
from search.run_folder import RunFolder
from search.screen import Painter
from search.watch import SILENCE, Watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

log = logging.getLogger(__name__)
EVERY = 1.0  # seconds between two looks at the run
Clock = Callable[[], float]  # seconds since 1970, as the journal has them


class LiveView:
    """Draws a run on a terminal for as long as it is entered."""

    def __init__(
        self, watch: Watch, run: RunFolder, console: "Console", clock: Clock = time.time
    ) -> None:
        self._watch, self._console, self._clock = watch, console, clock
        self._painter = Painter(run)
        self._drawn = 0.0  # time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        # A thread of its own draws, and asks for the screen: a terminal that takes no output
        # (Ctrl-S, a frozen link) holds up that thread alone.
        self._screen = self._painter.screen(self._watch, self._clock())
        self._live = Live(
            get_renderable=lambda: self._screen, console=self._console, transient=True,
            refresh_per_second=1 / EVERY, vertical_overflow="crop",
            redirect_stderr=sys.stderr.isatty(),
        )  # fmt: skip
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._live is not None
        self._live.stop()
        self._live = None

    def hear(self, event: Event) -> None:
        """Draw what the watch knows by now, unless that was done a moment ago."""
        if time.monotonic() - self._drawn >= EVERY:
            self.draw()

    def draw(self) -> None:
        if self._live is not None:
            self._screen = self._painter.screen(self._watch, self._clock())
            self._drawn = time.monotonic()


def view_of(watch: Watch, run: RunFolder, clock: Clock = time.time) -> LiveView | TrialLines:
    """What shows a run on this process's output: a screen on a terminal, else calm lines."""
    from rich.console import Console

    console = Console()
    if _can_draw(console):
        return LiveView(watch, run, console, clock)
    return TrialLines(watch, clock=clock)


class Guarded:
    """A view whose errors (a terminal that is gone, a bug) never stop the search that it shows:
    the first ends the showing."""

    def __init__(self, view: LiveView | TrialLines) -> None:
        self._view, self._broken = view, False

    def __enter__(self) -> Self:
        self._try(self._view.__enter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._try(lambda: self._view.__exit__(kind, error, trace))

    def hear(self, event: Event) -> None:
        if not self._broken:
            self._try(lambda: self._view.hear(event))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception:
            self._broken = True
            log.debug("what shows the run failed", exc_info=True)


def follow(run: RunFolder, console: "Console", sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run that another process works on, from its files alone, until its trials have ended
    or Ctrl-C. Raises UserError when they are damaged."""
    follower = Follower(run)
    follower.update()
    try:
        if _can_draw(console):
            _draw(run, console, follower, sleep)
        else:
            _print(follower, sleep)
    except KeyboardInterrupt:
        return
    console.print(
        f"its trials have ended: python -m search.leaderboard {run.root}", soft_wrap=True,
        markup=False,
    )  # fmt: skip


def _draw(
    run: RunFolder, console: "Console", follower: Follower, sleep: Callable[[float], None]
) -> None:
    while True:
        with LiveView(follower.watch, run, console, follower.now) as view:
            watch = follower.watch
            while watch is follower.watch and not watch.over(follower.now()):
                sleep(EVERY)
                follower.update()
                view.draw()
        if watch is follower.watch:  # not when reading had to begin anew
            console.print(Painter(run).screen(watch, follower.now()))
            return


def _print(follower: Follower, sleep: Callable[[float], None]) -> None:
    while True:
        watch = follower.watch
        lines = TrialLines(watch, clock=follower.now)
        lines.beat()
        while watch is follower.watch and not watch.over(follower.now()):
            sleep(EVERY)
            follower.update(lines.hear)
            if lines.silent(SILENCE):  # a driver that died says nothing
                lines.beat()
        if watch is follower.watch:
            return


def _can_draw(console: "Console") -> bool:
    return console.is_terminal and not console.is_dumb_terminal
