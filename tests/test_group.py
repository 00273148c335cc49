"""A group of two ranks, through Ray Train: a trial's worker cannot tell it from one device, and
nothing is left of it."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from search import data_parallel, group
from search import trial as trial_module
from search.compose import Session
from search.data_parallel import GroupTrainable, GroupWorker
from search.group import Group, Lost
from search.prepare import prepare
from search.run import parser
from search.setup import Setup
from search.trial import Context, Worker
from spaces.errors import UserError
from tests.runs import learnable_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
EPOCHS, RANKS = 3, 2


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("group")
    data = learnable_folder(folder / "open", rows=40, tests=5)
    command = ["gene_expr", "--data", str(data), "--out", str(folder / "run"), "--folds", "2",
               "--epochs", str(EPOCHS), "--groups", "none", "--image-size", "32", "--weights",
               "random", "--trials", "2", "--backbone", "test_convnext"]  # fmt: skip
    args: argparse.Namespace = parser().parse_args(command)
    made = prepare(args, lambda text: None)  # starts Ray
    assert made is not None
    yield made
    ray.shutdown()


def context_of(setup: Setup) -> Context:
    return Context(
        run=str(setup.run.root), store=str(setup.store), cleaned=setup.clean,
        cache=str(setup.cache), task=setup.task_name, task_options={},
        target_names=setup.target_names, initial={}, metric=setup.metric, seed=0,
        threads=1, gpus=0.0, weights_dir=None,
    )  # fmt: skip


def group_worker(setup: Setup, kind: type[Group] = Group) -> GroupWorker:
    context = context_of(setup)
    return GroupWorker(context, "somewhere", kind(context, RANKS, gpu=False))


@pytest.fixture(scope="module")
def together(setup: Setup) -> Iterator[GroupWorker]:
    worker = group_worker(setup)
    yield worker
    worker.group.stop()


def lease_of(setup: Setup, number: int, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    """Of a recipe without batch statistics and dropout, whose loss adds up over rows."""
    recipe, _ = setup.task.space(setup.means).fixed({"backbone": "test_convnext"})
    plain = recipe.to_dict() | {
        "batch_size": 9, "optimizer": "sgd", "lr": 0.01, "ema": 0.9, "drop": 0.0, "drop_path": 0.0,
    }  # fmt: skip
    plain["task"] = {**plain["task"], "loss": "mse"}
    return {"trial": number, "attempt": attempt, "recipe": plain | changes, "folds": [1],
            "first_fold": 1, "rung_epochs": [1], "micro_batch": None}  # fmt: skip


def points_of(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [point for report in reports for point in report["points"]]


def assert_alike(setup: Setup, one: tuple[int, int], other: tuple[int, int]) -> None:
    """What two attempts left agrees."""
    for name in ("fold-1.npy", "fold-1.test.npy"):
        mine, theirs = (np.load(setup.run.work(*attempt) / name) for attempt in (one, other))
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    for attempt in (one, other):
        assert (setup.run.work(*attempt) / "fold-1.safetensors").is_file()


def held() -> tuple[set[str], list[str]]:
    """Kinds of actors that live, and states of placement groups that hold or wait for something."""
    actors = ray._private.state.actors().values()
    table = ray.util.placement_group_table().values()
    return (
        {actor["ActorClassName"] for actor in actors if actor["State"] != "DEAD"},
        [entry["state"] for entry in table if entry["state"] != "REMOVED"],
    )


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, held()
        time.sleep(0.2)


def test_a_group_trains_as_one_worker_does(setup: Setup, together: GroupWorker) -> None:
    alone = list(Worker(context_of(setup)).reports(lease_of(setup, 0, 1)))
    shared = list(together.reports(lease_of(setup, 0, 2) | {"folds": [1]}))
    # Attempt 2 went on from the checkpoint at attempt 1's rung: one device's, taken up by two.
    assert_alike(setup, (0, 1), (0, 2))
    setup.run.epoch(0, 1, 1).unlink()
    setup.run.epoch(0, 2, 1).unlink(missing_ok=True)
    anew = list(together.reports(lease_of(setup, 0, 3)))
    assert_alike(setup, (0, 1), (0, 3))
    for reports in (shared, anew):
        assert [r["points"][-1]["epoch"] for r in reports if r["points"]] in ([1, 3], [1, 2, 3])
        for mine, theirs in zip(points_of(reports), points_of(alone), strict=True):
            for name in ("loss", "score"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
            for name in ("fold", "epoch", "batch", "micro_batch"):
                assert mine[name] == theirs[name], name
        assert reports[-1]["fold"]["params"] == alone[-1]["fold"]["params"]
    machine = str(alone[0]["machine"])
    assert anew[0]["machine"] == f"2 x {machine}" and machine


def test_one_worker_takes_up_what_a_group_began(setup: Setup, together: GroupWorker) -> None:
    list(Worker(context_of(setup)).reports(lease_of(setup, 1, 1)))
    setup.run.epoch(1, 1, 1).unlink()
    began = together.reports(lease_of(setup, 1, 2))
    next(began)
    began.close()
    assert setup.run.epoch(1, 2, 1).is_file()
    again = list(Worker(context_of(setup)).reports(lease_of(setup, 1, 3)))
    assert [point["epoch"] for point in points_of(again)] == [1, 2, 3]
    assert_alike(setup, (1, 1), (1, 3))


def test_checkpoints_reach_ranks_on_other_hosts_and_come_from_there(
    setup: Setup, together: GroupWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(Worker(context_of(setup)).reports(lease_of(setup, 2, 1)))
    setup.run.epoch(2, 1, 1).unlink()
    began = together.reports(lease_of(setup, 2, 2))
    next(began)
    began.close()
    left = setup.run.epoch(2, 2, 1)
    in_place = left.read_bytes()
    left.unlink()
    # From here on the trial's worker is somewhere else than its group.
    monkeypatch.setattr(Group, "nodes", property(lambda group: ["elsewhere"] * RANKS))
    monkeypatch.setattr(data_parallel, "this_node", lambda: "here")
    began = together.reports(lease_of(setup, 2, 3))
    next(began)
    began.close()
    sent = setup.run.epoch(2, 3, 1)
    assert len(sent.read_bytes()) == len(in_place)
    points = points_of(list(together.reports(lease_of(setup, 2, 4))))
    assert [point["epoch"] for point in points] == [1, 2, 3]
    assert_alike(setup, (2, 1), (2, 4))


def test_a_probe_is_fitted_by_one_rank(setup: Setup, together: GroupWorker) -> None:
    lease = lease_of(setup, 3, 1, probe="ridge", epochs=1, ema=0.0)
    (alone,) = list(Worker(context_of(setup)).reports(lease))
    (shared,) = list(together.reports(lease | {"attempt": 2}))
    assert shared["points"][0]["score"] == alone["points"][0]["score"]
    assert_alike(setup, (3, 1), (3, 2))


def test_a_recipe_that_cannot_be_trained_ends_its_trial_alone(
    setup: Setup, together: GroupWorker
) -> None:
    for changes, state, words in (
        ({"batch_size": 1}, "failed", "batches have 1 rows and 2 GPUs"),
        ({"lr": 10.0, "ema": 0.0, "head_lr_mult": 1000.0, "warmup": 0.0}, "diverged", "epoch 1"),
    ):
        *_, last = together.reports(lease_of(setup, 4, **changes))
        assert last["end"]["state"] == state and words in last["end"]["reason"]
        assert "Traceback" not in last["end"]["reason"]
    facts = together.group._facts
    *_, last = together.reports(lease_of(setup, 5))
    assert "fold" in last
    assert together.group._facts is facts, "the group is the same"


def test_a_lost_rank_is_no_failure_and_the_next_lease_has_a_new_group(
    setup: Setup, together: GroupWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "CHECKPOINT_SECONDS", 0.0)
    began = together.reports(lease_of(setup, 6, 1))
    next(began)
    ray.kill(together.group._facts[1]["actor"])
    (last,) = list(began)
    assert "rank 1 is gone" in last["lost"] and "end" not in last
    again = list(together.reports(lease_of(setup, 6, 2)))
    assert [point["epoch"] for point in points_of(again)] == [1, 2, 3]


def serve_with_fault(config: dict[str, Any]) -> None:
    """Rank 1 cannot begin a fold of trial 9, while rank 0 waits for it."""
    begin = group._Served.begin

    def broken(served: Any, config: dict[str, Any], fold: int, fits: int | None) -> Any:
        if os.environ["RANK"] == "1" and config["trial"] == 9:
            raise KeyError("of rank 1")
        return begin(served, config, fold, fits)

    group._Served.begin = broken  # type: ignore[method-assign]
    group.serve(config)


class Faulty(Group):
    SERVE = staticmethod(serve_with_fault)


def test_ranks_that_wait_for_one_that_failed_are_ended(
    setup: Setup, together: GroupWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    together.group.stop()  # on one core there is room for one
    monkeypatch.setattr(group, "STUCK_SECONDS", 1.0)
    monkeypatch.setattr(group, "STOP_SECONDS", 5.0)
    worker = group_worker(setup, Faulty)
    (last,) = list(worker.reports(lease_of(setup, 9)))
    assert last["end"]["state"] == "failed"
    assert "rank 1 of 2 failed" in last["end"]["reason"] and "'of rank 1'" in last["end"]["reason"]
    with pytest.raises(Lost):
        worker.group.ask("epoch")


@ray.remote(num_cpus=0)
class Holder:
    """A process with a group, which can be killed."""

    def hold(self, context: Context, seconds: float) -> None:
        """Start it, and wait for room for so many seconds."""
        group.ROOM_SECONDS, group.STOP_SECONDS = seconds, 0.5
        self.group = Group(context, RANKS, gpu=False)
        self.group.start()


def kill(holder: Any) -> None:
    """And wait until Ray knows that what it made is gone."""
    ray.kill(holder)
    wait_until(lambda: "TrainController" not in held()[0])


def test_nothing_is_left_of_a_group(setup: Setup, together: GroupWorker) -> None:
    together.group.stop()
    # The cluster's one coordinator of autoscaling is Ray's own, and stays.
    wait_until(lambda: held()[0] <= {"_AutoscalingCoordinatorActor"} and not held()[1])


def test_what_keeps_a_host_from_training_is_told(setup: Setup) -> None:
    missing = Group(replace(context_of(setup), weights_dir="/nowhere/at/all"), RANKS, gpu=False)
    with pytest.raises(UserError, match="the folder of weights /nowhere/at/all is not on"):
        missing.start()
    with pytest.raises(Lost):
        missing.ask("epoch")


def test_what_a_killed_worker_held_is_freed_by_the_next(
    setup: Setup, together: GroupWorker
) -> None:
    together.group.stop()
    holder = Holder.remote()
    ray.get(holder.hold.remote(context_of(setup), 300.0))
    kill(holder)
    assert held()[1] == ["CREATED"], "what Ray does not give back"
    together.group.start()
    assert held()[1] == ["CREATED"], "its own"
    together.group.stop()
    wait_until(lambda: not held()[1])


def test_without_room_a_group_is_given_up(setup: Setup) -> None:
    holder = Holder.remote()
    with pytest.raises(Lost, match="no room for 2 ranks in 2 s"):
        ray.get(holder.hold.remote(replace(context_of(setup), threads=10**6), 2.0))
    kill(holder)
    group._free_orphans()
    wait_until(lambda: not held()[1])


class OnCores(GroupTrainable):
    """A group on CPU cores."""

    def _worker_of(self, context: Context) -> GroupWorker:
        return GroupWorker(context, "somewhere", Group(context, RANKS, gpu=False))


def test_a_search_whose_trials_have_groups(
    setup: Setup, together: GroupWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, in one warm worker, with all that Tune does to it. The last test: the
    search ends Ray."""
    together.group.stop()
    monkeypatch.setattr(data_parallel, "GroupTrainable", OnCores)
    plan = replace(setup.plan, workers=1, cpus_per_trial=1, gpus_per_trial=float(RANKS))
    with Session(replace(setup, plan=plan), time.monotonic()) as session:
        assert not session.run_trials()
        trials = session.director.trials.all.values()
        assert len(trials) == 2
        assert all(trial.state in ("finished", "pruned") for trial in trials)
        assert all(trial.machine.startswith("2 x ") for trial in trials)
