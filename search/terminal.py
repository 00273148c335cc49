"""The terminal: lines of at most 80 columns, and a progress bar where somebody watches."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[int, int], None]  # (done, total)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a sentence, wrapped at 80 columns; to stdout when no file is given."""
    lines = text.splitlines() or [""]
    for line in lines:
        wrapped = textwrap.fill(line, 80, subsequent_indent="  ", break_on_hyphens=False)
        print(wrapped, file=file, flush=True)


def alert(text: str) -> None:
    """Say what must be seen: on stderr, also under --quiet."""
    say(text, sys.stderr)


@contextmanager
def progress_bar(what: str) -> Iterator[Advance | None]:
    """A callback that draws a bar with an ETA on a terminal; None elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console()
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
