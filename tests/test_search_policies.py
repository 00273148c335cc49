"""The policy benchmark's harness: its clock, its compute, its regret, and what Ray's classes do."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import search_policies
from policies import baselines
from policies.arms import ARMS, GRID, run
from policies.curves import Axis, Problem, World
from policies.executor import History, Policy, Step, Timer, simulate
from policies.ours import ReplayWorker
from policies.syne_tune import SyneScheduler, syne_tune

EPOCHS, FOLDS = 10, 3


def problem_of(epochs: int = EPOCHS, options: tuple[str, ...] = ("a", "b")) -> Problem:
    """Options "a" and "b" with 20 numbers each; the best is b at 1, and a's last diverges."""
    axes = (Axis(name="kind", options=options), Axis(name="x", low=0.01, high=1.0, log=True))
    places, curves = [], []
    for kind in range(len(options)):
        for x in np.linspace(0, 1, 20):
            worth = 0.5 * x + 0.2 * kind
            curve_E = 0.1 + worth * (1 - 0.7 ** np.arange(epochs + 1))
            if kind == 0 and x == 1:
                curve_E[4:] = np.nan
            places.append((kind, x))
            curves.append(curve_E[None])
    return Problem(
        name="made up", data_set="test", epochs=epochs, axes=axes,
        position_NA=np.array(places), curves=tuple(curves), fold_sd=0.005,
    )  # fmt: skip


WORLD = World(problem_of(), FOLDS, seed=0)


class Listed(Searcher):
    """Suggests the given configs, then is finished; remembers what it was told."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        super().__init__()
        self._configs = list(configs)
        self.told: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> Any:
        return self._configs.pop(0) if self._configs else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result


def lengths(*epochs: int, budget: int = 10**6) -> tuple[History, Timer]:
    """Trials of these lengths on two workers; each is a configuration, worth its length."""

    def train(trial_id: str, config: dict[str, Any]) -> Iterator[Step]:
        long = config["epochs"]
        yield Step(epochs=1, result={"score": 0.0}, trial=trial_id)
        done = {"score": 0.0, "done": True}
        yield Step(epochs=long - 1, result=done, trial=trial_id, finished=(long, float(long)))

    searcher, timer = Listed([{"epochs": long} for long in epochs]), Timer()
    policy = Policy(searcher=searcher, scheduler=FIFOScheduler(), train=train)
    return simulate(policy, 2, budget, timer), timer


def test_workers_train_side_by_side_and_take_the_next_trial_when_free() -> None:
    history, timer = lengths(4, 10, 3)
    # (epochs trained by both, configuration): at times 4, 7 and 10
    assert [f[:2] for f in history.finished] == [(8, 4), (14, 3), (17, 10)]
    assert history.trained == 17 and timer.now == 10 and len(history.tried) == 3
    assert history.busy == pytest.approx(17 / 20)


def test_compute_ends_at_the_budget_and_a_result_with_its_last_epoch_counts() -> None:
    for budget, finished in ((13, [4]), (14, [4, 3]), (15, [4, 3])):
        history, _ = lengths(4, 10, 3, 5, budget=budget)
        assert history.trained == budget
        assert [f[1] for f in history.finished] == finished


def test_what_is_handed_in_is_the_finished_trial_with_the_best_own_score() -> None:
    history = History(finished=[(10, 3, 0.5), (20, 4, 0.4), (30, 5, 0.5), (40, 6, 0.6)])
    assert history.choices() == [(10, 3), (40, 6)]


def test_regret_is_one_before_a_trial_has_finished_and_then_by_the_true_score() -> None:
    problem = WORLD.problem
    assert problem.regret(None) == 1
    assert problem.regret(int(problem.truth_N.argmax())) == 0
    assert problem.regret(19) == 1  # diverged
    middle = problem.regret(5)
    assert middle == pytest.approx((problem.best - problem.truth_N[5]) / (problem.best - 0.1))
    outcome = run("random", WORLD, 16)
    begun = outcome.regret_G < 1
    assert not begun[: 8 * GRID - 1].any() and begun[8 * GRID :].all()  # eight at a time
    assert (np.diff(outcome.regret_G[8 * GRID :]) <= 0.05).all()


def test_a_score_so_far_is_the_mean_of_folds_done_and_the_current_one() -> None:
    mean_T = WORLD.running_mean(7)
    first_E, second_E = WORLD.curve(7, 0), WORLD.curve(7, 1)
    assert mean_T[2] == pytest.approx(first_E[3])
    assert mean_T[EPOCHS + 3] == pytest.approx((first_E[-1] + second_E[4]) / 2)
    last_K = [WORLD.curve(7, fold)[-1] for fold in range(FOLDS)]
    assert mean_T[-1] == pytest.approx(np.mean(last_K))


def test_folds_are_the_same_for_all_policies_of_a_seed() -> None:
    same, other = World(WORLD.problem, FOLDS, 0), World(WORLD.problem, FOLDS, 1)
    assert (same.curve(3, 1) == WORLD.curve(3, 1)).all()
    assert (other.curve(3, 1) != WORLD.curve(3, 1)).all()


def test_replicates_are_folds_where_there_are_some() -> None:
    seeds_RE = np.arange(4)[:, None] + np.linspace(0, 0.5, EPOCHS + 1)
    table = {**problem_of().__dict__, "curves": (seeds_RE,) * 40, "fold_sd": 0.0}
    world = World(Problem(**table), 4, seed=3)
    assert {round(world.curve(0, fold)[0]) for fold in range(4)} == {0, 1, 2, 3}


def test_parameters_stand_for_the_nearest_configuration_of_the_same_option() -> None:
    nearest = WORLD.problem.nearest
    assert nearest({"kind": "a", "x": 0.01}) == 0 and nearest({"kind": "b", "x": 0.01}) == 20
    assert nearest({"kind": "b", "x": 1.0}) == 39
    assert nearest({"kind": "a", "x": 0.1}) in (9, 10)  # the middle of a logarithmic axis


def test_rays_asha_stops_bad_curves_and_so_tries_more() -> None:
    whole, pruned = run("random", WORLD, 24), run("asha", WORLD, 24)
    assert whole.finished >= 22 and whole.tried <= 32
    assert pruned.tried > 1.5 * whole.tried and pruned.finished < whole.finished / 2


@pytest.mark.parametrize("tpe", [False, True])
@pytest.mark.parametrize("grace", [1, 2.6, 4])
def test_reporting_only_where_asha_can_act_changes_nothing(tpe: bool, grace: float) -> None:
    found = []
    for every in (False, True):
        scheduler = baselines.asha(WORLD, grace, 3)
        searcher = (baselines.optuna_search if tpe else baselines.random_search)(WORLD)
        at = range(1, WORLD.max_t) if every else baselines.milestones(scheduler)
        worker = baselines.RayWorker(WORLD, at)
        policy = Policy(searcher=searcher, scheduler=scheduler, train=worker)
        history = simulate(policy, 8, 12 * WORLD.max_t, Timer())
        found.append((history.finished, len(history.tried)))
    assert found[0] == found[1]


def test_a_training_that_diverges_reports_a_very_bad_score_and_ends() -> None:
    searcher, timer = Listed([{"kind": "a", "x": 1.0}]), Timer()
    worker = baselines.RayWorker(WORLD, {1, 9})
    policy = Policy(searcher=searcher, scheduler=FIFOScheduler(), train=worker)
    history = simulate(policy, 8, 10**6, timer)
    assert history.trained == 4 and not history.finished
    told = searcher.told["000000"]
    assert told["training_iteration"] == 4 and told["score"] < WORLD.problem.chance


def leased(config: dict[str, Any]) -> dict[str, Any]:
    """A lease as our searcher hands it out."""
    return {"lease": json.dumps(config)}


def test_our_worker_goes_on_from_where_a_trial_was_left() -> None:
    worker = ReplayWorker(WORLD)
    params = {"kind": "b", "x": 0.5}
    recipe, chosen = {"task": {"params": params}}, WORLD.problem.nearest(params)
    lease: dict[str, Any] = {
        "trial": 7, "recipe": recipe, "folds": [1, 0, 2], "first_fold": 1, "rung_epochs": [2, 5],
    }  # fmt: skip
    seen, steps = [], []
    for attempt, (folds, count) in enumerate([([1, 0, 2], 2), ([1], 1), ([0, 2], 2)], start=1):
        reports = worker("ray", leased({**lease, "attempt": attempt, "folds": folds}))
        for _, step in zip(range(count), reports, strict=False):
            report = json.loads(step.result["report"])
            assert (report["trial"], report["attempt"]) == (7, attempt)
            seen += [(point["fold"], point["epoch"]) for point in report["points"]]
            steps.append(step)
    assert seen == [(fold, epoch) for fold in (1, 0, 2) for epoch in range(1, EPOCHS + 1)]
    assert [step.epochs for step in steps] == [2, 3, 5, 10, 10]
    assert [bool(step.finished) for step in steps] == [False] * 4 + [True]
    assert steps[-1].finished == (chosen, WORLD.running_mean(chosen)[-1])


def test_our_worker_names_a_divergence() -> None:
    config = {
        "trial": 0, "attempt": 1, "recipe": {"task": {"params": {"kind": "a", "x": 1.0}}},
        "folds": [0, 1, 2], "first_fold": 0, "rung_epochs": [2, 6],
    }  # fmt: skip
    first, last = ReplayWorker(WORLD)("ray", leased(config))
    report = json.loads(last.result["report"])
    assert (first.epochs, last.epochs) == (2, 2)  # diverged after 4 epochs
    assert report["end"]["state"] == "diverged" and [p["epoch"] for p in report["points"]] == [3]


class Recorder:
    """In the place of Syne Tune's scheduler: gives these decisions and remembers the calls."""

    def __init__(self, *decisions: str) -> None:
        self._decisions = list(decisions)
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(trial: Any, result: Any = None) -> str | None:
            self.calls.append((name.removeprefix("on_trial_"), trial.trial_id))
            return self._decisions.pop(0) if name == "on_trial_result" else None

        return call


def test_syne_tunes_scheduler_hears_what_its_tuner_would_tell_it() -> None:
    pytest.importorskip("syne_tune")

    def heard(configs: list[dict[str, Any]], *decisions: str) -> list[Any]:
        recorder, worker = Recorder(*decisions), baselines.RayWorker(WORLD, {1, 2})
        scheduler = SyneScheduler(recorder)
        policy = Policy(searcher=Listed(configs), scheduler=scheduler, train=worker)
        simulate(policy, 1, 10**6, Timer())
        return recorder.calls

    good, bad = {"kind": "b", "x": 0.5}, {"kind": "a", "x": 1.0}
    go_on, stop = "CONTINUE", "STOP"
    stopped = heard([good, good], go_on, stop, stop)
    one = [("add", 0), ("result", 0), ("result", 0), ("remove", 0)]
    assert stopped == [*one, ("add", 1), ("result", 1), ("remove", 1)]
    # Of the last epoch it is asked too, as of any other.
    whole = [("add", 0), *[("result", 0)] * 3]
    assert heard([good], go_on, go_on, stop) == [*whole, ("remove", 0)]
    assert heard([bad], go_on, go_on, go_on) == [*whole, ("complete", 0)]  # it has diverged


def test_syne_tune_is_given_our_space_our_epochs_and_scores_where_higher_is_better() -> None:
    pytest.importorskip("syne_tune")
    policy = syne_tune(WORLD, "BOHB")
    told = vars(policy.scheduler)["_scheduler"]
    assert told.max_t == WORLD.max_t and told.metric_mode() == "max"
    drawn = [told.suggest().config for _ in range(200)]
    assert {config["kind"] for config in drawn} == {"a", "b"}
    assert all(0.01 <= config["x"] <= 1 for config in drawn)
    assert 0.05 < np.median([config["x"] for config in drawn]) < 0.2  # logarithmic


def test_policies_that_cannot_run_are_left_out_with_one_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "syne_tune"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "syne_tune", None)  # as if it were not installed
    monkeypatch.setattr(sys, "argv", ["search_policies.py"])
    assert search_policies._arguments().arms == [a for a in ARMS if not a.startswith("syne")]
    said = capsys.readouterr().err
    assert said.startswith("left out Syne Tune ASHACQR, Syne Tune BOHB: it needs Syne Tune: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("arm", ARMS)
def test_every_policy_runs_and_does_the_same_again(arm: str) -> None:
    reason = ARMS[arm].lacking()
    if reason:
        pytest.skip(reason)
    one, two = run(arm, WORLD, 12), run(arm, WORLD, 12)
    assert (one.regret_G == two.regret_G).all() and one.tried == two.tried
    assert one.finished >= 1 and one.regret_G[-1] < 0.9
    assert 0.5 < one.busy <= 1
