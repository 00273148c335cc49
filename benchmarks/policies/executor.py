"""A simulated clock and its workers: drives any Searcher and TrialScheduler as Ray Tune does.

An epoch takes one unit of time, whatever the configuration. The calls and their order are those of
Ray's TuneController; unlike it, which asks for a trial ahead of time, a configuration is asked for
when a worker is free, so every searcher knows all that can be known.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a worker does between two results."""

    epochs: int  # trained until the result is there
    result: dict[str, Any]  # with "done": True the training has ended by itself
    trial: int | str  # whose epochs these are; several of Ray's trials may belong to one of ours
    finished: tuple[int, float] | None = None  # (configuration, own score): all folds are done now


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is compared. `train` is a worker: from Ray's trial id and a config to its steps."""

    searcher: Searcher
    scheduler: TrialScheduler
    train: Callable[[str, dict[str, Any]], Iterator[Step]]
    close: Callable[[], None] = lambda: None


@dataclass
class Timer:
    """The simulated time, in epochs."""

    now: float = 0.0


@dataclass(kw_only=True)
class History:
    """What came of a simulation."""

    trained: int = 0  # epochs, by all workers together
    busy: float = 0.0  # share of the workers' time in which they trained
    tried: set[int | str] = field(default_factory=set)
    finished: list[tuple[int, int, float]] = field(default_factory=list)  # (trained, config, score)

    def choices(self) -> list[tuple[int, int]]:
        """(epochs trained, configuration) from when on the policy would hand in which one: the
        finished trial with the highest own score, the earlier one on a tie."""
        best, found = float("-inf"), []
        for trained, config, score in self.finished:
            if score > best:
                best = score
                found.append((trained, config))
        return found


def simulate(policy: Policy, workers: int, budget: int, timer: Timer) -> History:
    """Run until `budget` epochs were trained or the searcher has nothing more; a result that comes
    with the last epoch counts."""
    history = History()
    controller: Any = SimpleNamespace()  # nothing that is driven here looks at it
    started, searching = 0, True
    # (time, Ray's trial id, trial, its worker, the step that then ends). Of results that come at
    # the same time, that of the trial which started first is heard first.
    busy: list[tuple[float, str, Any, Iterator[Step], Step]] = []

    def train(trial: Any, worker: Iterator[Step]) -> None:
        step = next(worker, None)
        assert step is not None, f"trial {trial.trial_id} was told to go on, but there is no more"
        history.tried.add(step.trial)
        heapq.heappush(busy, (timer.now + step.epochs, trial.trial_id, trial, worker, step))

    while True:
        while searching and history.trained < budget and len(busy) < workers:
            trial_id = f"{started:06d}"
            # Any: Ray declares a dictionary, and also returns the text FINISHED.
            config: Any = policy.searcher.suggest(trial_id)
            if config is None:
                break
            if config == Searcher.FINISHED:
                searching = False
                break
            started += 1
            trial: Any = SimpleNamespace(trial_id=trial_id, config=config, last_result={})
            policy.scheduler.on_trial_add(controller, trial)
            train(trial, policy.train(trial_id, config))
        if not busy:
            waits = searching and history.trained < budget
            assert not waits, "nothing is running, and the searcher waits"
            break
        time, _, trial, worker, step = heapq.heappop(busy)
        training = len(busy) + 1
        possible = (budget - history.trained) / training  # time until the budget is spent
        if time - timer.now > possible:
            timer.now, history.trained = timer.now + possible, budget
            break
        history.trained += round((time - timer.now) * training)
        timer.now = time
        if step.finished:
            history.finished.append((history.trained, *step.finished))
        if _goes_on(policy, controller, trial, {**step.result, "trial_id": trial.trial_id}):
            train(trial, worker)
    history.busy = history.trained / (workers * timer.now) if timer.now else 0.0
    return history


def _goes_on(policy: Policy, controller: Any, trial: Any, result: dict[str, Any]) -> bool:
    """Hand a result in as TuneController._process_trial_result does."""
    decision = TrialScheduler.STOP
    if not result.get("done"):
        decision = policy.scheduler.on_trial_result(controller, trial, result)
    trial.last_result = result
    if decision == TrialScheduler.CONTINUE:
        policy.searcher.on_trial_result(trial.trial_id, result)
        return True
    assert decision == TrialScheduler.STOP, f"a simulated worker cannot {decision}"
    policy.scheduler.on_trial_complete(controller, trial, result)
    policy.searcher.on_trial_complete(trial_id=trial.trial_id, result=result)
    return False
