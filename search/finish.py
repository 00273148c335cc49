"""What a run is worth at any moment: leaderboard, ensemble, bundle and submission.

Refreshed in the background as members finish, and once more at the end. Right after that, while
no ensemble is being built, the checkpoints that take more room than they may are deleted.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from search.leaderboard import write_leaderboard
from search.policy.retention import to_delete
from search.run_folder import RunFolder
from search.terminal import say
from search.trials import FINISHED

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.build import BuildResult

log = logging.getLogger(__name__)
SHARE = 0.1  # of the run's time that refreshing may take


def publish(
    run: RunFolder, frame: "pd.DataFrame", keep_gb: float | None = None
) -> "BuildResult | None":
    """Write the leaderboard and, when there is a member, ensemble, bundle and submission.

    With `keep_gb`, delete the checkpoints of the worst trials beyond that many 10^9 bytes.
    """
    from ensemble.build import build

    write_leaderboard(run, frame)
    if not run.members():
        return None
    built = build(run)
    if keep_gb is not None:
        _retain(run, frame, built, keep_gb)
    return built


def _retain(run: RunFolder, frame: "pd.DataFrame", built: "BuildResult", keep_gb: float) -> None:
    """Delete checkpoints of finished trials, the worst first, but those of the ensemble's members
    and of the best single trial; say so."""
    from ensemble.build import building

    finished = frame[(frame["kind"] == "trial") & (frame["state"] == FINISHED)]
    best_first = finished.sort_values(["score", "trial"], ascending=[False, True])
    ranking = [int(trial) for trial in best_first["trial"]]
    origins = [built.choice.pool.members[m].origin for m in built.choice.blend.members]
    protected = {origin.trial for origin in origins if origin is not None} | set(ranking[:1])
    with building(run):  # a person may build by hand meanwhile
        for trial in run.without_models():
            run.drop_models(trial)  # what a deletion that was cut short left
        sizes = run.model_bytes()
        doomed = to_delete(sizes, ranking, protected, int(keep_gb * 1e9))
        for trial in doomed:
            run.drop_models(trial)
    if doomed:
        left = (sum(sizes.values()) - sum(sizes[trial] for trial in doomed)) / 1e9
        say(
            f"checkpoints deleted of {len(doomed)} of {len(ranking)} finished trials, from rank "
            f"{ranking.index(doomed[-1]) + 1} down: --keep-gb {keep_gb:g}, {left:.2f} GB are left"
        )


class Refresher:
    """Publishes in a thread of its own; asked again meanwhile, it publishes the newest state."""

    def __init__(
        self, run: RunFolder, frame: Callable[[], "pd.DataFrame"], keep_gb: float | None = None
    ) -> None:
        """`frame` makes the rows of the leaderboard; it is called in the asking thread."""
        self._run, self._make_frame, self._keep_gb = run, frame, keep_gb
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
                publish(self._run, frame, self._keep_gb)
            except Exception:
                # The last publishing, at the end of the run, raises; this one may be tried again.
                log.exception("refreshing leaderboard and ensemble failed")
            rest = (time.monotonic() - started) / SHARE
