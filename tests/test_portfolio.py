"""The portfolio: known-good recipes, then each series of backbones once, all in the space."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.policy.portfolio import portfolio
from spaces.backbones import family, relative_cost, series
from spaces.errors import UserError
from spaces.means import Means
from spaces.recipe import Recipe
from spaces.space import Choose, Space
from spaces.tasks.gene_expr import CPU_BACKBONES, GPU_BACKBONES, TASK

NAMES = sorted({*GPU_BACKBONES, *CPU_BACKBONES})


def space_of(
    backbones: tuple[str, ...], gpu: bool = True, pretrained: bool = True
) -> tuple[Space, Any]:
    """gene_expr's space on these backbones, and the price of a trial on each."""
    means = Means(
        gpu=gpu, pretrained=pretrained, image_sizes=(64,), backbones=backbones, epochs=5,
        train_rows=600,
    )  # fmt: skip
    return TASK.space(means), partial(relative_cost, image_size=64, gpu=gpu)


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.booleans(),
    st.booleans(),
    st.integers(0, 30),
)
def test_recipes_are_different_in_the_space_within_the_limit_and_always_the_same(
    backbones: list[str], gpu: bool, pretrained: bool, limit: int
) -> None:
    space, cost = space_of(tuple(backbones), gpu, pretrained)
    found = portfolio(space, backbones, cost, limit)
    assert found == portfolio(space, backbones, cost, limit) and len(found) <= limit
    assert all(space.contains(params) for params in found)
    assert all(found.count(params) == 1 for params in found)
    assert found == portfolio(space, backbones, cost, 100)[:limit]


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.booleans())
def test_every_series_comes_and_those_that_no_known_recipe_covers_once_by_their_cheapest(
    backbones: list[str], gpu: bool
) -> None:
    space, cost = space_of(tuple(backbones), gpu)
    own = [space.fixed(values)[1] for values in space.first]
    found = portfolio(space, backbones, cost, 100)
    assert found[: len(own)] == own
    covered = {series(params["backbone"]) for params in own}
    added = [params["backbone"] for params in found[len(own) :]]
    assert sorted(map(series, added)) == sorted({series(b) for b in backbones} - covered)
    for backbone in added:
        rivals = [b for b in backbones if series(b) == series(backbone)]
        assert cost(backbone) == min(map(cost, rivals))
        assert space.fixed({"backbone": backbone})[1] in found
    for kind in ("cnn", "transformer"):
        prices = [cost(b) for b in added if family(b) == kind]
        assert prices == sorted(prices)
    pairs = min(sum(family(b) == kind for b in added) for kind in ("cnn", "transformer"))
    assert all(family(added[2 * i]) != family(added[2 * i + 1]) for i in range(pairs))


def test_backbones_that_may_not_be_used_do_not_come() -> None:
    space, cost = space_of(GPU_BACKBONES)
    found = portfolio(space, ["resnet18", "swinv2_tiny_window8_256"], cost, 100)
    assert {params["backbone"] for params in found} == {"resnet18", "swinv2_tiny_window8_256"}


def test_recipes_of_earlier_runs_come_before_the_tasks_own_and_count_as_covering() -> None:
    space, cost = space_of(GPU_BACKBONES)
    warm: list[Mapping[str, Any]] = [
        space.fixed({"backbone": "convnext_tiny", "lr": 3e-4})[1],
        space.fixed(space.first[0])[1],
    ]
    found = portfolio(space, GPU_BACKBONES, cost, 100, warm)
    assert found[:2] == warm and found.count(dict(warm[1])) == 1
    assert [params["backbone"] for params in found].count("convnext_tiny") == 1


def test_a_backbone_that_the_space_leaves_out_is_passed_over_but_a_wrong_recipe_is_refused() -> (
    None
):
    def define(choose: Choose) -> Recipe:
        return Recipe(backbone=choose.pick("backbone", ("resnet18", "densenet121"), "resnet18"))

    found = portfolio(Space(define), ["vit_small", "densenet121", "resnet18"], len, 9)
    assert [params["backbone"] for params in found] == ["resnet18", "densenet121"]
    with pytest.raises(UserError, match="vit_small"):
        portfolio(Space(define, first=[{"backbone": "vit_small"}]), ["resnet18"], len, 9)
