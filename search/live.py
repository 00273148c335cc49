"""A run on the terminal while it is under way, in the process that searches or in another one."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from search.follow import Follower
from search.journal import Event
from search.progress import TrialLines
from search.run_folder import RunFolder
from search.screen import Painter
from search.watch import Watch

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

EVERY = 1.0  # seconds between two looks at the run


class LiveView:
    """Draws a run on a terminal for as long as it is entered."""

    def __init__(self, watch: Watch, run: RunFolder, console: "Console") -> None:
        self._watch, self._console = watch, console
        self._painter = Painter(run)
        self._drawn = 0.0  # time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        # Drawn again by a thread of its own, for the clocks; what it draws does not change.
        self._live = Live(
            self._painter.screen(self._watch), console=self._console, transient=True,
            refresh_per_second=1 / EVERY, vertical_overflow="crop",
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
            self._live.update(self._painter.screen(self._watch))
            self._drawn = time.monotonic()


def view_of(watch: Watch, run: RunFolder) -> LiveView | TrialLines:
    """What shows a run on this process's output: a screen on a terminal, else calm lines."""
    from rich.console import Console

    console = Console()
    return LiveView(watch, run, console) if _can_draw(console) else TrialLines(watch)


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
        with LiveView(follower.watch, run, console) as view:
            watch = follower.watch
            while watch is follower.watch and not watch.over(time.time()):
                sleep(EVERY)
                follower.update()
                view.draw()
        if watch is follower.watch:  # not when reading had to begin anew
            console.print(Painter(run).screen(watch))
            return


def _print(follower: Follower, sleep: Callable[[float], None]) -> None:
    while True:
        watch = follower.watch
        lines = TrialLines(watch)
        lines.beat()
        while watch is follower.watch and not watch.over(time.time()):
            sleep(EVERY)
            follower.update(lines.hear)
        if watch is follower.watch:
            return


def _can_draw(console: "Console") -> bool:
    return console.is_terminal and not console.is_dumb_terminal
