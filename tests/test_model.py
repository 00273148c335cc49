"""Backbones, heads, losses and the model of a fold.

Shapes: B batch, N rows, H W height and width, C channels, T outputs.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from search.data.augment import dihedral
from search.model.backbone import build_model
from search.model.facts import known_backbone, model_facts, normalisation
from search.model.heads import GeM, swap_activations
from search.model.infer import FORMAT, FoldModel, save_model
from search.model.losses import adds_up, correlation, make_loss, target_scale
from spaces.errors import UserError
from spaces.parts import REGRESSION_LOSSES, Regression
from spaces.recipe import HEADS, POOLINGS, Recipe

# One of each layout of feature maps: B C H W, B H W C, class token and patches, patches only.
LAYOUTS = ("test_resnet", "test_mambaout", "test_vit", "test_vit_relpos")


def tiny(**fields: object) -> Recipe:
    return Recipe(**{"backbone": "test_resnet", "image_size": 32, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", LAYOUTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_serves_every_layout(backbone: str, pooling: str) -> None:
    network = build_model(tiny(backbone=backbone, pooling=pooling), outputs=5)
    out_BT = network(torch.randn(2, 3, 32, 32))
    assert out_BT.shape == (2, 5)
    out_BT.sum().backward()
    assert all(p.grad is not None for p in network.head.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_every_head_starts_near_the_target_mean(head: str) -> None:
    network = build_model(tiny(head=head), outputs=5).eval()
    out_BT = network(torch.randn(4, 3, 32, 32))
    assert out_BT.shape == (4, 5)
    assert out_BT.abs().max() < 1


@pytest.mark.parametrize("backbone", ("test_resnet", "test_mambaout", "test_vit_relpos"))
def test_own_pooling_agrees_with_timms(backbone: str) -> None:
    """A map of one position goes through timm's own pooling unchanged, so layers behind it see
    the same as when timm pools."""
    images_BCHW = torch.randn(2, 3, 64, 64)
    network = build_model(tiny(backbone=backbone, image_size=64), outputs=2).eval()
    maps = network.backbone.forward_features(images_BCHW)
    by_hand = network._after_pooling(network._spread(network._positions(maps).mean(1)))
    torch.testing.assert_close(by_hand, network.features(images_BCHW))


def test_gem_lies_between_mean_and_maximum() -> None:
    values_BLC = torch.rand(3, 7, 5)
    torch.testing.assert_close(GeM(1.0)(values_BLC), values_BLC.mean(1))
    assert (GeM(50.0)(values_BLC) > 0.9 * values_BLC.amax(1)).all()


def test_swapped_activations_leave_no_relu_and_right_gradients() -> None:
    network = timm.create_model("test_resnet", num_classes=0).double()
    relus = sum(isinstance(m, torch.nn.ReLU) for m in network.modules())
    assert swap_activations(network, "silu") == relus > 0
    assert not any(isinstance(m, torch.nn.ReLU) for m in network.modules())
    network.eval()
    images = torch.randn(1, 3, 16, 16, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x).mean(), (images,), fast_mode=True)


@pytest.mark.parametrize("backbone", ("test_vit", "test_maxvit"))
def test_models_of_one_size_are_built_for_the_recipes_size(backbone: str) -> None:
    assert model_facts(backbone).fixed_size
    network = build_model(tiny(backbone=backbone, image_size=96), outputs=2)
    assert network(torch.randn(2, 3, 96, 96)).shape == (2, 2)


def test_impossible_size_names_backbone_and_size() -> None:
    with pytest.raises(UserError, match=r"test_maxvit cannot take images of 37 px"):
        build_model(tiny(backbone="test_maxvit", image_size=37), outputs=2)


def test_stochastic_depth_is_used_where_there_is_some_and_said_where_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = build_model(tiny(backbone="test_convnext", drop_path=0.3), outputs=2)
    assert any(type(m).__name__ == "DropPath" for m in network.modules())
    assert not caplog.records
    build_model(tiny(backbone="densenet121", drop_path=0.3), outputs=2)
    assert "drop_path is ignored" in caplog.text


def test_facts_are_timms() -> None:
    facts = model_facts("test_efficientnet")
    model = timm.create_model("test_efficientnet", num_classes=0)
    assert facts.mean == model.pretrained_cfg["mean"]
    assert facts.std == model.pretrained_cfg["std"]
    assert facts.input_size == 160
    assert not facts.fixed_size
    assert facts.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ("resnet5O", "resnet50.no_such_tag", "xception", ""))
def test_unknown_backbone_lists_near_names(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown.*(near names|known): "):
        known_backbone(name)


def test_what_the_hub_has_is_taken_by_its_name_alone() -> None:
    known_backbone("hf-hub:MahmoodLab/uni")
    known_backbone("hf-hub:timm/resnet18.a1_in1k@main")
    for name in ("hf-hub:uni", "hf-hub:", "hf-hub:a/b/c"):
        with pytest.raises(UserError, match="write hf-hub:OWNER/MODEL"):
            known_backbone(name)


@pytest.mark.parametrize("channels", (1, 2, 3, 4, 6))
def test_every_channel_is_normalised(channels: int) -> None:
    facts = model_facts("test_resnet")
    mean, std = normalisation(tiny(), facts, channels)
    grey = [sum(values) / 3 for values in (facts.mean, facts.std)]
    own = 3 if channels >= 3 else 0
    assert mean == pytest.approx((*facts.mean[:own], *[grey[0]] * (channels - own)))
    assert std == pytest.approx((*facts.std[:own], *[grey[1]] * (channels - own)))
    for kind in ("minmax", "image", "train"):
        given = normalisation(tiny(normalise=kind), facts, channels)
        assert given == ((0,) * channels, (1,) * channels)


@pytest.mark.parametrize("channels", (1, 4, 5))
@pytest.mark.parametrize("backbone", LAYOUTS)
def test_networks_see_any_number_of_channels(backbone: str, channels: int) -> None:
    network = build_model(tiny(backbone=backbone), outputs=2, channels=channels)
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 2)


# --- losses


def parts(loss: str) -> Regression:
    return Regression(loss=loss, pearson_weight=0.7, huber_delta=0.5)


def test_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    pred, true = rng.normal(size=(2, 9, 6))
    ours = correlation(torch.tensor(pred), torch.tensor(true), dim=0)
    reference = [np.corrcoef(pred[:, t], true[:, t])[0, 1] for t in range(6)]
    np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("loss", REGRESSION_LOSSES)
def test_loss_is_least_and_finite_at_the_truth(loss: str) -> None:
    torch.manual_seed(0)
    target_BT = torch.randn(8, 6)
    target_BT[:, 2] = 0  # a gene that is constant in the batch
    loss_of = make_loss(parts(loss), torch.rand(6) + 0.1)
    at_truth = target_BT.clone().requires_grad_()
    value = loss_of(at_truth, target_BT)
    value.backward()
    assert at_truth.grad is not None and at_truth.grad.isfinite().all()
    for _ in range(5):
        assert loss_of(target_BT + 0.3 * torch.randn(8, 6), target_BT) > value
    constant = torch.zeros(8, 6, requires_grad=True)
    loss_of(constant, target_BT).backward()
    assert constant.grad is not None and constant.grad.isfinite().all()


@pytest.mark.parametrize("loss", REGRESSION_LOSSES)
def test_adds_up_says_whether_micro_batches_agree(loss: str) -> None:
    torch.manual_seed(0)
    pred_BT, target_BT = torch.randn(2, 12, 6)
    loss_of = make_loss(parts(loss), torch.ones(6))
    cut = loss_of(pred_BT[:4], target_BT[:4]) / 3 + loss_of(pred_BT[4:], target_BT[4:]) * 2 / 3
    assert torch.isclose(cut, loss_of(pred_BT, target_BT)) == adds_up(parts(loss))


def test_cell_correlation_is_over_deviations_in_original_units() -> None:
    torch.manual_seed(0)
    pred_BT, target_BT = torch.randn(2, 4, 50)
    std_T = torch.rand(50) * 3 + 0.1
    part = Regression(loss="mse_pearson_cell", pearson_weight=2)
    rows = [
        np.corrcoef((pred_BT[b] * std_T).numpy(), (target_BT[b] * std_T).numpy())[0, 1]
        for b in range(4)
    ]
    squared = (pred_BT - target_BT).square().mean().item()
    value = make_loss(part, std_T)(pred_BT, target_BT).item()
    assert value == pytest.approx(squared + 2 * (1 - np.mean(rows)), abs=1e-4)


@pytest.mark.parametrize("kind", ("zscore", "raw"))
def test_constant_outputs_are_left_at_their_mean(kind: str) -> None:
    targets_NT = torch.randn(20, 3) * torch.tensor([5.0, 1.0, 0.0]) + 7
    mean_T, std_T = target_scale(targets_NT, kind)
    torch.testing.assert_close(mean_T, targets_NT.mean(0))
    standard_NT = (targets_NT - mean_T) / std_T
    assert standard_NT[:, 2].abs().max() < 1e-5
    if kind == "zscore":
        torch.testing.assert_close(standard_NT[:, :2].std(0, correction=0), torch.ones(2))
    else:
        assert std_T.unique().numel() == 1
        assert standard_NT.square().mean() == pytest.approx(1, abs=1e-4)


# --- the model of a fold


def write_fold_model(path: Path, recipe: Recipe, outputs: int = 4) -> None:
    torch.manual_seed(3)
    state = {k: v.clone() for k, v in build_model(recipe, outputs).state_dict().items()}
    facts = {
        "target.mean": torch.arange(outputs).float(),
        "target.std": torch.ones(outputs) * 2,
        "image.mean": torch.full((3,), 0.5),
        "image.std": torch.full((3,), 0.25),
    }
    save_model(path, {**state, **facts}, recipe.to_dict(), outputs)


def some_images(rows: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)


def test_eight_views_make_the_prediction_blind_to_position(tmp_path: Path) -> None:
    write_fold_model(tmp_path / "fold-0.safetensors", tiny(tta=8))
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    images_NHWC = torch.from_numpy(some_images(3))
    turned_NHWC = dihedral(images_NHWC.permute(0, 3, 1, 2), 5).permute(0, 2, 3, 1).contiguous()
    np.testing.assert_allclose(model.predict(images_NHWC), model.predict(turned_NHWC), atol=1e-5)
    one_view = model.predict(images_NHWC, tta=1) - model.predict(turned_NHWC, tta=1)
    assert np.abs(one_view).max() > 1e-4


def test_predictions_are_in_original_units_whatever_the_batch_size(tmp_path: Path) -> None:
    write_fold_model(tmp_path / "fold-0.safetensors", tiny())
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    images_NHWC = some_images(7)
    pred_NT = model.predict(images_NHWC, batch_size=64)
    assert pred_NT.shape == (7, 4) and pred_NT.dtype == np.float32
    np.testing.assert_allclose(model.predict(images_NHWC, batch_size=3), pred_NT, atol=1e-5)
    normal = (torch.from_numpy(images_NHWC).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        reference = model.network(normal) * 2 + torch.arange(4)
    np.testing.assert_allclose(pred_NT, reference, atol=1e-4)


@pytest.mark.parametrize("link", ("identity", "sigmoid"))
def test_a_probe_reads_the_mean_of_the_features(tmp_path: Path, link: str) -> None:
    """Not the mean of what the head makes of each flip: it was fitted on means."""
    recipe = tiny(probe="knn", epochs=1, tta=4)
    backbone = build_model(recipe, 2)
    features = backbone.head[-1].in_features  # type: ignore[index]
    generator = torch.Generator().manual_seed(0)
    keys_NR = torch.randn(20, features, generator=generator)
    head = {
        "link_code": torch.tensor(("identity", "sigmoid").index(link)),
        "mean": torch.full((features,), 0.5),
        "std": torch.full((features,), 0.1),
        "keys": keys_NR,
        "values": torch.rand(20, 2, generator=generator),
        "k": torch.tensor(3),
        "cosine": torch.tensor(False),
        "by_distance": torch.tensor(True),
    }
    facts = {"target.mean": torch.zeros(2), "target.std": torch.ones(2)}
    facts |= {"image.mean": torch.full((3,), 0.5), "image.std": torch.full((3,), 0.25)}
    own = {n: t for n, t in backbone.state_dict().items() if not n.startswith("head.")}
    state = {**own, **{f"head.{name}": tensor for name, tensor in head.items()}, **facts}
    save_model(tmp_path / "fold-0.safetensors", state, recipe.to_dict(), 2, link=link)
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    images_NHWC = some_images(6)
    features_NF = torch.from_numpy(model.features(images_NHWC))
    distance_NK = torch.cdist((features_NF.double() - 0.5) / 0.1, keys_NR.double())
    near_N3 = distance_NK.topk(3, largest=False)
    weight_N3 = 1 / near_N3.values
    values_N3T = head["values"][near_N3.indices].double()
    expected_NT = (weight_N3[..., None] * values_N3T).sum(1) / weight_N3.sum(1, keepdim=True)
    np.testing.assert_allclose(model.predict(images_NHWC), expected_NT, atol=1e-4)


@pytest.mark.parametrize(
    "damage", ("cut", "no facts", "no weights", "no link", "format", "not there")
)
def test_damaged_fold_model_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "fold-0.safetensors"
    write_fold_model(path, tiny())
    tensors = load_file(path)
    metadata = {"format": FORMAT, "outputs": "4", "channels": "3", "views": "1"}
    metadata |= {"recipe": json.dumps(tiny().to_dict()), "link": "identity"}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "not there":
        path.unlink()
    else:
        if damage == "no facts":
            del tensors["target.std"]
        elif damage == "no weights":
            del tensors["backbone.conv1.0.weight"]
        elif damage == "no link":
            del metadata["link"]
        else:
            metadata["format"] = "1"
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match="fold-0"):
        FoldModel.load(path)
