"""The director with several workers: who gets what, and what no death, late start or end may cost.

The clock is simulated: tests/workers.py. It asserts at every moment that no fold is in two hands,
that nobody is told to go on without a fold of his own, and that no checkpoint is lost.
"""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import trials as states
from search.journal import Event
from search.plan import Plan
from search.policy.failures import LOST_LIMIT
from search.policy.outlook import Outlook
from search.trials import Trials
from tests.workers import EPOCHS, FAST, SLOW, Simulation, Worker, plan_of

TEAMS = [(1, 2), (1, 5), (2, 3), (3, 2), (3, 3), (3, 5), (8, 2), (8, 5)]  # workers, folds
HOURS = 0.15
PACE = 3.0  # seconds of an epoch: a fold is long enough to be shared
IDLE = 1 / 3  # share of the time of up to three workers that the end of a run may waste


@pytest.fixture(autouse=True)
def _nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)  # a killed process loses nothing without it


def simulated(root: Path, plan: Plan, folds: int, **more: Any) -> Simulation:
    root.mkdir(exist_ok=True)
    return Simulation(root=root, plan=plan, folds=folds, **{"pace": PACE, **more})


def check(run: Simulation) -> None:
    """What holds for every run that went to its end."""
    trials = run.director.trials
    assert not trials.open() and not run.director.running()
    replayed = Trials()
    for event in run.journal.events:
        replayed.apply(event)
    assert replayed.all == trials.all
    trained = Counter((e.trial, e.data["fold"]) for e in run.journal.events if e.kind == "fold")
    assert max(trained.values()) == 1, "a fold was finished twice"
    by = {(e.trial, e.data["fold"]): e.attempt for e in run.journal.events if e.kind == "fold"}
    for trial in trials.all.values():
        oof, models = run.run.oof(trial.number), run.run.checkpoints(trial.number)
        if trial.state == states.FINISHED:
            assert sorted(trial.folds) == sorted(run.order)
            assert (models / "recipe.json").is_file()
            for fold in run.order:
                attempt = by[trial.number, fold]
                assert np.load(oof / f"fold-{fold}.npy").tolist() == [trial.number, attempt, fold]
                assert (models / f"fold-{fold}.safetensors").read_text() == str(attempt)
        else:
            assert trial.state in (states.PRUNED, states.STOPPED, states.FAILED) and trial.reason
            assert not oof.exists() and not models.exists()


def ended_as(run: Simulation) -> Counter[str]:
    return Counter(trial.state for trial in run.director.trials.all.values())


@pytest.mark.parametrize("spread", [0.9, 0.01])  # recipes that differ, and all but equal ones
@pytest.mark.parametrize(("workers", "folds"), TEAMS)
def test_all_trials_end_and_as_many_as_planned_become_members(
    tmp_path: Path, workers: int, folds: int, spread: float
) -> None:
    plan = plan_of(workers=workers, folds=folds, trials=24)
    run = simulated(tmp_path, plan, folds, spread=spread).go()
    check(run)
    assert not list(run.root.glob("work/*"))
    assert ended_as(run).keys() == {states.FINISHED, states.PRUNED}
    assert len(run.director.trials.all) == 24 and len(run.members) >= plan.members
    best = max(run.director.trials.all.values(), key=lambda t: t.recipe["lr"])
    assert best in run.members or spread < 0.1


@pytest.mark.parametrize(
    ("workers", "folds", "trials"), [(2, 3, 32), (3, 3, 32), (3, 5, 32), (8, 3, 9), (8, 5, 12)]
)
def test_no_lone_straggler_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, folds: int, trials: int
) -> None:
    plan = plan_of(workers=workers, folds=folds, trials=trials)
    runs = [simulated(tmp_path / f"{s}", plan, folds, seed=s).go() for s in range(2)]
    # The same, but each trial's folds stay in one worker's hands.
    monkeypatch.setattr(Outlook, "shareable", lambda self, trial, folds: [])
    alone = [simulated(tmp_path / f"alone-{s}", plan, folds, seed=s).go() for s in range(2)]
    assert [len(run.members) for run in runs] == [len(run.members) for run in alone]
    assert sum(run.now for run in runs) < sum(run.now for run in alone)
    idle = [1 - run.busy_share(0.8 * run.now, run.now) for run in runs]
    assert max(idle) < (IDLE if workers <= 3 else 2 * IDLE + 0.1), idle


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("workers", "folds"), [(1, 3), (2, 5), (3, 3), (8, 5)])
def test_under_hours_workers_are_busy_and_all_is_over_in_time(
    tmp_path: Path, workers: int, folds: int, seed: int
) -> None:
    plan = plan_of(workers=workers, folds=folds, hours=HOURS)
    run = simulated(tmp_path, plan, folds, seed=seed, hours=HOURS).go()
    check(run)
    over = max(end for _, end, _ in run.busy)
    assert over <= run.left_for_trials, "something was trained that could not be used"
    # What was left was too short for one more trial, also with the help of all.
    assert over + run.director.outlook.new_trial_seconds(FAST, 64) > run.left_for_trials
    assert run.busy_share(0, run.asked[-1][0]) >= 0.9  # until the members' time began
    whole = run.left_for_trials * workers / (run.seconds(FAST) * EPOCHS * folds)
    assert len(run.members) >= min(plan.members, whole / 3)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("workers", "folds"), [(2, 3), (3, 5), (8, 5)])
def test_what_is_too_slow_to_finish_is_not_started_late(
    tmp_path: Path, workers: int, folds: int, seed: int
) -> None:
    plan = plan_of(workers=workers, folds=folds, hours=HOURS, backbones=(FAST, SLOW))
    run = simulated(tmp_path, plan, folds, seed=seed, hours=HOURS).go()
    check(run)
    assert run.members and max(end for _, end, _ in run.busy) <= run.left_for_trials
    rounds = 1 + -(-(folds - 1) // workers)  # the first fold, and the others by all workers
    known = max(run.seconds(FAST), run.seconds(SLOW)) * 2
    for at, event in run.asked:
        needed = rounds * EPOCHS * run.seconds(event.data["recipe"]["backbone"])
        assert at <= known or at + needed <= run.left_for_trials + 1e-6
    late = [e.data["recipe"]["backbone"] for at, e in run.asked if at > run.asked[-1][0] / 2]
    assert FAST in late


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("workers", "folds"), [(1, 3), (3, 2), (3, 5), (8, 5)])
def test_lost_workers_cost_no_finished_fold_and_no_trial(
    tmp_path: Path, workers: int, folds: int, seed: int
) -> None:
    run = simulated(tmp_path, plan_of(workers=workers, folds=folds, trials=12), folds, seed=seed)
    rng = random.Random(seed)

    def lose_some() -> None:
        """One, or a node with all that work; none that would be the last in a row."""
        if rng.random() < 0.1:
            victims = rng.sample(run.working(), rng.choice([1, 1, len(run.working())]))
            losses = {w: run.trial_of(w).losses for w in victims}
            for worker in victims:
                if losses[worker] < LOST_LIMIT - 1:
                    run.lose(worker)

    run.go(lose_some)
    check(run)
    assert any(e.kind == "lost" for e in run.journal.events)
    assert ended_as(run).keys() == {states.FINISHED, states.PRUNED}
    assert len(run.members) >= run.plan.members


def test_a_node_that_dies_with_several_workers_of_a_trial_is_one_loss(tmp_path: Path) -> None:
    run = simulated(tmp_path, plan_of(workers=3, folds=5, trials=1), 5)
    times: list[float] = []

    def lose_all() -> None:
        if len(run.working()) == 3 and len(times) < LOST_LIMIT - 1:
            times.append(run.now)
            for worker in run.working():
                run.lose(worker)

    run.go(lose_all)
    check(run)
    assert len(times) == LOST_LIMIT - 1 and len(run.members) == 1


def test_a_worker_whose_trial_has_ended_leaves_nothing(tmp_path: Path) -> None:
    run = simulated(tmp_path, plan_of(workers=3, folds=5, trials=1), 5, pace=30.0)
    broken: list[Worker] = []

    def fail() -> None:
        """One of three workers of a trial finds it broken."""
        if len(run.working()) == 3 and not broken:
            broken.append(run.working()[0])
            run.fail(broken[0])

    run.go(fail)
    check(run)
    assert ended_as(run) == {states.FAILED: 1}
    assert not list(run.root.glob("work/*"))


def test_a_trial_whose_last_folds_are_under_way_is_not_cut_for_a_new_one(tmp_path: Path) -> None:
    run = simulated(tmp_path, plan_of(workers=8, folds=5, trials=12), 5).go()
    check(run)
    trials = Trials()
    for event in run.journal.events:
        if event.kind == "end" and event.data["state"] == states.PRUNED:
            trial = trials.all[event.trial]
            held = {fold for folds in trial.leases.values() for fold in folds}
            assert len(held | set(trial.folds)) < 5 or len(trial.leases) < 2, (
                f"cut with {len(trial.folds)} folds done and {len(held)} under way: {trial.number}"
            )
        trials.apply(event)


def test_workers_that_join_late_get_work_at_once(tmp_path: Path) -> None:
    plan, joins = plan_of(workers=4, trials=24), {1: 20.0, 2: 41.5, 3: 100.0}
    run = simulated(tmp_path, plan, 3, joins=joins).go()
    check(run)
    for worker, at in joins.items():
        assert min(begin for begin, _, name in run.busy if name == worker) == at


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("workers", "folds"), [(1, 3), (3, 5), (8, 2)])
def test_after_ctrl_c_it_ends_soon_and_a_resumed_run_loses_nothing(
    tmp_path: Path, workers: int, folds: int, seed: int
) -> None:
    plan = plan_of(workers=workers, folds=folds, trials=16)
    run = simulated(tmp_path, plan, folds, seed=seed)
    at = random.Random(seed).uniform(5, 100)

    def interrupt() -> None:
        run.director.interrupted = run.now >= at

    run.go(interrupt)
    assert run.now <= at + (EPOCHS + 1) * PACE  # the last fold of a trial may be finished
    assert not [when for when, _ in run.asked if when > at]
    begun = {t.number: set(t.folds) for t in run.director.trials.all.values()}
    assert not set(ended_as(run)) - {states.FINISHED, states.PRUNED, states.RUNNING}
    run.journal.close()
    again = simulated(tmp_path, plan, folds, seed=seed, now=run.now, saved=run.saved).go()
    check(again)
    assert len(again.members) >= plan.members and len(again.director.trials.all) == 16
    assert all(folds <= set(again.director.trials.all[n].folds) for n, folds in begun.items())


class Killed(Exception):
    """The driver dies here, and all workers with it."""


def fuse(events: int) -> Callable[[Event], None]:
    """Burns down after so many events."""
    left = iter(range(events))

    def burn(event: Event) -> None:
        if next(left, None) is None:
            raise Killed

    return burn


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("workers", "folds"), [(3, 3), (3, 5), (8, 2)])
def test_killed_after_any_event_no_finished_fold_is_lost_or_repeated(
    tmp_path: Path, workers: int, folds: int, seed: int
) -> None:
    rng, plan = random.Random(seed), plan_of(workers=workers, folds=folds, trials=12)
    now, saved, kills = 0.0, dict[tuple[int, int], int](), 0
    while True:
        burn = fuse(rng.randrange(60) if kills < 12 else 10**6)
        run = simulated(tmp_path, plan, folds, seed=seed, now=now, saved=saved)
        run.journal.listen(burn, replay=False)
        try:
            run.go()
            break
        except Killed:
            now, kills = run.now, kills + 1
        finally:
            run.journal.close()
    check(run)
    assert kills > 3 and ended_as(run).keys() == {states.FINISHED, states.PRUNED}
    assert len(run.members) >= plan.members and len(run.director.trials.all) == 12
