"""Schedules against PyTorch's, frozen parts, learning rates of layers, averages over epochs.

Shapes: N rows, T outputs, H W C height, width and channels.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from search.model.backbone import Network, build_model, layer_groups
from search.train.fold import FoldTraining
from search.train.job import FoldJob
from search.train.optim import (
    EpochAverage,
    Plateau,
    freeze,
    learning_rate,
    make_average,
    make_optimizer,
    training_mode,
)
from spaces.recipe import SCHEDULES, Recipe

BACKBONES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")


def recipe(**fields: Any) -> Recipe:
    return Recipe(**{"backbone": "test_resnet", "image_size": 32, **fields})


def training(**fields: Any) -> FoldTraining:
    """A fold of 24 rows and 3 outputs on its way; three steps an epoch."""
    rng = np.random.default_rng(0)
    return FoldTraining(
        FoldJob(
            recipe=recipe(**{"batch_size": 6, "warmup": 0.0, "lr": 1e-2, "epochs": 4, **fields}),
            images_NHWC=rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8),
            targets_TN=rng.normal(size=(3, 24)).astype(np.float32),
            train_rows=np.arange(18),
            valid_rows=np.arange(18, 24),
            bf16=False,
        )
    )


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    return {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])}


# --- schedules


def by_pytorch(kind: Any, steps: int, **arguments: Any) -> list[float]:
    """Learning rates of each step by one of PyTorch's schedulers, with peak 0.3."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = kind(optimizer, **arguments)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total", (10, 97))
def test_schedules_are_pytorchs(total: int) -> None:
    from torch.optim import lr_scheduler as theirs

    def ours(schedule: str) -> list[float]:
        return [learning_rate(step, total, 0, 0.3, schedule) for step in range(total)]

    one = by_pytorch(theirs.OneCycleLR, total - 1, max_lr=0.3, total_steps=total)
    assert ours("onecycle")[:-1] == pytest.approx(one)
    gamma = 0.01 ** (1 / total)  # the end is 1 % of the peak
    assert ours("exponential") == pytest.approx(
        by_pytorch(theirs.ExponentialLR, total, gamma=gamma)
    )
    assert ours("cosine") == pytest.approx(by_pytorch(theirs.CosineAnnealingLR, total, T_max=total))
    assert ours("plateau") == [0.3] * total


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.integers(0, 400))
def test_rates_stay_between_zero_and_the_peak(schedule: str, total: int, warmup: int) -> None:
    rates = [learning_rate(step, total, warmup, 0.3, schedule) for step in range(total)]
    assert all(0 < rate <= 0.3 * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if schedule == "onecycle":
        assert max(rates) >= 0.2 or total < 8
    elif warmup < total:
        assert max(rates) == pytest.approx(0.3)


@given(st.lists(st.floats(0.1, 10), max_size=30))
def test_plateau_is_pytorchs_with_a_patience_of_one_more_epoch(losses: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.01, eps=0
    )
    ours = Plateau()
    for loss in losses:
        theirs.step(loss)
        ours.observe(loss)
        assert ours.factor == optimizer.param_groups[0]["lr"]


def test_a_plateau_lowers_the_rate_of_the_steps_after_it() -> None:
    fold = training(schedule="plateau", lr=1e-3)
    fold.epoch()
    assert {g["lr"] for g in fold.state.optimizer.param_groups} == {1e-3}
    fold.state.plateau.best = 0.0  # nothing is better than that
    fold.epoch()
    fold.epoch()
    assert fold.state.plateau.factor == 0.5
    fold.epoch()
    assert {g["lr"] for g in fold.state.optimizer.param_groups} == {5e-4}


def test_the_other_schedules_do_not_look_at_the_loss() -> None:
    fold = training(schedule="exponential")
    fold.state.plateau.factor = 0.5
    fold.epoch()
    assert fold.state.optimizer.param_groups[0]["lr"] == learning_rate(
        2, 12, 0, 1e-2, "exponential"
    )


# --- layers, frozen parts


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_learn_the_slower_the_nearer_to_the_stem(backbone: str) -> None:
    network = build_model(recipe(backbone=backbone), outputs=2)
    decayed = recipe(backbone=backbone, layer_decay=0.5, head_lr_mult=4.0, lr=0.1)
    found = {
        id(parameter): group["lr"]
        for group in make_optimizer(network, decayed).param_groups
        for parameter in group["params"]
    }
    groups = layer_groups(network)
    assert len(groups) > 2
    expected = {
        name: 0.1 * 0.5 ** (len(groups) - i)
        for i, group in enumerate(groups, start=1)
        for name, _ in group
    }
    for name, parameter in network.named_parameters():
        assert found[id(parameter)] == pytest.approx(expected.get(name, 0.4)), name
        assert (name in expected) == name.startswith("backbone.")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", ("none", "last_layer", "last_block"))
def test_only_what_is_not_frozen_changes_while_training(backbone: str, kind: str) -> None:
    fold = training(backbone=backbone, freeze=kind, drop_path=0.1, ema=0.0)
    network = fold.state.network
    before = weights(network)
    fold.epoch()
    head = {name for name in before if name.startswith("head.")}
    last = {name for name, _ in layer_groups(network)[-1]}
    parameters = {name for name, _ in network.named_parameters()}
    moved = changed(before, network)
    if kind == "last_layer":
        assert moved == head
    elif kind == "last_block":
        assert moved & parameters == head | last
        owners = {name.rpartition(".")[0] for name in last}
        assert {name.rpartition(".")[0] for name in moved - parameters} <= owners
    else:
        assert moved == set(before)


def test_statistics_of_frozen_norms_stay_and_those_of_the_last_block_move() -> None:
    network = build_model(recipe(), outputs=2)
    freeze(network, "last_block")
    before = weights(network)
    training_mode(network)
    network(torch.randn(4, 3, 32, 32))
    moved = changed(before, network)
    assert any("running_mean" in name for name in moved)
    first = {name.rpartition(".")[0] for group in layer_groups(network)[:-1] for name, _ in group}
    assert not {name for name in moved if name.rpartition(".")[0] in first}


def test_training_mode_is_the_usual_one_where_all_learns() -> None:
    network = build_model(recipe(), outputs=2).eval()
    training_mode(network)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(("optimizer", "pooling"), (("adamw", "gem"), ("sgd", "avg")))
def test_the_backbone_waits_until_the_head_is_warm(optimizer: str, pooling: str) -> None:
    fold = training(head_warmup=2.0, optimizer=optimizer, pooling=pooling)
    network = fold.state.network
    start = weights(network)
    fold.epoch()
    fold.epoch()
    learned = {name for name, _ in network.named_parameters()}
    assert changed(start, network) & learned == {
        name for name in learned if not name.startswith("backbone.")
    }
    assert any("running_mean" in name for name in changed(start, network))
    fold.epoch()
    kernels = {name for name, p in network.named_parameters() if p.ndim > 1}
    assert changed(start, network) & kernels == kernels


# --- averages over epochs


def source() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_average_over_epochs_is_their_mean_once_begun() -> None:
    network = source()
    average = EpochAverage(network, first=3)
    taken: list[dict[str, Tensor]] = []
    for epoch in range(1, 6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(4, 3))
        average.update(epoch)
        average.end_epoch(epoch)
        if epoch < 3:
            assert average.network is network
            continue
        taken.append(weights(network))
        for name, tensor in average.network.state_dict().items():
            mean = torch.stack([t[name].double() for t in taken]).mean(0)
            expected = mean if tensor.is_floating_point() else taken[-1][name]
            torch.testing.assert_close(tensor.double(), expected.double(), atol=1e-6, rtol=1e-6)
    assert average.network is not network


@pytest.mark.parametrize(
    ("swa", "epochs", "first"), ((0.25, 8, 7), (0.01, 8, 8), (1.0, 8, 1), (0.5, 1, 1))
)
def test_the_share_of_epochs_that_are_averaged(swa: float, epochs: int, first: int) -> None:
    network: Network = build_model(recipe(), outputs=2)
    average = make_average(network, recipe(swa=swa, epochs=epochs, ema=0.9))
    assert isinstance(average, EpochAverage)
    begun = []
    for epoch in range(1, epochs + 1):
        average.end_epoch(epoch)
        begun.append(average.network is not network)
    assert begun.index(True) == first - 1
    assert all(begun[first - 1 :])


def test_a_fold_is_judged_by_the_average_of_its_last_epochs() -> None:
    fold = training(swa=0.5, head_lr_mult=3.0)
    taken = []
    while not fold.done:
        fold.epoch()
        taken.append(weights(fold.state.network))
    state = fold.finish().state
    name = "backbone.conv1.weight" if "backbone.conv1.weight" in state else "head.1.weight"
    torch.testing.assert_close(state[name], (taken[2][name] + taken[3][name]) / 2)
    assert not math.isclose(float((taken[2][name] - taken[3][name]).abs().max()), 0)
