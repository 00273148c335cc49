"""Ray Tune's TrialScheduler interface over the director: results in, go on or stop out."""

import json
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

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
        self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]
    ) -> str:
        go_on = self._director.on_result(json.loads(result["report"]))
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: "TuneController", trial: "Trial") -> None:
        # Exceptions of training come back as named end states; what arrives here is a dead worker.
        error = trial.get_error()
        message = (str(error) or type(error).__name__).strip().splitlines()[-1] if error else "lost"
        self._director.on_lost(*self._searcher.leases[trial.trial_id], message)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its scheduler; the truth lies in the journal, so there is nothing to keep."""
        return {}
