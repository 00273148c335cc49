"""The director: folds in order, pruning, named ends, and the same decisions after any death.

A fake worker stands in for Ray and training: its scores are a function of the recipe, fold, epoch.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from search import trials as states
from search.director import DISK_FLOOR, Clock, Director
from search.journal import Event, Journal, read_events
from search.plan import FINISH, Facts, Plan, Resources, Wish, make_plan, plan_images
from search.policy.failures import ALIKE
from search.run_folder import RunFolder
from search.trials import Trial
from spaces.recipe import Recipe

FOLDS, EPOCHS, ORDER = 3, 10, [1, 0, 2]


class Sampler:
    """Draws a "quality" per trial, which the fake worker turns into scores."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def ask(
        self, number: int, backbones: tuple[str, ...], late: bool
    ) -> tuple[dict[str, Any], Recipe, str]:
        quality = random.Random(number).random()
        return {"quality": quality}, Recipe(backbone=backbones[0], lr=0.001 + quality), "random"

    def apply(self, event: Event) -> None:
        self.heard.append(event)


class Killed(Exception):
    """The driver dies here."""


def plan_of(trials: int | None = 12, hours: float | None = None) -> Plan:
    wish = Wish(trials=trials, hours=hours, epochs=EPOCHS)
    facts = Facts(rows=90, folds=FOLDS, backbones=("test_resnet",))
    one = Resources(cpus=1, gpus=0, memory_bytes=8 * 10**9)
    return make_plan(wish, facts, plan_images(wish, 32, facts.backbones, False), one)


def finalise(trial: Trial) -> dict[str, float]:
    return {"score": trial.score(), "pooled": 0.0}


def director_of(
    root: Path,
    plan: Plan | None = None,
    clock: Clock | None = None,
    tell: Callable[[str], None] = print,
) -> Director:
    journal = Journal(root / "journal.jsonl")
    journal.append("session")
    return Director(
        RunFolder(root), plan or plan_of(), journal, Sampler(),
        fold_order=ORDER, clock=clock or Clock(), finalise=finalise, tell=tell,
    )  # fmt: skip


def point(config: dict[str, Any], fold: int, epoch: int) -> dict[str, Any]:
    quality = config["recipe"]["lr"]
    score = quality * (1 - 0.9**epoch) + 0.01 * fold
    return {"fold": fold, "epoch": epoch, "score": score, "seconds": 0.01, "peak_memory": 1,
            "micro_batch": 8, "batch": 8, "loss": 1.0 / epoch, "parts": {},
            "images_per_second": 1.0}  # fmt: skip


def reports(run: RunFolder, config: dict[str, Any]) -> Any:
    """What a worker reports of a trial: at rungs and at folds' ends."""
    head = {"trial": config["trial"], "attempt": config["attempt"]}
    for fold in config["folds"]:
        news = []
        for epoch in range(1, EPOCHS + 1):
            news.append(point(config, fold, epoch))
            if fold == config["first_fold"] and epoch in config["rung_epochs"]:
                yield {**head, "points": news}
                news = []
        work = run.work(config["trial"], config["attempt"])
        work.mkdir(parents=True, exist_ok=True)
        np.save(work / f"fold-{fold}.npy", np.zeros(3))
        score = point(config, fold, EPOCHS)["score"]
        done = {"fold": fold, "score": score, "parts": {}, "params": 5, "seconds": 0.0}
        yield {**head, "points": news, "fold": done}


def work(director: Director, before: Callable[[], None] = lambda: None) -> None:
    """One worker, until nothing is left; `before` is called before each report is heard."""
    while (config := director.next_config()) is not None:
        for report in reports(director.run, config):
            before()
            if not director.on_result(report):
                break
    director.close()


def outcome(root: Path) -> list[tuple[Any, ...]]:
    """The decisions in a journal, without times and attempts."""
    kept = []
    for event in read_events(root / "journal.jsonl")[0]:
        if event.kind in ("ask", "rung", "decision", "fold", "end"):
            kept.append((event.kind, event.trial, repr(sorted(event.data.items(), key=str))))
    return kept


def test_a_search_ends_with_every_trial_in_a_named_state(tmp_path: Path) -> None:
    director = director_of(tmp_path)
    work(director)
    found = director.trials.all
    assert len(found) == 12 and not director.trials.open()
    assert {t.state for t in found.values()} == {states.FINISHED, states.PRUNED}
    for trial in found.values():
        if trial.state == states.FINISHED:
            assert list(trial.folds) == ORDER
            assert (director.run.checkpoints(trial.number) / "recipe.json").is_file()
        else:
            assert "< cut" in trial.reason and not director.run.oof(trial.number).exists()
    best = max(found.values(), key=lambda t: t.recipe["lr"])
    assert director.trials.best() == best
    assert not list(tmp_path.glob("work/*"))


def test_comparisons_are_made_at_the_first_fold_and_between_folds(tmp_path: Path) -> None:
    director = director_of(tmp_path)
    work(director)
    decisions = [e for e in read_events(tmp_path / "journal.jsonl")[0] if e.kind == "decision"]
    assert {e.data["rung"] for e in decisions} == {"0+2", "0+3", "1+0", "2+0"}


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_report_and_resumed_it_decides_the_same(tmp_path: Path, seed: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for root in (whole, broken):
        root.mkdir()
    work(director_of(whole))
    rng = random.Random(seed)
    for _ in range(200):
        director = director_of(broken)
        fuse = iter([False] * rng.randrange(11) + [True])

        def die(fuse: Iterator[bool] = fuse) -> None:
            if next(fuse, False):
                raise Killed

        try:
            work(director, die)
        except Killed:
            path = broken / "journal.jsonl"
            raw = path.read_bytes()
            # The machine may also lose the tail of what was written last.
            path.write_bytes(raw[: len(raw) - rng.choice([0, 0, 1, 40])])
            continue
        break
    assert outcome(broken) == outcome(whole)


def test_finished_folds_are_not_trained_again(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    config = director.next_config()
    assert config is not None and config["folds"] == ORDER
    for report in reports(director.run, config):
        director.on_result(report)
        if "fold" in report:
            break
    again = director_of(tmp_path, plan_of(1)).next_config()
    assert again is not None
    assert again["folds"] == ORDER[1:] and again["attempt"] == 2
    assert director.run.oof(0).joinpath("fold-1.npy").is_file()


def test_a_late_report_of_an_older_attempt_is_ignored(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    config = director.next_config()
    assert config is not None
    director.on_lost(0, 1, "node died")
    second = director.next_config()
    assert second is not None and second["attempt"] == 2
    before = len(read_events(tmp_path / "journal.jsonl")[0])
    assert not director.on_result({**next(iter(reports(director.run, config)))})
    assert len(read_events(tmp_path / "journal.jsonl")[0]) == before


def test_a_trial_whose_worker_keeps_dying_is_failed(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    for attempt in range(1, 4):
        assert director.next_config() is not None
        director.on_lost(0, attempt, "actor died")
    assert director.next_config() is None
    assert director.trials.all[0].state == states.FAILED
    assert "actor died" in director.trials.all[0].reason


def test_a_worker_that_lost_one_of_its_processes_is_as_lost_as_if_it_had_died(
    tmp_path: Path,
) -> None:
    director = director_of(tmp_path, plan_of(1))
    for attempt in range(1, 4):
        assert director.next_config() is not None and not director.disk_full
        lost = {"trial": 0, "attempt": attempt, "points": [], "lost": "rank 1 is gone"}
        assert not director.on_result(lost)
    assert director.next_config() is None
    assert director.trials.all[0].state == states.FAILED


def test_a_lease_that_no_worker_began_with_is_given_again(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    first = director.next_config()
    director.recall(0, 1)
    second = director.next_config()
    assert first is not None and second is not None and second == {**first, "attempt": 2}
    director.recall(7, 1)  # of no trial
    assert director.trials.all[0].losses == 0


@pytest.mark.parametrize("state", [states.DIVERGED, states.TOO_BIG, states.FAILED])
def test_a_worker_can_name_the_end(tmp_path: Path, state: str) -> None:
    director = director_of(tmp_path, plan_of(1))
    config = director.next_config()
    assert config is not None
    end = {"trial": 0, "attempt": 1, "points": [], "end": {"state": state, "reason": "because"}}
    assert not director.on_result(end)
    trial = director.trials.all[0]
    assert (trial.state, trial.reason) == (state, "because") and math.isnan(trial.score())


def test_when_every_trial_fails_the_run_ends(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(100))
    while (config := director.next_config()) is not None:
        end = {"state": states.FAILED, "reason": "Traceback ... KeyError: 'x'"}
        director.on_result({**config, "points": [], "end": end})
    assert len(director.trials.all) == ALIKE and "KeyError" in str(director.broken())
    # Mended and resumed, it goes on.
    assert director_of(tmp_path, plan_of(100)).next_config() is not None


def test_nothing_starts_when_time_is_up_and_what_cannot_end_is_stopped(tmp_path: Path) -> None:
    import time

    clock = Clock(deadline=time.monotonic() + FINISH + 0.05)
    director = director_of(tmp_path, plan_of(None, hours=1), clock)
    config = director.next_config()
    assert config is not None
    stream = reports(director.run, config)
    report = next(stream)
    report["points"][0]["seconds"] = 5.0
    assert not director.on_result(report)
    assert director.trials.all[0].state == states.STOPPED
    assert "out of time" in director.trials.all[0].reason
    time.sleep(0.06)
    assert director.next_config() is None and not director.anything_left()


def test_after_ctrl_c_only_the_last_fold_is_finished(tmp_path: Path) -> None:
    director = director_of(tmp_path)
    config = director.next_config()
    assert config is not None
    for report in reports(director.run, config):
        if len(director.trials.all[0].folds) == FOLDS - 1:
            director.interrupted = True
        if not director.on_result(report):
            break
    assert director.trials.all[0].state == states.FINISHED
    assert director.next_config() is None


def test_ctrl_c_throws_no_fold_away(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    config = director.next_config()
    assert config is not None
    for report in reports(director.run, config):
        director.interrupted = "fold" in report
        if not director.on_result(report):
            break
    assert director.over() and director.next_config() is None
    assert director.trials.all[0].state == states.RUNNING
    again = director_of(tmp_path, plan_of(1))
    work(again)
    assert again.trials.all[0].state == states.FINISHED
    folds = [e.data["fold"] for e in read_events(tmp_path / "journal.jsonl")[0] if e.kind == "fold"]
    assert folds == ORDER


def free_disk(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    """Let the disk have free[0] bytes of room."""
    monkeypatch.setattr(
        "search.director.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0])
    )


def test_a_full_disk_pauses_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, said = [10 * DISK_FLOOR], list[str]()
    free_disk(monkeypatch, free)
    director = director_of(tmp_path, plan_of(1), tell=said.append)
    assert director.next_config() is not None
    lost = {"trial": 0, "attempt": 1, "points": [], "full": "disk full: No space left"}
    assert not director.on_result(lost)
    # What was free was too little, however much it was.
    assert director.next_config() is None and not director.over() and "is full" in said[-1]
    free[0] += 2 * DISK_FLOOR
    work(director)
    assert "room again" in said[-1] and director.trials.all[0].state == states.FINISHED


def test_a_full_disk_does_not_outlast_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_disk(monkeypatch, [0])
    director = director_of(tmp_path, plan_of(1))
    assert director.next_config() is None and not director.over()
    director.interrupted = True
    assert director.next_config() is None and director.over()


def test_a_node_that_dies_with_several_leases_of_a_trial_counts_once(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    assert director.next_config() is not None
    trial = director.trials.all[0]
    for fold in ORDER[1:]:
        director._lease(trial, [fold])
    assert list(trial.leases) == [1, 2, 3]
    for attempt in (1, 2, 3):
        director.on_lost(0, attempt, "node died")
    assert trial.losses == 1 and trial.state == states.RUNNING
    work(director)
    assert trial.state == states.FINISHED


def test_a_worker_taking_a_fold_takes_what_follows_from_the_other(tmp_path: Path) -> None:
    director = director_of(tmp_path, plan_of(1))
    assert director.next_config() is not None and director.trials.all[0].leases == {1: ORDER}
    director._lease(director.trials.all[0], ORDER[1:2])
    assert director.trials.all[0].leases == {1: ORDER[:1], 2: ORDER[1:2]}


def test_the_members_that_the_plan_wants_are_finished(tmp_path: Path) -> None:
    plan = plan_of(24)
    director = director_of(tmp_path, plan)
    work(director)
    assert plan.members == 8 <= len(director.trials.members())
