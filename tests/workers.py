"""Workers on a simulated clock, in place of Ray and of training.

They train epochs in simulated seconds, checkpoint and report when search/trial.py does, and ask the
director as search/searcher.py does. What a worker must never be told is asserted here.
"""

import heapq
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from search.director import Clock, Director
from search.journal import Event, Journal
from search.plan import FINISH, Facts, Plan, Resources, Wish, make_plan, plan_images
from search.run_folder import RunFolder
from search.trials import FAILED, FINISHED, RUNNING, Trial
from spaces.backbones import CPU_IMAGES_PER_SECOND_64
from spaces.recipe import Recipe

EPOCHS = 10
FAST, SLOW = "test_resnet", "resnet18"
NEWS_SECONDS, CHECKPOINT_SECONDS = 5.0, 20.0  # as in search/trial.py, which imports Ray
ROWS = 600  # of the made-up data; an epoch of FAST takes about a second


class Sampler:
    """Draws a backbone among those offered, and a quality that the workers turn into scores."""

    def __init__(self, seed: int, spread: float) -> None:
        self._seed, self._spread = seed, spread

    def ask(
        self, number: int, backbones: tuple[str, ...], late: bool
    ) -> tuple[dict[str, Any], Recipe, str]:
        rng = random.Random(f"{self._seed} {number}")
        quality = 1 + self._spread * (rng.random() - 1)
        recipe = Recipe(backbone=rng.choice(backbones), lr=quality, seed=number)
        return {"quality": quality}, recipe, "random"

    def apply(self, event: Event) -> None:
        pass


def plan_of(
    *, workers: int, folds: int = 3, trials: int | None = None, hours: float | None = None,
    backbones: tuple[str, ...] = (FAST,),
) -> Plan:  # fmt: skip
    wish = Wish(trials=trials, hours=hours, epochs=EPOCHS, backbones=backbones)
    facts = Facts(rows=ROWS, folds=folds, backbones=backbones)
    there = Resources(cpus=workers, gpus=0, memory_bytes=10**12)
    plan = make_plan(wish, facts, plan_images(wish, 64, facts.backbones, False), there)
    assert plan.workers == workers
    return plan


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a worker does in one go: an epoch, a fold's end, or a restored rung."""

    seconds: float
    fold: int
    save: int = 0  # epoch of the checkpoint that is written then; 0: none
    done: bool = False  # the fold's files are written then
    report: dict[str, Any] | None = None


@dataclass(eq=False)
class Worker:
    """In the middle of a step, or free."""

    name: int
    config: dict[str, Any] | None = None
    steps: Iterator[Step] = field(default_factory=lambda: iter(()))
    step: Step | None = None
    begun: float = 0.0


@dataclass(kw_only=True)
class Simulation:
    """One session of a run: `workers` workers and a director, until nothing is left."""

    root: Path
    plan: Plan
    folds: int = 3
    seed: int = 0
    hours: float | None = None
    spread: float = 0.9  # between the best recipe and the worst; the noise of an epoch is 0.01
    pace: float = 1.0  # seconds of an epoch of FAST
    joins: Mapping[int, float] = field(default_factory=dict)  # worker -> when it is there
    now: float = 0.0
    saved: dict[tuple[int, int], int] = field(default_factory=dict)  # (trial, fold) -> epoch
    busy: list[tuple[float, float, int]] = field(default_factory=list)  # from, to, worker
    asked: list[tuple[float, Event]] = field(default_factory=list)
    director: Director = field(init=False)

    def __post_init__(self) -> None:
        self.run = RunFolder(self.root)
        self.order = list(range(1, self.folds)) + [0]
        self.journal = Journal(self.run.journal)
        self.journal.append("session")
        self.journal.listen(self._note, replay=False)
        deadline = None if self.hours is None else self.now + 3600 * self.hours
        self.director = Director(
            self.run, self.plan, self.journal, Sampler(self.seed, self.spread),
            fold_order=self.order, clock=Clock(deadline=deadline, now=lambda: self.now),
            finalise=self._finalise,
        )  # fmt: skip
        ended = [t for t in self.director.trials.all.values() if t.state != RUNNING]
        self.run.sweep(  # as search/compose.py does
            members=[t.number for t in ended if t.state == FINISHED],
            others=[t.number for t in ended if t.state != FINISHED],
        )
        self._workers = [Worker(name) for name in range(self.plan.workers)]
        self._events: list[tuple[float, int, Worker]] = []
        self._count = 0

    # -- the loop ------------------------------------------------------------------------------

    def go(self, between: Callable[[], None] = lambda: None) -> "Simulation":
        """Until nothing is left; `between` is called before every step's end."""
        waiting = sorted(set(self.joins.values()), reverse=True)
        while True:
            self._start()
            if waiting and (not self._events or waiting[-1] < self._events[0][0]):
                self.now = max(self.now, waiting.pop())
                continue
            if not self._events:
                break
            self.now, _, worker = heapq.heappop(self._events)
            between()
            if worker in self._workers:  # not when it has died
                self._end(worker)
        assert self.director.over()
        if not self.director.interrupted:
            self.director.close()
        return self

    def working(self) -> list[Worker]:
        return [w for w in self._workers if w.config is not None]

    def trial_of(self, worker: Worker) -> Trial:
        assert worker.config is not None
        return self.director.trials.all[worker.config["trial"]]

    def lose(self, worker: Worker) -> None:
        """The worker's process dies; another takes its place at once."""
        config = worker.config
        assert config is not None
        self.busy.append((worker.begun, self.now, worker.name))
        self._events = [event for event in self._events if event[2] is not worker]
        heapq.heapify(self._events)
        self._workers[self._workers.index(worker)] = Worker(worker.name)
        self.director.on_lost(config["trial"], config["attempt"], "actor died")

    def fail(self, worker: Worker) -> None:
        """The worker reports that its trial is broken, instead of what it would have reported."""
        config = worker.config
        assert config is not None
        head = {"trial": config["trial"], "attempt": config["attempt"], "points": []}
        end = {"state": FAILED, "reason": "Traceback ... KeyError: 'x'"}
        worker.steps = iter(
            [Step(seconds=0.0, fold=config["folds"][0], report={**head, "end": end})]
        )

    def _start(self) -> None:
        for worker in self._workers:
            if worker.config is not None or self.joins.get(worker.name, 0.0) > self.now:
                continue
            if self.director.running() >= self.plan.workers:
                return
            config = self.director.next_config()
            if config is None:
                return
            self._check_new(config)
            worker.config, worker.steps = config, self._steps(config)
            self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        step = next(worker.steps, None)
        assert step is not None, f"{worker.config} was told to go on, but has no fold left"
        worker.step, worker.begun = step, self.now
        self._count += 1
        heapq.heappush(self._events, (self.now + step.seconds, self._count, worker))

    def _end(self, worker: Worker) -> None:
        config, step = worker.config, worker.step
        assert config is not None and step is not None
        self.busy.append((worker.begun, self.now, worker.name))
        trial, attempt = config["trial"], config["attempt"]
        if step.save:
            path = self.run.epoch(trial, attempt, step.fold)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(step.save))
            self.saved[trial, step.fold] = step.save
        if step.done:
            path = self.run.work(trial, attempt) / f"fold-{step.fold}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.array([trial, attempt, step.fold]))
            path.with_suffix(".safetensors").write_text(str(attempt))
        if step.report is None or self.director.on_result(step.report):
            if step.report is not None:
                self._check_on(config, step)
            self._begin(worker)
        else:
            assert attempt not in self.director.trials.all[trial].leases
            worker.config = worker.step = None

    # -- what a worker does --------------------------------------------------------------------

    def seconds(self, backbone: str) -> float:
        """Of an epoch."""
        speed = CPU_IMAGES_PER_SECOND_64
        return self.pace * speed[FAST] / speed[backbone]

    def _steps(self, config: dict[str, Any]) -> Iterator[Step]:
        head = {"trial": config["trial"], "attempt": config["attempt"]}
        seconds = self.seconds(config["recipe"]["backbone"])
        for fold in config["folds"]:
            rungs = set(config["rung_epochs"]) if fold == config["first_fold"] else set()
            before = self._restored(config, fold)
            news = [self._point(config, fold, epoch) for epoch in range(1, before + 1)]
            if before in rungs:
                yield Step(seconds=0.0, fold=fold, report={**head, "points": news})
                news = []
            reported = saved = 0.0
            for epoch in range(before + 1, EPOCHS):
                reported, saved = reported + seconds, saved + seconds
                news.append(self._point(config, fold, epoch))
                save = epoch in rungs or saved > CHECKPOINT_SECONDS
                tell = epoch in rungs or reported > NEWS_SECONDS
                yield Step(
                    seconds=seconds, fold=fold, save=epoch * save,
                    report={**head, "points": news} if tell else None,
                )  # fmt: skip
                saved *= not save
                if tell:
                    news, reported = [], 0.0
            last = self._point(config, fold, EPOCHS)
            done = {"fold": fold, "score": last["score"], "parts": {}, "params": 5, "seconds": 0.0}
            yield Step(
                seconds=seconds, fold=fold, done=True,
                report={**head, "points": [*news, last], "fold": done},
            )  # fmt: skip

    def _restored(self, config: dict[str, Any], fold: int) -> int:
        """The epoch of the newest checkpoint that an earlier attempt left: none is lost."""
        paths = [
            self.run.epoch(config["trial"], earlier, fold)
            for earlier in range(config["attempt"] - 1, 0, -1)
        ]
        epoch = next((int(path.read_text()) for path in paths if path.exists()), 0)
        assert epoch == self.saved.get((config["trial"], fold), 0)
        return epoch

    def _point(self, config: dict[str, Any], fold: int, epoch: int) -> dict[str, Any]:
        noise = random.Random(f"{config['recipe']['seed']} {fold} {epoch}").gauss(0, 0.01)
        score = config["recipe"]["lr"] * (1 - 0.8**epoch) + 0.01 * fold + noise
        return {"fold": fold, "epoch": epoch, "score": score, "loss": 1.0 / epoch, "parts": {},
                "seconds": self.seconds(config["recipe"]["backbone"]), "images_per_second": 1.0,
                "batch": 8, "micro_batch": 8, "peak_memory": 1}  # fmt: skip

    # -- what must hold at every moment --------------------------------------------------------

    def _check_new(self, config: dict[str, Any]) -> None:
        trial = self.director.trials.all[config["trial"]]
        assert config["folds"] and not set(config["folds"]) & set(trial.folds)
        assert trial.state == RUNNING
        self._check_leases()

    def _check_on(self, config: dict[str, Any], step: Step) -> None:
        """Told to go on: the fold that comes next is its own, and open."""
        trial = self.director.trials.all[config["trial"]]
        at = config["folds"].index(step.fold) + step.done
        assert at < len(config["folds"]), "told to go on without a fold left"
        following = config["folds"][at]
        assert following not in trial.folds, "told to train a fold that is done"
        assert trial.leases[config["attempt"]][0] == following, "told to train another's fold"
        self._check_leases()

    def _check_leases(self) -> None:
        for trial in self.director.trials.running():
            held = [fold for folds in trial.leases.values() for fold in folds]
            assert len(held) == len(set(held)), f"a fold is held twice: {trial.leases}"
            assert not set(held) & set(trial.folds), f"a done fold is held: {trial.leases}"
        assert self.director.running() <= self.plan.workers

    def _note(self, event: Event) -> None:
        if event.kind == "ask":
            self.asked.append((self.now, event))

    def _finalise(self, trial: Trial) -> dict[str, float]:
        assert sorted(trial.folds) == sorted(self.order)
        for fold in self.order:
            assert (self.run.oof(trial.number) / f"fold-{fold}.npy").is_file()
            assert (self.run.checkpoints(trial.number) / f"fold-{fold}.safetensors").is_file()
        return {"score": trial.score(), "pooled": 0.0}

    # -- measures ------------------------------------------------------------------------------

    def busy_share(self, begin: float, end: float) -> float:
        """Share of the workers' time between two moments in which they trained."""
        within = sum(max(0.0, min(b, end) - max(a, begin)) for a, b, _ in self.busy)
        return within / (self.plan.workers * (end - begin))

    @property
    def members(self) -> list[Trial]:
        return self.director.trials.members()

    @property
    def left_for_trials(self) -> float:
        """Seconds between a session's start and the moment when all trials must have ended."""
        assert self.hours is not None
        return 3600 * self.hours - FINISH
