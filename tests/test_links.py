"""From raw outputs to predictions. Shapes: N rows, T outputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from search.model.backbone import build_model
from search.model.infer import FoldModel, save_model
from search.model.links import apply_link, finish_predictions, link_of
from spaces.recipe import Recipe
from spaces.task import TASK_TYPES

RAW_NT = torch.tensor([[-50.0, 0.0, 3.0], [0.5, 40.0, -1.0]])


def test_every_type_of_task_has_its_link() -> None:
    assert {kind: link_of(kind) for kind in TASK_TYPES} == {
        "regression": "identity",
        "binary": "sigmoid",
        "multilabel": "sigmoid",
        "multiclass": "softmax",
    }
    with pytest.raises(KeyError):
        link_of("ranking")


def test_links_are_scipys() -> None:
    raw_NT = RAW_NT.double().numpy()
    assert apply_link(RAW_NT, "identity") is RAW_NT
    np.testing.assert_allclose(apply_link(RAW_NT, "sigmoid"), expit(raw_NT), rtol=1e-6)
    np.testing.assert_allclose(apply_link(RAW_NT, "softmax"), softmax(raw_NT, axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"'tanh'.*softmax"):
        apply_link(RAW_NT, "tanh")


def test_only_values_have_units() -> None:
    mean_T, std_T = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 0.5])
    values_NT = finish_predictions(RAW_NT, "identity", mean_T, std_T)
    np.testing.assert_allclose(values_NT, RAW_NT.numpy() * std_T.numpy() + mean_T.numpy())
    classes_NT = finish_predictions(RAW_NT, "sigmoid", mean_T, std_T)
    np.testing.assert_allclose(classes_NT, expit(RAW_NT.numpy()), rtol=1e-6)


@pytest.mark.parametrize("link", ("sigmoid", "softmax"))
def test_flips_are_averaged_before_the_link(tmp_path, link: str) -> None:
    recipe = Recipe(backbone="test_resnet", image_size=32, tta=4)
    torch.manual_seed(0)
    network = build_model(recipe, outputs=3).eval()
    with torch.no_grad():
        network.head[-1].weight.mul_(100)  # far from the link's straight part
    facts = {name: torch.zeros(3) for name in ("target.mean", "image.mean")}
    facts |= {name: torch.ones(3) for name in ("target.std", "image.std")}
    path = tmp_path / "fold-0.safetensors"
    save_model(path, {**network.state_dict(), **facts}, recipe.to_dict(), 3, link=link)
    stored = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pred_NT = FoldModel.load(path).predict(stored)
    images = torch.from_numpy(stored).permute(0, 3, 1, 2) / 255
    flips = [images, images.flip(3), images.flip(2), images.flip(2, 3)]
    with torch.no_grad():
        raw_NT = torch.stack([network(flip) for flip in flips]).mean(0).numpy()
    reference = expit(raw_NT) if link == "sigmoid" else softmax(raw_NT, axis=1)
    np.testing.assert_allclose(pred_NT, reference, atol=1e-4)
    assert pred_NT.min() >= 0 and pred_NT.max() <= 1 and np.ptp(pred_NT) > 0.05


def test_a_model_of_the_hub_is_built_again_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(backbone="hf-hub:me/mine", image_size=32)
    args = {"act_layer": "silu"}
    theirs = build_model(replace(recipe, backbone="test_resnet"), 2, model_args=args).eval()
    state = dict(theirs.state_dict())
    state |= {"target.mean": torch.zeros(2), "target.std": torch.ones(2)}
    state |= {"image.mean": torch.zeros(3), "image.std": torch.ones(3)}
    monkeypatch.setattr("search.model.infer.hub_model", lambda name: ("test_resnet", args))
    save_model(tmp_path / "fold-0.safetensors", state, recipe.to_dict(), 2)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(images, tta=1), theirs(x).numpy(), atol=1e-5)
