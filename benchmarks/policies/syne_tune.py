"""Syne Tune's ASHACQR and BOHB behind Ray's interfaces: its ASHA, with a model of the last score of
every trial, by conformal quantile regression or kernel density estimation. It is no dependency of
ours, and without it these arms are left out. To have them, beside what the other arms need:

    pip install --target DIR --no-deps syne-tune dill xgboost-cpu statsmodels patsy
    export PYTHONPATH=.:DIR

(Syne Tune imports any build of xgboost for ASHACQR, which uses nothing of it; the last two are for
BOHB.) ASHACQR fits 500 trees for each suggestion: one simulation takes two minutes on DeepOBS's
fmnist_2c2d and over a quarter of an hour on TaskSet, on one core; BOHB takes a second and a minute.

What is Syne Tune's own: a grace period of 1 epoch, a reduction factor of 3, one bracket, 5 random
configurations first, a model fitted anew whenever a further trial has a score. It learns from every
score that it is told, so all epochs are reported, not only those at rungs.
"""

import logging
from datetime import datetime
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from policies.baselines import RayWorker, search_seed
from policies.curves import Axis, World
from policies.executor import Policy

SEARCHERS = {"ASHACQR": "cqr", "BOHB": "kde"}  # of its schedulers; imported when they are made


def lacking(scheduler: str) -> str | None:
    """Why this policy cannot run here; None: it can."""
    try:
        _class_of(scheduler)
    except ImportError as error:
        return f"it needs Syne Tune: {error}"
    return None


def _class_of(scheduler: str) -> Any:
    from syne_tune.optimizer import baselines
    from syne_tune.optimizer.schedulers.searchers.searcher_factory import searcher_cls

    searcher_cls(SEARCHERS[scheduler])
    return getattr(baselines, scheduler)


class SyneSearcher(Searcher):
    """Asks; what Syne Tune's searcher learns it is told by its scheduler."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(metric="score", mode="max")
        self._scheduler = scheduler

    def suggest(self, trial_id: str) -> Any:
        suggestion = self._scheduler.suggest()
        return Searcher.FINISHED if suggestion is None else suggestion.config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler tells."""


class SyneScheduler(FIFOScheduler):
    """Tells, with the calls and the order of Syne Tune's Tuner."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._trials: dict[str, Any] = {}  # Ray's trial id -> Syne Tune's trial, while it trains

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        from syne_tune.backend.trial_status import Trial

        started = Trial(int(trial.trial_id), dict(trial.config), datetime.now())
        self._trials[trial.trial_id] = started
        self._scheduler.on_trial_add(started)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        told = self._trials[trial.trial_id]
        decision = self._scheduler.on_trial_result(told, result)
        if decision == "CONTINUE":
            return TrialScheduler.CONTINUE
        assert decision == "STOP", f"this scheduler does not pause, but says {decision}"
        self._scheduler.on_trial_remove(told)
        del self._trials[trial.trial_id]
        return TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ray says this of stopped trials too, and gives the last result of others only here."""
        if trial.trial_id not in self._trials:
            return
        if self.on_trial_result(tune_controller, trial, result) == TrialScheduler.CONTINUE:
            self._scheduler.on_trial_complete(self._trials.pop(trial.trial_id), result)


def _domain(axis: Axis) -> Any:
    from syne_tune import config_space

    if axis.options:
        return config_space.choice(list(axis.options))
    draw = config_space.loguniform if axis.log else config_space.uniform
    return draw(axis.low, axis.high)


def syne_tune(world: World, name: str) -> Policy:
    """Raises ImportError where `lacking` tells why."""
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    seed = search_seed(world) % 2**32
    np.random.seed(seed)  # its models draw from NumPy's global state, which no other policy does
    scheduler = _class_of(name)(
        {axis.name: _domain(axis) for axis in world.problem.axes},
        metric="score", time_attr="training_iteration", max_t=world.max_t, do_minimize=False,
        random_seed=seed,
    )  # fmt: skip
    return Policy(
        searcher=SyneSearcher(scheduler),
        scheduler=SyneScheduler(scheduler),
        train=RayWorker(world, range(1, world.max_t)),
    )
