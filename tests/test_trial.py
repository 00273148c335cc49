"""The worker of a trial, without Ray: what it reports, and what it does after a death."""

import argparse
from typing import Any

import numpy as np
import pytest

from search import trial as trial_module
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


def worker_of(setup: Setup) -> Worker:
    return Worker(
        Context(
            run=str(setup.run.root), store=str(setup.store), task=setup.task_name,
            metric=setup.metric, seed=0, threads=1, gpus=0.0, weights_dir=None,
        )
    )  # fmt: skip


def config_of(setup: Setup, number: int, attempt: int, **changes: Any) -> dict[str, Any]:
    recipe, _ = setup.task.space(setup.means).fixed({"backbone": "test_resnet", **changes})
    return {"trial": number, "attempt": attempt, "recipe": recipe.to_dict(), "folds": [1, 0],
            "first_fold": 1, "rung_epochs": [1, 2]}  # fmt: skip


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


def test_after_a_death_it_goes_on_from_the_checkpoint_with_the_same_bits(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "CHECKPOINT_SECONDS", 0.0)
    whole = list(worker_of(setup).reports(config_of(setup, 1, 1)))
    unbroken = setup.run.work(1, 1).rename(setup.run.root / "unbroken")
    first = worker_of(setup).reports(config_of(setup, 1, 5))
    next(first), next(first)
    first.close()
    # Attempt 6 left nothing behind at all.
    trained: list[int] = []
    worker = worker_of(setup)
    from search.train.fold import FoldTraining

    epoch = FoldTraining.epoch
    monkeypatch.setattr(
        FoldTraining, "epoch", lambda self: trained.append(self.state.epoch) or epoch(self)
    )
    again = list(worker.reports(config_of(setup, 1, 7)))
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


def test_what_goes_wrong_becomes_a_named_end(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.model.memory import OutOfMemory
    from search.train.fold import Diverged, FoldTraining

    for error, state in (
        (Diverged("the loss is nan"), "diverged"),
        (OutOfMemory("micro-batch 1"), "out of memory"),
        (KeyError("bug"), "failed"),
        (UserError("the image is too small"), "failed"),
    ):

        def fail(self: FoldTraining, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(FoldTraining, "epoch", fail)
        (report,) = worker_of(setup).reports(config_of(setup, 3, 1))
        assert report["end"]["state"] == state and str(error) in report["end"]["reason"]
        assert ("Traceback" in report["end"]["reason"]) == isinstance(error, KeyError)


def test_a_learning_rate_that_explodes_ends_as_diverged(setup: Setup) -> None:
    config = config_of(setup, 4, 1)
    config["recipe"] = {**config["recipe"], "optimizer": "sgd", "lr": 10.0, "warmup": 0.0}
    *_, last = worker_of(setup).reports(config)
    assert last["end"]["state"] == "diverged"
