"""What a run is worth at any moment: leaderboard, ensemble, bundle and submission.

Refreshed in the background as members finish, and once more at the end. Right after that, while
no ensemble is being built, the checkpoints that take more room than they may are deleted. At the
very end comes report.html.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from search.journal import Event
from search.leaderboard import write_leaderboard
from search.policy.retention import to_delete
from search.run_folder import RunFolder
from search.terminal import alert, say
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


def report(run: RunFolder) -> None:
    """Write report.html and say where; pictures that fail never cost a run its end."""
    from search.report.page import write_report

    try:
        print(f"report: {write_report(run)}", flush=True)
    except Exception as error:
        log.debug("the report failed", exc_info=True)
        alert(
            f"the report could not be written ({type(error).__name__}: {error}); mend what is "
            f"wrong, then: python -m search.report {run.root}"
        )


class Refresher:
    """Publishes in a thread of its own, at most a share of the time, after members have finished.

    Rows are made where the journal is heard, since trials change there, and only when they are
    published next: all rows for every member would take longer and longer.
    """

    def __init__(
        self, run: RunFolder, frame: Callable[[], "pd.DataFrame"], keep_gb: float | None = None
    ) -> None:
        """`frame` makes the rows of the leaderboard; it is called in the hearing thread."""
        self._run, self._make_frame, self._keep_gb = run, frame, keep_gb
        self._news = False  # a member has finished that was in no frame
        self._frame: pd.DataFrame | None = None  # to be published
        self._free = True  # nothing is being published, and that was long enough ago
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="refresh", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        self._news |= event.kind == "end" and event.data["state"] == FINISHED
        if self._news and self._free:
            frame = self._make_frame()
            with self._wake:
                self._news, self._free, self._frame = False, False, frame
                self._wake.notify()

    def close(self) -> None:
        """Wait for what is being published; then nothing more is."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._frame is not None)
                if self._closed:
                    return
                frame, self._frame = self._frame, None
            assert frame is not None
            started = time.monotonic()
            try:
                publish(self._run, frame, self._keep_gb)
            except Exception:
                # The last publishing, at the end of the run, raises; this one may be tried again.
                log.exception("refreshing leaderboard and ensemble failed")
            # Big ensembles take long to build: leave the cores to the trials in between.
            rest = (time.monotonic() - started) / SHARE
            with self._wake:
                self._free = not self._wake.wait_for(lambda: self._closed, timeout=rest)
