"""Ray Tune's Searcher interface over the director: a free worker asks, a lease comes out."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

if TYPE_CHECKING:
    from search.director import Director


class DirectorSearcher(Searcher):
    """What Ray calls a trial is a lease of ours: some folds of a trial in a worker's hands."""

    def __init__(self, director: "Director", workers: Callable[[], int]) -> None:
        """`workers`: how many there are now, or may be once the cluster has grown."""
        super().__init__()
        self._director, self._workers = director, workers
        self.leases: dict[str, tuple[int, int]] = {}  # Ray's trial id -> our trial and attempt

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next free worker's task. Asked as late as possible, when a worker is free, so that
        the sampler knows all that can be known and a resumed run asks at the same moments."""
        workers = self._director.outlook.workers = self._workers()
        if self._director.running() >= workers:
            return None
        config = self._director.next_config()
        if config is None:
            # What is in hand may be lost and come back, or make room for others.
            return Searcher.FINISHED if self._director.over() else None
        self.leases[trial_id] = config["trial"], config["attempt"]
        # As text: Tune keeps what a trial was given, as it is and flattened, to the end of the run.
        return {"lease": json.dumps(config)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler has told the director already."""
        self.leases.pop(trial_id, None)

    # The journal is the truth: what Ray pickles and saves of this object is empty.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        return None
