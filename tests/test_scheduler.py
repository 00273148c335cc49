"""Which lease the next free worker takes, and what becomes of those that none is there for."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.experiment import Trial

from search.scheduler import DirectorScheduler


@dataclass(eq=False)
class Live:
    """One of Tune's trials."""

    trial_id: str
    status: str


class Controller:
    """Tune's, as far as a scheduler asks it."""

    def __init__(self, starting: str = "", **states: str) -> None:
        """`starting`: names of trials that a worker starts for."""
        self.trials = {name: Live(name, state) for name, state in states.items()}
        self.stopped: list[str] = []
        self._trial_to_actor = {self.trials[name]: "an actor" for name in starting}

    def get_live_trials(self) -> set[Live]:
        return set(self.trials.values())

    def request_stop_trial(self, trial: Live) -> None:
        self.stopped.append(trial.trial_id)


def scheduler(leases: dict[str, tuple[int, int]], closed: bool = False) -> tuple[Any, list[Any]]:
    recalled: list[Any] = []
    trials = {number: SimpleNamespace(losses=int(number == LOST)) for number in range(9)}
    director: Any = SimpleNamespace(
        closed=lambda: closed, recall=lambda *lease: recalled.append(lease),
        trials=SimpleNamespace(all=trials),
    )  # fmt: skip
    searcher: Any = SimpleNamespace(leases=leases)
    return DirectorScheduler(director, searcher), recalled


LEASES = {"a": (0, 1), "b": (1, 1), "c": (2, 5), "d": (4, 2)}
LOST = 4  # the trial that was lost with its worker; 2 only waited at a rung


def chosen(controller: Controller, **options: Any) -> str | None:
    made, _ = scheduler(LEASES, **options)
    trial = made.choose_trial_to_run(cast(Any, controller))
    return None if trial is None else trial.trial_id


def test_leases_start_in_order_but_what_was_lost_goes_first() -> None:
    assert chosen(Controller(a=Trial.RUNNING, b=Trial.PENDING, c=Trial.PENDING)) == "b"
    waiting = dict.fromkeys("bcd", Trial.PENDING)
    assert chosen(Controller(a=Trial.ERROR, **waiting)) == "d"
    assert chosen(Controller(a=Trial.RUNNING, d=Trial.RUNNING)) is None


def test_a_free_worker_is_not_for_leases_that_a_worker_starts_for() -> None:
    waiting = dict.fromkeys("abc", Trial.PENDING)
    assert chosen(Controller(starting="ab", **waiting)) == "c"
    assert chosen(Controller(starting="abc", **waiting)) == "a"
    assert chosen(Controller(starting="abd", d=Trial.PENDING, **waiting)) == "d"


def test_leases_that_wait_are_given_up_when_no_more_is_started() -> None:
    controller = Controller(a=Trial.RUNNING, b=Trial.PENDING, d=Trial.PENDING)
    assert chosen(controller, closed=True) is None
    assert controller.stopped == ["b", "d"]
    made, recalled = scheduler(LEASES)
    made.on_trial_remove(cast(Any, controller), cast(Any, controller.trials["b"]))
    made.on_trial_remove(cast(Any, controller), cast(Any, Live("gone", Trial.PENDING)))
    assert recalled == [(1, 1)]
