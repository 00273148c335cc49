"""The worker of a trial, without Ray: what it reports, what it does after a death, and how it
tells failures apart."""

import argparse
import errno
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from search import trial as trial_module
from search.exchange import Keeper, Unreachable
from search.prepare import prepare
from search.run import parser
from search.setup import Setup
from search.trial import Context, Worker
from spaces.errors import UserError
from tests.runs import GENES, learnable_folder

EPOCHS = 4


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("trial")
    data = learnable_folder(folder / "open", rows=40, tests=4)
    command = ["gene_expr", "--data", str(data), "--out", str(folder / "run"), "--folds", "2",
               "--epochs", str(EPOCHS), "--groups", "none", "--image-size", "32", "--weights",
               "random", "--trials", "1"]  # fmt: skip
    args: argparse.Namespace = parser().parse_args(command)
    made = prepare(args, lambda text: None)
    assert made is not None
    return made


def worker_of(setup: Setup, **changes: Any) -> Worker:
    context = Context(
        run=str(setup.run.root), store=str(setup.store), cleaned=setup.clean,
        cache=str(setup.cache), task=setup.task_name, task_options={},
        target_names=setup.target_names, initial={}, metric=setup.metric, seed=0,
        threads=1, gpus=0.0, weights_dir=None,
    )  # fmt: skip
    return Worker(replace(context, **changes), host="somewhere")


def worker_afar(setup: Setup, keeper: Keeper | None = None) -> Worker:
    """A worker on a host that sees nothing of the run but what the keeper gives it."""
    given = keeper or Keeper(str(setup.run.root), [str(setup.store)])
    return worker_of(setup, mark="on another disk", keeper=given)


def config_of(setup: Setup, number: int, attempt: int, **changes: Any) -> dict[str, Any]:
    recipe, _ = setup.task.space(setup.means).fixed({"backbone": "test_resnet", **changes})
    return {"trial": number, "attempt": attempt, "recipe": recipe.to_dict(), "folds": [1, 0],
            "first_fold": 1, "rung_epochs": [1, 2], "micro_batch": None}  # fmt: skip


def epochs_of(reports: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(p["fold"], p["epoch"]) for r in reports for p in r["points"]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs (from 0) that were begun, in order."""
    from search.train.fold import FoldTraining

    begun: list[int] = []
    epoch = FoldTraining.epoch

    def counted(training: FoldTraining) -> Any:
        begun.append(training.state.epoch)
        return epoch(training)

    monkeypatch.setattr(FoldTraining, "epoch", counted)
    return begun


def test_reports_come_at_rungs_and_at_folds_ends(setup: Setup) -> None:
    reports = list(worker_of(setup).reports(config_of(setup, 0, 1)))
    epochs = [[(p["fold"], p["epoch"]) for p in r["points"]] for r in reports]
    assert epochs == [[(1, 1)], [(1, 2)], [(1, 3), (1, 4)], [(0, 1), (0, 2), (0, 3), (0, 4)]]
    assert [r.get("fold", {}).get("fold") for r in reports] == [None, None, 1, 0]
    work = setup.run.work(0, 1)
    for fold in (0, 1):
        assert np.load(work / f"fold-{fold}.npy").shape == (GENES, 20)
        assert np.load(work / f"fold-{fold}.test.npy").shape == (GENES, 4)
        assert (work / f"fold-{fold}.safetensors").is_file()


def test_only_the_folds_of_the_lease_are_trained_in_its_order(setup: Setup) -> None:
    lease = {**config_of(setup, 6, 1), "folds": [0]}
    (report,) = worker_of(setup).reports(lease)
    assert report["fold"]["fold"] == 0 and epochs_of([report]) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert not (setup.run.work(6, 1) / "fold-1.npy").exists()


def test_after_a_death_it_goes_on_from_the_checkpoint_with_the_same_bits(
    setup: Setup, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "CHECKPOINT_SECONDS", 0.0)
    whole = list(worker_of(setup).reports(config_of(setup, 1, 1)))
    unbroken = setup.run.work(1, 1).rename(setup.run.root / "unbroken")
    first = worker_of(setup).reports(config_of(setup, 1, 5))
    next(first), next(first)
    first.close()
    # Attempt 6 left nothing behind at all.
    trained.clear()
    again = list(worker_of(setup).reports(config_of(setup, 1, 7)))
    assert trained == [2, 3, 0, 1, 2, 3], "two epochs of the first fold were in the checkpoint"
    # Points that the driver may not have journaled come again.
    points = [p for r in again for p in r["points"]]
    before = [p for r in whole for p in r["points"]]
    assert [(p["fold"], p["epoch"], p["score"]) for p in points] == [
        (p["fold"], p["epoch"], p["score"]) for p in before
    ]
    for fold in (0, 1):
        for name in (f"fold-{fold}.npy", f"fold-{fold}.test.npy"):
            resumed = setup.run.work(1, 7) / name
            assert (unbroken / name).read_bytes() == resumed.read_bytes()


def test_paused_at_a_rung_another_worker_takes_it_up_there(
    setup: Setup, trained: list[int]
) -> None:
    paused = worker_of(setup).reports(config_of(setup, 7, 1))
    for epoch in (1, 2):
        assert epochs_of([next(paused)]) == [(1, epoch)]
    # The scheduler may kill the worker, so that nothing is written any more.
    trained.clear()
    again = list(worker_of(setup).reports(config_of(setup, 7, 2)))
    assert trained == [2, 3, 0, 1, 2, 3]
    assert epochs_of(again)[:4] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_worker_that_does_not_see_the_run_does_the_same(setup: Setup) -> None:
    here = list(worker_of(setup).reports(config_of(setup, 20, 1)))
    left = setup.run.work(20, 1).rename(setup.run.root / "left")
    afar = list(worker_afar(setup).reports(config_of(setup, 20, 1)))
    right = setup.run.work(20, 1)
    kept = ("fold", "epoch", "score", "loss")
    for own, other in zip(here, afar, strict=True):
        assert own["host"] == other["host"] == "somewhere" and own["machine"] == other["machine"]
        for mine, its in zip(own["points"], other["points"], strict=True):
            assert {k: mine[k] for k in kept} == {k: its[k] for k in kept}
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    for name in (n for n in names if n.endswith(".npy")):
        assert (left / name).read_bytes() == (right / name).read_bytes()
    for name in (n for n in names if n.startswith("fold") and n.endswith(".safetensors")):
        mine, its = load_file(left / name), load_file(right / name)
        assert mine.keys() == its.keys() and all(bool((mine[k] == its[k]).all()) for k in mine)


def test_what_one_host_has_begun_another_goes_on_with(setup: Setup, trained: list[int]) -> None:
    first = worker_afar(setup).reports(config_of(setup, 21, 1))
    next(first), next(first)
    del first  # the host is gone, and all that was on its disk
    trained.clear()
    again = worker_afar(setup)
    reports = list(again.reports(config_of(setup, 21, 2)))
    assert trained == [2, 3, 0, 1, 2, 3]
    assert epochs_of(reports)[:4] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    left = [path.name for path in again.run.root.rglob("*") if path.is_file()]
    assert sorted(left) == ["folds.parquet", "targets.npy"], "what was sent or restored is deleted"


def test_a_worker_cut_off_reports_no_failure(setup: Setup) -> None:
    class Cut(Keeper):
        def write(self, *given: Any) -> None:
            raise Unreachable("the driver's host is gone")

    keeper = Cut(str(setup.run.root), [str(setup.store)])
    with pytest.raises(Unreachable):
        list(worker_afar(setup, keeper).reports(config_of(setup, 22, 1)))


def test_a_disk_that_is_full_at_the_drivers_is_told_as_such(setup: Setup) -> None:
    class Full(Keeper):
        def write(self, *given: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    keeper = Full(str(setup.run.root), [str(setup.store)])
    *_, last = worker_afar(setup, keeper).reports(config_of(setup, 23, 1))
    assert "disk full" in last["full"]


def test_a_host_without_the_folder_of_weights_says_so(setup: Setup) -> None:
    with pytest.raises(UserError, match=r"/absent is not on somewhere; put it on every host"):
        worker_of(setup, weights_dir="/absent")


def test_the_users_task_file_is_loaded_where_it_is_not_seen(setup: Setup, tmp_path: Path) -> None:
    own = tmp_path / "my_task.py"
    code = "from spaces.tasks.gene_expr import TASK\n"
    own.write_text(code)
    setup.run.task.write_text(code)
    files = worker_afar(setup).files
    assert trial_module._task_file("gene_expr", files) == "gene_expr"
    assert trial_module._task_file(str(own), files) == str(own)
    own.write_text(code + "# of an older day\n")
    for path in (own, tmp_path / "absent.py"):
        copy = Path(trial_module._task_file(str(path), files))
        assert copy != path and copy.read_text() == code
    setup.run.task.unlink()


def test_a_rung_that_nobody_may_have_judged_is_reported_before_training_goes_on(
    setup: Setup, trained: list[int]
) -> None:
    left = worker_of(setup).reports(config_of(setup, 9, 1))
    first = next(left)
    left.close()
    trained.clear()
    again = worker_of(setup).reports(config_of(setup, 9, 2))
    assert next(again)["points"] == first["points"] and trained == []
    assert epochs_of([next(again)])[0][1] == 2 and trained[0] == 1


def test_of_damaged_checkpoints_none_is_believed(setup: Setup, trained: list[int]) -> None:
    for attempt in (1, 2):
        left = worker_of(setup).reports(config_of(setup, 8, attempt))
        next(left), next(left) if attempt == 2 else None
        left.close()
    name = "epoch-1.safetensors"
    newest, older = (setup.run.work(8, attempt) / name for attempt in (2, 1))
    newest.write_bytes(newest.read_bytes()[:-100])
    trained.clear()
    again = worker_of(setup).reports(config_of(setup, 8, 3))
    next(again), next(again)
    assert trained == [1], "from the older one, which is whole"
    older.write_bytes(b"")
    (setup.run.work(8, 3) / name).unlink()
    trained.clear()
    next(worker_of(setup).reports(config_of(setup, 8, 4)))
    assert trained == [0]


def test_one_network_at_a_time_is_in_memory(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.train import network

    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen: list[int] = []
    build = network.build_model

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(len(alive))
        built = build(*args, **options)
        alive.add(built)
        return built

    monkeypatch.setattr(network, "build_model", counted)
    gc.disable()
    try:
        broken = {**config_of(setup, 18, 1), "folds": [1, 0, 99]}
        assert "end" in list(worker_of(setup).reports(broken))[-1]
        assert seen == [0, 0, 0] and not alive
    finally:
        gc.enable()


# --- what goes wrong


def test_what_goes_wrong_becomes_a_named_end(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from search.model.memory import OutOfMemory
    from search.train.fold import Diverged, FoldTraining

    for error, state in (
        (Diverged("the loss is nan"), "diverged"),
        (OutOfMemory("micro-batch 1"), "too big"),
        (torch.OutOfMemoryError("of the model itself"), "too big"),
        (KeyError("bug"), "failed"),
        (UserError("the image is too small"), "failed"),
    ):

        def fail(self: FoldTraining, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(FoldTraining, "epoch", fail)
        (report,) = worker_of(setup).reports(config_of(setup, 3, 1))
        assert report["points"] == [] and report["end"]["state"] == state
        assert str(error) in report["end"]["reason"]
        assert ("Traceback" in report["end"]["reason"]) == isinstance(error, KeyError)


def test_a_learning_rate_that_explodes_ends_as_diverged(setup: Setup) -> None:
    config = config_of(setup, 4, 1)
    config["recipe"] = {**config["recipe"], "optimizer": "sgd", "lr": 10.0, "warmup": 0.0}
    *_, last = worker_of(setup).reports(config)
    assert last["end"]["state"] == "diverged"


def test_on_a_full_disk_the_trial_is_lost_not_failed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.train import fold

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "epoch-1.safetensors")

    for number, name in (
        (9, "save_epoch"),
        (10, "save_fold"),
    ):  # at the first rung; at a fold's end
        with monkeypatch.context() as patch:
            patch.setattr(fold, name, full)
            *before, last = worker_of(setup).reports(config_of(setup, number, 1))
        assert last.pop("full").startswith("disk full: [Errno 28] No space left on device")
        assert (last["trial"], last["attempt"], last["points"]) == (number, 1, [])
        assert epochs_of(before) == ([] if name == "save_epoch" else [(1, 1), (1, 2)])
        assert not (setup.run.work(number, 1) / "fold-1.npy").exists()
    again = list(worker_of(setup).reports(config_of(setup, 10, 2)))
    assert [r["fold"]["fold"] for r in again if "fold" in r] == [1, 0]


# --- memory


class Memory:
    """Stands in for a device that holds `rows` samples in training, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        from search.model.backbone import Network
        from search.train import fold

        self.rows, self.spare_first = 10**9, 0  # forward passes in training that are spared
        self.forwards = self.errors = 0
        self.entered: list[int] = []  # micro-batch of each time that the step loop was entered
        self.steps: list[int] = []  # optimiser steps of each finished fold
        forward: Callable[..., Any] = Network.forward
        train_epoch, finish = fold.train_epoch, fold.FoldTraining.finish

        def limited(network: Network, images_BCHW: torch.Tensor) -> Any:
            self.forwards += network.training
            spared = not network.training or self.forwards <= self.spare_first
            if len(images_BCHW) > self.rows and not spared:
                self.errors += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return forward(network, images_BCHW)

        def counted(*args: Any) -> float:
            self.entered.append(args[5])
            return train_epoch(*args)

        def finished(training: fold.FoldTraining) -> Any:
            self.steps.append(training.state.step)
            return finish(training)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # 1e-5 needs float32
        monkeypatch.setattr(Network, "forward", limited)
        monkeypatch.setattr(fold, "train_epoch", counted)
        monkeypatch.setattr(fold.FoldTraining, "finish", finished)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def additive(setup: Setup, number: int, **changes: Any) -> dict[str, Any]:
    """A lease of a recipe without batch statistics, whose loss adds up over rows."""
    config = config_of(setup, number, 1)
    recipe = config["recipe"] | {
        "backbone": "test_convnext", "batch_size": 8, "optimizer": "sgd", "lr": 0.01, "ema": 0.9,
        "drop": 0.0, "drop_path": 0.0,
    }  # fmt: skip
    recipe["task"] = {**recipe["task"], "loss": "mse"}
    return {**config, "recipe": recipe | changes}


@pytest.mark.parametrize("times", (1, 2, 3))
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    setup: Setup, memory: Memory, times: int
) -> None:
    number = 10 + times
    whole = list(worker_of(setup).reports(additive(setup, number)))
    unbroken = setup.run.work(number, 1).rename(setup.run.root / f"whole-{number}")
    assert memory.entered == [8] * 8 and memory.errors == 0
    steps = memory.steps.copy()
    memory.rows, memory.spare_first = 8 >> times, memory.forwards + 3  # in the second epoch
    memory.entered.clear()
    # The same trial again, since its number decides the seeds.
    cut = list(worker_of(setup).reports(additive(setup, number)))

    fits = 8 >> times
    assert memory.errors == times
    assert memory.entered == [8, *(8 >> n for n in range(times)), *[fits] * 7]
    assert memory.steps == steps * 2, "as many optimiser steps as without"
    points = [p for r in cut for p in r["points"]]
    assert [p["micro_batch"] for p in points] == [8, *[fits] * 7]
    assert [p["batch"] for p in points] == [8] * 8
    assert epochs_of(cut) == epochs_of(whole), "the failed attempts left no score"
    losses = [p["loss"] for r in whole for p in r["points"]]
    assert [p["loss"] for p in points] == pytest.approx(losses, rel=1e-5)
    for name in ("fold-0.npy", "fold-1.npy", "fold-0.test.npy", "fold-1.test.npy"):
        halved_TV, whole_TV = np.load(setup.run.work(number, 1) / name), np.load(unbroken / name)
        np.testing.assert_allclose(halved_TV, whole_TV, atol=1e-5)


def test_the_next_trial_starts_with_what_is_known_to_fit(setup: Setup, memory: Memory) -> None:
    from search.policy.micro_batches import MicroBatches

    heard = MicroBatches()
    memory.rows = 2
    for report in worker_of(setup).reports(additive(setup, 14)):
        for point in report["points"]:
            heard.hear("test_convnext", 32, point["batch"], point["micro_batch"])
    assert (heard.limit("test_convnext", 32), memory.errors) == (2, 2)
    memory.errors = 0
    memory.entered.clear()
    lease = additive(setup, 15, batch_size=16) | {"micro_batch": heard.limit("test_convnext", 32)}
    reports = list(worker_of(setup).reports(lease))
    assert memory.errors == 0 and memory.entered == [2] * 8
    assert {(p["batch"], p["micro_batch"]) for r in reports for p in r["points"]} == {(16, 2)}


def test_a_checkpoint_is_taken_up_with_what_has_become_known_since(
    setup: Setup, memory: Memory
) -> None:
    left = worker_of(setup).reports(additive(setup, 16))
    next(left)
    left.close()
    for known, started in ((2, 2), (16, 8), (None, 8)):
        memory.entered.clear()
        config = additive(setup, 16) | {"attempt": 2, "micro_batch": known}
        again = worker_of(setup).reports(config)
        next(again), next(again)
        assert memory.entered[0] == started


def test_only_what_does_not_fit_one_by_one_is_too_big_and_it_leaves_no_score(
    setup: Setup, memory: Memory
) -> None:
    memory.rows, memory.spare_first = 0, 3  # two steps are the first epoch
    first, last = worker_of(setup).reports(additive(setup, 17))
    assert epochs_of([first]) == [(1, 1)]
    assert last["points"] == [] and "fold" not in last
    assert last["end"]["state"] == "too big" and "batch of 1" in last["end"]["reason"]
    assert memory.entered == [8, 8, 4, 2, 1] and memory.errors == 4
    assert not list(setup.run.work(17, 1).glob("fold-*"))
