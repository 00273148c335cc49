"""The policies that ours is compared with, made of Ray's and Optuna's own classes."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from policies.curves import Axis, World
from policies.executor import Policy, Step
from spaces.seeds import derive

POOL, KEPT = 64, 3  # of "top 3 after one epoch"


class RandomSearch(Searcher):
    """Independent draws from the whole space."""

    def __init__(self, axes: tuple[Axis, ...], seed: int) -> None:
        super().__init__(metric="score", mode="max")
        self._axes, self._rng = axes, np.random.default_rng(seed)

    def _draw(self, axis: Axis) -> Any:
        if axis.options:
            return axis.options[int(self._rng.integers(len(axis.options)))]
        if not axis.log:
            return float(self._rng.uniform(axis.low, axis.high))
        drawn = math.exp(self._rng.uniform(math.log(axis.low), math.log(axis.high)))
        return min(max(drawn, axis.low), axis.high)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return {axis.name: self._draw(axis) for axis in self._axes}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing is learned."""


class TopOfPool(RandomSearch):
    """A pool of random configurations trains one epoch each, then the best are trained anew and
    finished; pool after pool while there is budget. Retraining the first epoch is 1/T of a trial.
    """

    def __init__(self, axes: tuple[Axis, ...], seed: int) -> None:
        super().__init__(axes, seed)
        self.probes: dict[str, dict[str, Any]] = {}  # Ray's trial id -> config, of this pool
        self._scores: dict[str, float] = {}
        self._winners: list[dict[str, Any]] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self._winners:
            return self._winners.pop(0)
        if len(self.probes) < POOL:
            config = super().suggest(trial_id)
            assert config is not None
            self.probes[trial_id] = config
            return config
        if len(self._scores) < POOL:
            return None  # the last of the pool are still training
        best = sorted(self._scores, key=lambda t: -self._scores[t])[:KEPT]
        self._winners = [self.probes[t] for t in best]
        self.probes, self._scores = {}, {}
        return self._winners.pop(0)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self.probes and result:
            self._scores[trial_id] = result["score"]


class StopProbes(FIFOScheduler):
    """Stops the pool's trials at their first result."""

    def __init__(self, searcher: TopOfPool) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        probe = trial.trial_id in self._searcher.probes
        return TrialScheduler.STOP if probe else TrialScheduler.CONTINUE


class RayWorker:
    """What a user of Ray writes: all folds one after another, the score so far after each epoch.

    Only the epochs `at` which the scheduler can act are reported (besides the last), which changes
    nothing: at others ASHA neither records nor stops, and Optuna uses nothing that is reported
    before a trial's end. A training that diverges reports a very bad score and ends.
    """

    def __init__(self, world: World, at: Collection[int]) -> None:
        self._world = world
        self._at = sorted({*at, world.max_t})

    def __call__(self, trial_id: str, config: dict[str, Any]) -> Iterator[Step]:
        world = self._world
        chosen = world.problem.nearest(config)
        mean_T = world.running_mean(chosen)
        finite = int(np.isfinite(mean_T).sum())
        before = 0
        for t in self._at:
            if t > finite:
                bad = {"score": world.problem.floor, "training_iteration": finite + 1, "done": True}
                yield Step(epochs=finite + 1 - before, result=bad, trial=trial_id)
                return
            score = float(mean_T[t - 1])
            last = t == world.max_t
            yield Step(
                epochs=t - before,
                result={"score": score, "training_iteration": t, "done": last},
                trial=trial_id,
                finished=(chosen, score) if last else None,
            )
            before = t


def asha(world: World, grace: float = 1, factor: float = 4) -> AsyncHyperBandScheduler:
    """Ray's ASHA with its defaults for whatever is not given."""
    return AsyncHyperBandScheduler(
        metric="score", mode="max", max_t=world.max_t, grace_period=max(1, round(grace)),
        reduction_factor=factor,
    )  # fmt: skip


def milestones(scheduler: AsyncHyperBandScheduler) -> set[int]:
    """The epochs at which ASHA records and stops: the first at or after each of its rungs."""
    return {math.ceil(rung) for bracket in scheduler._brackets for rung, _ in bracket._rungs}


def random_search(world: World) -> Searcher:
    return RandomSearch(world.problem.axes, search_seed(world))


def optuna_search(world: World) -> Searcher:
    """Ray's OptunaSearch with Optuna's default sampler, given the space as Tune gives it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = OptunaSearch(metric="score", mode="max", seed=search_seed(world) % 2**32)
    space: dict[str, Any] = {}
    for axis in world.problem.axes:
        if axis.options:
            space[axis.name] = tune.choice(list(axis.options))
        else:
            draw = tune.loguniform if axis.log else tune.uniform
            space[axis.name] = draw(axis.low, axis.high)
    assert searcher.set_search_properties("score", "max", space)
    return searcher


def search_seed(world: World) -> int:
    """One for all policies: those that draw at random draw the same configurations."""
    return derive("search", world.problem.name, world.seed)


def unpruned(world: World) -> Policy:
    return Policy(
        searcher=random_search(world), scheduler=FIFOScheduler(), train=RayWorker(world, ())
    )


def with_asha(world: World, searcher: Searcher, scheduler: AsyncHyperBandScheduler) -> Policy:
    worker = RayWorker(world, milestones(scheduler))
    return Policy(searcher=searcher, scheduler=scheduler, train=worker)


def top_of_pool(world: World) -> Policy:
    searcher = TopOfPool(world.problem.axes, search_seed(world))
    return Policy(searcher=searcher, scheduler=StopProbes(searcher), train=RayWorker(world, {1}))
