"""Recipes and spaces: strict, frozen, invertible; the known-good recipes lie in their space."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.backbones import family
from spaces.errors import UserError
from spaces.means import Means
from spaces.parts import Regression
from spaces.recipe import Augment, Recipe
from spaces.registry import load_task
from spaces.seeds import derive
from spaces.usual import CPU_BACKBONES, GPU_BACKBONES, LEARNING_RATES
from tests.drawn import Drawn

TASK = load_task("gene_expr")


def means(gpu: bool, pretrained: bool) -> Means:
    return Means(
        gpu=gpu, pretrained=pretrained, image_sizes=(224, 192) if gpu else (64,),
        backbones=GPU_BACKBONES if gpu else CPU_BACKBONES, epochs=12, train_rows=600,
    )  # fmt: skip


ALL = [means(gpu, pretrained) for gpu in (False, True) for pretrained in (False, True)]


@pytest.mark.parametrize("given_means", ALL)
def test_every_draw_is_a_recipe_that_its_parameters_give_again(given_means: Means) -> None:
    space = TASK.space(given_means)
    for seed in range(60):
        drawn = Drawn(random.Random(seed))
        recipe = space.define(drawn)
        assert space.contains(drawn.params)
        assert space.fixed(drawn.params)[0] == recipe
        again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())), TASK.part)
        assert again == recipe and again.digest == recipe.digest


@pytest.mark.parametrize("given_means", ALL)
def test_first_recipes_lie_in_the_space(given_means: Means) -> None:
    space = TASK.space(given_means)
    recipes = [space.fixed(values) for values in space.first]
    assert all(space.contains(params) for _, params in recipes)
    assert {recipe.backbone for recipe, _ in recipes} <= set(given_means.backbones)


def test_learning_rates_depend_on_weights_and_family() -> None:
    for given_means in ALL:
        space = TASK.space(given_means)
        for backbone in given_means.backbones:
            recipe, _ = space.fixed({"backbone": backbone, "optimizer": "adamw"})
            weights = "pretrained" if given_means.pretrained else "random"
            low, high, usual = LEARNING_RATES[weights, family(backbone)]
            assert low <= recipe.lr <= high and recipe.lr == usual
            assert recipe.weights == weights


def test_what_lies_outside_the_space_is_named() -> None:
    space = TASK.space(ALL[0])
    with pytest.raises(UserError) as caught:
        space.fixed({"backbone": "resnet152", "lr": 7.0, "learning_rate": 1e-3})
    text = str(caught.value)
    assert "'resnet152'" in text and "lr@cnn is 7.0" in text and "learning_rate" in text
    params = space.fixed({})[1]
    assert space.contains(params)
    assert not space.contains({**params, "lr@cnn": 1.0})
    assert not space.contains({**params, "more": 1})


@given(st.dictionaries(st.sampled_from(["lrr", "bogus", "epochz"]), st.integers(), min_size=1))
def test_unknown_recipe_fields_are_refused(extra: dict[str, int]) -> None:
    data = Recipe(backbone="resnet18", task=Regression()).to_dict()
    with pytest.raises(UserError, match="is unknown"):
        Recipe.from_dict({**data, **extra}, Regression)
    with pytest.raises(UserError, match=r"augment\..* is unknown"):
        Recipe.from_dict({**data, "augment": {**data["augment"], **extra}}, Regression)


def test_a_recipe_reports_all_its_faults() -> None:
    with pytest.raises(UserError) as caught:
        Recipe(backbone="resnet18", lr=-1, epochs=0, pooling="sum", tta=3)
    assert len(caught.value.faults) == 4
    with pytest.raises(UserError):
        Augment(crop=0)
    with pytest.raises(UserError, match="backbone is missing"):
        Recipe.from_dict({}, None)


def test_seeds_differ_by_every_part() -> None:
    seeds = {derive(*parts) for parts in [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 12), ("0", 1)]}
    assert len(seeds) == 5
    assert derive(0, 1, 2) == derive(0, 1, 2) and 0 <= derive(7) < 2**63


def test_a_user_task_file_is_loaded_and_checked(tmp_path: Any) -> None:
    good = tmp_path / "mine.py"
    good.write_text(
        "import dataclasses\nfrom spaces.tasks.gene_expr import TASK as T\n"
        "TASK = dataclasses.replace(T, name='mine')\n"
    )
    assert load_task(str(good)).name == "mine"
    bad = tmp_path / "bad.py"
    bad.write_text("TASK = 3\n")
    with pytest.raises(UserError, match="defines no TASK"):
        load_task(str(bad))
    with pytest.raises(UserError, match="does not exist"):
        load_task(str(tmp_path / "none.py"))
    with pytest.raises(UserError, match="near names: gene_expr"):
        load_task("gene_exp")
