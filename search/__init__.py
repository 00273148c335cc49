"""Run the search: data, training of one fold, Ray Tune around it, leaderboard.

For notebooks: `from search import Run`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.api import Run

__all__ = ["Run"]


def __getattr__(name: str) -> Any:
    """`Run` is imported when it is asked for: importing a module of this package stays light."""
    if name != "Run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from search.api import Run

    return Run
