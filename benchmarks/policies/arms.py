"""The policies by name, and one simulation of one of them."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from policies import baselines
from policies.curves import World
from policies.executor import Policy, Timer, simulate
from policies.ours import ours
from policies.syne_tune import lacking, syne_tune

WORKERS = 8
FOLDS = 5
GRID = 4  # moments per whole trial's compute at which regret is recorded


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a policy is made for."""

    world: World
    budget: int  # epochs, by all workers together
    folder: Path  # empty, its own
    timer: Timer


@dataclass(frozen=True)
class Arm:
    """A policy, what it is called in tables, and how it is made."""

    title: str
    make: Callable[[Job], Policy]
    lacking: Callable[[], str | None] = lambda: None  # why it cannot be made here


def _asha(job: Job, tpe: bool, grace: float) -> Policy:
    searcher = (baselines.optuna_search if tpe else baselines.random_search)(job.world)
    return baselines.with_asha(job.world, searcher, baselines.asha(job.world, grace, 3))


def _ray_defaults(job: Job) -> Policy:
    searcher = baselines.random_search(job.world)
    return baselines.with_asha(job.world, searcher, baselines.asha(job.world))


def _ours(job: Job, deadline: bool) -> Policy:
    end = job.budget / WORKERS if deadline else None
    return ours(job.world, WORKERS, job.folder, job.timer, end)


def _syne_tune(scheduler: str) -> Arm:
    return Arm(
        title=f"Syne Tune {scheduler}",
        make=lambda job: syne_tune(job.world, scheduler),
        lacking=lambda: lacking(scheduler),
    )


TRIAL, FOLD = "10% of a trial", "10% of a fold"  # ASHA's grace period; its factor is 3
ARMS = {
    "random": Arm("random, no pruning", lambda j: baselines.unpruned(j.world)),
    "asha-default": Arm("random + ASHA, Ray's defaults", _ray_defaults),
    "asha": Arm(f"random + ASHA, {TRIAL}", lambda j: _asha(j, False, 0.1 * j.world.max_t)),
    "optuna": Arm(f"Optuna + ASHA, {TRIAL}", lambda j: _asha(j, True, 0.1 * j.world.max_t)),
    "asha-fold": Arm(
        f"random + ASHA, {FOLD}", lambda j: _asha(j, False, 0.1 * j.world.problem.epochs)
    ),
    "optuna-fold": Arm(
        f"Optuna + ASHA, {FOLD}", lambda j: _asha(j, True, 0.1 * j.world.problem.epochs)
    ),
    "top3": Arm("top 3 after one epoch", lambda j: baselines.top_of_pool(j.world)),
    "syne-cqr": _syne_tune("ASHACQR"),
    "syne-bohb": _syne_tune("BOHB"),
    "ours": Arm("ours", lambda j: _ours(j, False)),
    "ours-hours": Arm("ours, told the hours", lambda j: _ours(j, True)),
}
BASELINE, RANDOM_ASHA, OURS = "optuna", "asha", ("ours", "ours-hours")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One simulation. G: moments, every 1/GRID of a whole trial's compute."""

    regret_G: NDArray[np.float64]
    tried: int
    finished: int
    busy: float  # share of the workers' time
    seconds: float  # real ones


def run(arm: str, world: World, trials: int) -> Outcome:
    """Simulate a policy for the compute of this many whole trials."""
    began, timer, budget = time.perf_counter(), Timer(), trials * world.max_t
    # The journal is flushed to disk at each event: in memory where there is such a place.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rungfold-policies-", dir=memory) as folder:
        job = Job(world=world, budget=budget, folder=Path(folder), timer=timer)
        policy = ARMS[arm].make(job)
        try:
            history = simulate(policy, WORKERS, budget, timer)
        finally:
            policy.close()
    regret_G = np.ones(trials * GRID)
    for trained, config in history.choices():
        # From the first moment at which this choice stood.
        first = -(-trained * GRID // world.max_t)
        regret_G[max(0, first - 1) :] = world.problem.regret(config)
    return Outcome(
        regret_G=regret_G,
        tried=len(history.tried),
        finished=len(history.finished),
        busy=history.busy,
        seconds=time.perf_counter() - began,
    )
