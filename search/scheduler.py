"""Ray Tune's TrialScheduler interface over the director: results in, go on or stop out."""

import json
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from search.director import Director
    from search.searcher import DirectorSearcher


class DirectorScheduler(FIFOScheduler):
    """Trials start first in, first out; the director judges every result."""

    def __init__(self, director: "Director", searcher: "DirectorSearcher") -> None:
        super().__init__()
        self._director, self._searcher = director, searcher

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> str:
        go_on = self._director.on_result(json.loads(result["report"]))
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: "TuneController") -> Trial | None:
        """The lease that the next free worker takes: what was lost with a worker first, then one
        that no worker starts for yet. Given another's free worker, Tune takes back the one that
        starts for it, and hosts whose workers start for longer than trials take never came to
        train. When no more is to be started, leases that still wait are given up."""
        live = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        leases = self._searcher.leases  # in the order in which they were given
        waiting = [key for key in leases if key in live and live[key].status == Trial.PENDING]
        if self._director.closed():
            for key in waiting:
                tune_controller.request_stop_trial(live[key])
            return None
        starting = tune_controller._trial_to_actor

        def turn(key: str) -> tuple[bool, bool]:
            return not self._director.trials.all[leases[key][0]].losses, live[key] in starting

        first = min(waiting, key=turn, default=None)
        return None if first is None else live[first]

    def on_trial_remove(self, tune_controller: "TuneController", trial: Trial) -> None:
        if lease := self._searcher.leases.get(trial.trial_id):
            self._director.recall(*lease)

    def on_trial_error(self, tune_controller: "TuneController", trial: Trial) -> None:
        # Exceptions of training come back as named end states; what arrives here is a dead worker.
        error = trial.get_error()
        message = (str(error) or type(error).__name__).strip().splitlines()[-1] if error else "lost"
        self._director.on_lost(*self._searcher.leases[trial.trial_id], message)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its scheduler; the truth lies in the journal, so there is nothing to keep."""
        return {}
