"""--quiet: nothing on the terminal but the result, and what must be seen."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import TextIO

from search.terminal import alert, say

# How sentences begin that the user should not miss: warnings, and that the data are made up.
SEEN = ("warning: ", "No --data")


@contextmanager
def quiet(on: bool) -> Iterator[Callable[[str], None]]:
    """Within it, when `on`, nothing is printed on stdout; yields what says a sentence, of which
    warnings are then told on stderr."""
    if not on:
        yield say
        return
    with redirect_stdout(_nowhere()):
        yield lambda text: alert(text) if text.startswith(SEEN) else None


@cache
def _nowhere() -> TextIO:
    """Open to the end: whoever took it for stdout may write to it later."""
    return open(os.devnull, "w", encoding="utf-8")
