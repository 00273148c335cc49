"""Our policy: the classes of search/ themselves, with workers that replay curves."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.curves import World
from policies.executor import Policy, Step, Timer
from search.director import Clock, Director
from search.journal import Journal
from search.plan import Facts, Resources, Wish, make_plan, plan_images
from search.run_folder import RunFolder
from search.sampler import Sampler
from search.scheduler import DirectorScheduler
from search.searcher import DirectorSearcher
from spaces.recipe import Recipe
from spaces.seeds import derive
from spaces.space import Choose, Space


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recipe's task part here: the parameters of the table."""

    params: dict[str, Any]


def space_of(world: World) -> Space:
    """The same ranges as everyone else's, without known-good recipes. A choice of the table, such
    as its optimiser, stands for the backbone."""

    def define(choose: Choose) -> Recipe:
        params: dict[str, Any] = {}
        for axis in world.problem.axes:
            if axis.options:
                params[axis.name] = choose.pick("backbone", axis.options, axis.options[0])
            else:
                middle = math.sqrt(axis.low * axis.high) if axis.log else (axis.low + axis.high) / 2
                params[axis.name] = choose.real(axis.name, axis.low, axis.high, middle, axis.log)
        choice = [str(params[axis.name]) for axis in world.problem.axes if axis.options]
        return Recipe(
            backbone=choice[0] if choice else backbones(world)[0],
            epochs=world.problem.epochs,
            task=Setting(params=params),
        )

    return Space(define)


def backbones(world: World) -> tuple[str, ...]:
    options = [axis.options for axis in world.problem.axes if axis.options]
    return options[0] if options else (world.problem.data_set,)


@dataclass(frozen=True, kw_only=True)
class SimulatedClock(Clock):
    """The run's clock on simulated time; `deadline` in epochs of that time."""

    timer: Timer

    def left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - self.timer.now


def director_of(
    world: World, workers: int, folder: Path, clock: Clock
) -> tuple[Director, DirectorSearcher, DirectorScheduler, Journal]:
    """All that depends on how the engine is put together; without a limit on trials."""
    epochs, names = world.problem.epochs, backbones(world)
    facts = Facts(rows=1000, folds=world.folds, backbones=names)
    resources = Resources(cpus=workers, gpus=0, memory_bytes=10**12)
    images = plan_images(Wish(), 32, names, gpu=False)
    plan = make_plan(Wish(trials=10**6, epochs=epochs), facts, images, resources)
    assert plan.workers == workers
    journal = Journal(folder / "journal.jsonl")
    journal.append("session")
    sampler = Sampler(
        space_of(world), derive("search", world.problem.name, world.seed), backbones=names,
        rungs=plan.rungs, folds=world.folds, epochs=epochs, first=(),
    )  # fmt: skip
    director = Director(
        RunFolder(folder), plan, journal, sampler,
        fold_order=list(range(world.folds)), clock=clock,
        finalise=lambda trial: {"score": trial.score()},
    )  # fmt: skip
    searcher = DirectorSearcher(director, lambda: plan.workers)
    return director, searcher, DirectorScheduler(director, searcher), journal


class ReplayWorker:
    """Reports as search/trial.py's Worker does, and goes on from where a trial was left: at the
    last rung epoch or fold's end that it has reported."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._trained: dict[tuple[int, int], int] = {}  # (trial, fold) -> epochs

    def __call__(self, trial_id: str, config: dict[str, Any]) -> Iterator[Step]:
        config = json.loads(config["lease"])
        number, epochs = config["trial"], self._world.problem.epochs
        head = {"trial": number, "attempt": config["attempt"]}
        chosen = self._world.problem.nearest(config["recipe"]["task"]["params"])
        for fold in config["folds"]:
            curve_E = self._world.curve(chosen, fold)
            rungs = set(config["rung_epochs"]) if fold == config["first_fold"] else set()
            before = self._trained.get((number, fold), 0)
            for epoch in sorted({e for e in rungs if before < e < epochs} | {epochs}):
                news = [_point(fold, e, curve_E[e]) for e in range(before + 1, epoch + 1)]
                bad = [i for i, point in enumerate(news) if math.isnan(point["score"])]
                if bad:
                    reason = f"diverged at fold {fold} epoch {news[bad[0]]['epoch']}"
                    end = {"state": "diverged", "reason": reason}
                    result = _result({**head, "points": news[: bad[0]], "end": end})
                    yield Step(epochs=bad[0] + 1, result=result, trial=number)
                    return
                self._trained[number, fold] = epoch
                report = {**head, "points": news}
                if epoch == epochs:
                    report["fold"] = _fold(fold, curve_E[-1])
                yield Step(
                    epochs=epoch - before,
                    result=_result(report),
                    trial=number,
                    finished=self._finished(number, chosen),
                )
                before = epoch

    def _finished(self, number: int, chosen: int) -> tuple[int, float] | None:
        """The configuration and its own score, once all folds are trained."""
        world = self._world
        every = range(world.folds)
        if any(self._trained.get((number, fold)) != world.problem.epochs for fold in every):
            return None
        return chosen, float(world.running_mean(chosen)[-1])


def _result(report: dict[str, Any]) -> dict[str, Any]:
    return {"report": json.dumps(report)}


def _point(fold: int, epoch: int, score: float) -> dict[str, Any]:
    """An epoch as a worker reports it; one takes one unit of the simulated time."""
    return {
        "fold": fold, "epoch": epoch, "score": float(score), "parts": {}, "loss": -float(score),
        "seconds": 1.0, "images_per_second": 1.0, "batch": 8, "micro_batch": 8, "peak_memory": 1,
    }  # fmt: skip


def _fold(fold: int, score: float) -> dict[str, Any]:
    return {"fold": fold, "score": float(score), "parts": {}, "params": 1, "seconds": 0.0}


def ours(world: World, workers: int, folder: Path, timer: Timer, deadline: float | None) -> Policy:
    """`deadline` in simulated time: what --hours would say; None: never."""
    clock = SimulatedClock(deadline=deadline, timer=timer)
    _, searcher, scheduler, journal = director_of(world, workers, folder, clock)
    return Policy(
        searcher=searcher, scheduler=scheduler, train=ReplayWorker(world), close=journal.close
    )
