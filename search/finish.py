"""What a run is worth at any moment: leaderboard, ensemble, bundle and submission.

Refreshed in the background as members finish, and once more at the end.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from search.leaderboard import write_leaderboard
from search.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.build import BuildResult

log = logging.getLogger(__name__)
SHARE = 0.1  # of the run's time that refreshing may take


def publish(run: RunFolder, frame: "pd.DataFrame") -> "BuildResult | None":
    """Write the leaderboard and, when there is a member, ensemble, bundle and submission."""
    from ensemble.build import build

    write_leaderboard(run, frame)
    return build(run) if run.members() else None


class Refresher:
    """Publishes in a thread of its own; asked again meanwhile, it publishes the newest state."""

    def __init__(self, run: RunFolder, frame: Callable[[], "pd.DataFrame"]) -> None:
        """`frame` makes the rows of the leaderboard; it is called in the asking thread."""
        self._run, self._make_frame = run, frame
        self._newest: pd.DataFrame | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="refresh", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        frame = self._make_frame()
        with self._wake:
            self._newest = frame
            self._wake.notify()

    def close(self) -> None:
        """Wait for what is being published; then nothing more is."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        rest = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._newest is not None)
                # Big ensembles take long to build: leave the cores to the trials in between.
                self._wake.wait_for(lambda: self._closed, timeout=rest)
                if self._closed:
                    return
                frame, self._newest = self._newest, None
            assert frame is not None
            started = time.monotonic()
            try:
                publish(self._run, frame)
            except Exception:
                # The last publishing, at the end of the run, raises; this one may be tried again.
                log.exception("refreshing leaderboard and ensemble failed")
            rest = (time.monotonic() - started) / SHARE
