"""Compiled training: the same numbers, the same state, and a way on when it does not work."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.train.fold import FoldTraining
from search.train.job import FoldJob
from spaces.recipe import Augment
from tests.test_train import Memory, job

COMPILE = torch.compile


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiles: a stand-in that traces networks and makes no kernels, or the real one, which
    takes half a minute; the test skips where that does not work."""
    if request.param == "inductor":
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
        except Exception as error:
            pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
        return

    def traced(network: torch.nn.Module, dynamic: bool, options: dict[str, Any]) -> Any:
        return COMPILE(network, dynamic=dynamic, backend=request.param)

    monkeypatch.setattr(torch, "compile", traced)


def short(**changes: Any) -> FoldJob:
    return job(
        **{"epochs": 2, "train_rows": np.arange(16), "augment": Augment(), "optimizer": "sgd",
           "lr": 0.01, "compile": True, **changes}
    )  # fmt: skip


def assert_alike(one: FoldTraining, other: FoldTraining, tolerance: float) -> None:
    """The states have the same names, and values that agree."""
    theirs = other.state.tensors()
    mine = one.state.tensors()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.usefixtures("backend")
def test_compiled_training_gives_the_same_numbers_and_state(tmp_path: Path) -> None:
    """Dropout included: it draws as it does uncompiled. Its average and its evaluation are not
    compiled, and either goes on from the other's checkpoint."""
    compiled, plain = FoldTraining(short()), FoldTraining(short(compile=False))
    for _ in range(2):
        mine, theirs = compiled.epoch(), plain.epoch()
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)
        np.testing.assert_allclose(mine.pred_TV, theirs.pred_TV, atol=1e-2)
        assert_alike(compiled, plain, 1e-2)
    assert compiled._compiled is not None, "it was given up"
    assert type(compiled.state.network) is type(plain.state.network)
    compiled.save(tmp_path / "epoch.safetensors")
    FoldTraining(short(compile=False)).restore(tmp_path / "epoch.safetensors")


@pytest.mark.usefixtures("backend")
def test_running_out_of_memory_halves_compiled_batches_too() -> None:
    failing, plain = FoldTraining(short(ema=0.0)), FoldTraining(short(compile=False, ema=0.0))
    for training in (failing, plain):
        Memory(training, 4)
    assert failing.epoch().loss == pytest.approx(plain.epoch().loss, rel=1e-3)
    assert failing.state.micro_batch == plain.state.micro_batch == 4
    assert failing._compiled is not None


@pytest.mark.parametrize("fails", ("to compile", "in the second step"))
def test_what_cannot_be_compiled_is_trained_all_the_same(
    fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(network: torch.nn.Module, **options: Any) -> Any:
        def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
            calls.append(len(images_BCHW))
            if fails == "to compile" or len(calls) == 2:
                raise RuntimeError("the compiler is broken\nin many lines")
            return network(images_BCHW)

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    compiled, plain = FoldTraining(short()), FoldTraining(short(compile=False))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert compiled.epoch().loss == plain.epoch().loss
    assert_alike(compiled, plain, 0)
    assert len(calls) == (1 if fails == "to compile" else 2), "it was tried again"
    told = [r.getMessage() for r in caplog.records]
    assert told == ["--compile failed (the compiler is broken); the fold is trained without it"]


def test_a_fault_that_is_not_the_compilers_is_not_hidden() -> None:
    training = FoldTraining(short())

    def loss(pred_BT: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("of the loss")

    training.loss_of = loss
    training._compiled.at = lambda micro_batch: training.state.network  # type: ignore
    with pytest.raises(ZeroDivisionError, match="of the loss"):
        training.epoch()
    assert training.state.epoch == training.state.step == 0


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"micro_batch": 4}, {"ema": 0.0}], ids=str)
def test_compiled_training_on_the_gpu_gives_the_same_losses(changes: dict[str, Any]) -> None:
    small = short(device="cuda", epochs=3, **changes)
    compiled, plain = FoldTraining(small), FoldTraining(dataclasses.replace(small, compile=False))
    for _ in range(3):
        assert compiled.epoch().loss == pytest.approx(plain.epoch().loss, rel=1e-2)
    assert compiled._compiled is not None
    assert compiled.state.tensors().keys() == plain.state.tensors().keys()
