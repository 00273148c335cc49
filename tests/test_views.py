"""Networks that see several views of a row.

Shapes: B samples, V views, X = B x V images, C channels, H W height and width, F features,
T outputs.
"""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from search.model.backbone import build_model, layer_groups
from search.model.heads import GeM, Head
from search.model.infer import FoldModel, save_model
from search.model.views import (
    Attention,
    Concat,
    Max,
    Mean,
    Transformer,
    grid_views,
    make_fusion,
    stack_views,
)
from spaces.errors import UserError
from spaces.recipe import FUSIONS, Recipe

VIEWS = 4
LEARNED = ("mean", "max", "attention", "transformer", "concat")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(**fields: object) -> Recipe:
    return Recipe(**{"backbone": "test_resnet", "image_size": 32, **fields})  # type: ignore[arg-type]


def some_images(samples: int = 2, views: int = VIEWS, channels: int = 3, size: int = 32) -> Tensor:
    images_XCHW = torch.randn(samples * views, channels, size, size)
    return images_XCHW.contiguous(memory_format=torch.channels_last)


def stirred(module: nn.Module) -> nn.Module:
    """With every parameter drawn, so that nothing is at its neutral start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


# --- one view


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_view_knows_nothing_of_fusions(fusion: str) -> None:
    """The very network, draw by draw, that there was before views."""
    recipe = tiny(fusion=fusion, pooling="gem", head="mlp")
    torch.manual_seed(5)
    network = build_model(recipe, outputs=4)
    torch.manual_seed(5)
    backbone = timm.create_model("test_resnet", num_classes=0)
    head = Head("mlp", backbone.num_features, 4, "silu", 0.0)
    parts = {"backbone": backbone, "gem": GeM(), "head": head}
    expected = {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    found = network.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert network.fusion is None


# --- images side by side


def test_a_stack_is_the_views_channels_side_by_side() -> None:
    images_XCHW = some_images(channels=2)
    stacked = stack_views(images_XCHW, VIEWS)
    by_hand = [torch.cat(list(images_XCHW[b : b + VIEWS])) for b in (0, VIEWS)]
    assert torch.equal(stacked, torch.stack(by_hand))
    assert stacked.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("views", (2, 3, 8))
def test_a_grid_has_every_pixel_in_its_place(views: int) -> None:
    images_XCHW = some_images(2, views, size=5)
    grid = grid_views(images_XCHW, views).numpy()
    rows = 1 if views == 3 else 2
    for sample in range(2):
        one = images_XCHW[sample * views : (sample + 1) * views].numpy()
        lines = np.split(one, rows)
        by_hand = np.concatenate([np.concatenate(list(line), axis=2) for line in lines], axis=1)
        np.testing.assert_array_equal(grid[sample], by_hand)


def test_a_stacked_network_has_a_stem_for_all_channels() -> None:
    network = build_model(tiny(fusion="stack"), outputs=2, channels=2, views=VIEWS).eval()
    images_XCHW = some_images(channels=2)
    stacked = torch.stack([torch.cat(list(images_XCHW[b : b + VIEWS])) for b in (0, VIEWS)])
    alone = build_model(tiny(), outputs=2, channels=2 * VIEWS)
    alone.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(images_XCHW), alone.eval()(stacked))


def test_a_grid_needs_a_network_for_any_shape() -> None:
    network = build_model(tiny(fusion="grid"), outputs=2, views=VIEWS)
    assert network(some_images()).shape == (2, 2)
    with pytest.raises(UserError, match=r"'grid' and test_vit .*choose another"):
        build_model(tiny(backbone="test_vit", fusion="grid"), outputs=2, views=VIEWS)


# --- features of the views


@pytest.mark.parametrize("backbone", ("test_resnet", "test_vit"))
@pytest.mark.parametrize("fusion", LEARNED)
def test_views_are_seen_one_by_one_and_fused(fusion: str, backbone: str) -> None:
    network = build_model(tiny(backbone=backbone, fusion=fusion), outputs=3, views=VIEWS).eval()
    images_XCHW = some_images()
    with torch.no_grad():
        each_XF = torch.cat([network._pooled(image[None]) for image in images_XCHW])
        assert network.fusion is not None
        torch.testing.assert_close(
            network.features(images_XCHW), network.fusion(each_XF), atol=1e-4, rtol=1e-4
        )
        assert network(images_XCHW).shape == (2, 3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_sample_does_not_depend_on_its_neighbours_and_learns_from_all_its_views(
    fusion: str,
) -> None:
    network = build_model(tiny(fusion=fusion), outputs=3, views=VIEWS).eval()
    images_XCHW = some_images().requires_grad_()
    out_BT = network(images_XCHW)
    torch.testing.assert_close(network(images_XCHW[VIEWS:]), out_BT[1:])
    out_BT[1].square().sum().backward()
    assert images_XCHW.grad is not None
    moved_X = images_XCHW.grad.flatten(1).abs().amax(dim=1)
    assert (moved_X[:VIEWS] == 0).all() and (moved_X[VIEWS:] > 0).all()


def test_mean_max_and_concat_are_numpys() -> None:
    features_XF = torch.randn(2 * VIEWS, 6)
    features_BVF = features_XF.numpy().reshape(2, VIEWS, 6)
    np.testing.assert_allclose(Mean(VIEWS)(features_XF), features_BVF.mean(1), atol=1e-6)
    np.testing.assert_array_equal(Max(VIEWS)(features_XF), features_BVF.max(1))
    np.testing.assert_array_equal(Concat(VIEWS)(features_XF), features_BVF.reshape(2, -1))


@pytest.mark.parametrize("kind", ("mean", "max", "attention", "transformer"))
def test_fusions_that_know_no_places_are_blind_to_the_order(kind: str) -> None:
    fusion = stirred(make_fusion(kind, 8, VIEWS))
    features_XF = torch.randn(VIEWS, 8)
    turned_XF = features_XF[torch.tensor([2, 0, 3, 1])]
    with torch.no_grad():
        if hasattr(fusion, "embedding_VF"):  # what is learned of each view tells them apart
            assert not torch.allclose(fusion(turned_XF), fusion(features_XF), atol=1e-3)
            fusion.embedding_VF.zero_()
        torch.testing.assert_close(fusion(turned_XF), fusion(features_XF))


def test_attention_is_the_papers() -> None:
    """Ilse et al. 2018, equation 9, in plain numpy."""
    fusion = stirred(Attention(6, VIEWS))
    features_XF = torch.randn(2 * VIEWS, 6)
    own = {name: p.detach().double().numpy() for name, p in fusion.named_parameters()}
    with torch.no_grad():
        weights_BV, fused_BF = fusion.weights(features_XF), fusion(features_XF)  # type: ignore[operator]
    torch.testing.assert_close(weights_BV.sum(1), torch.ones(2))
    for sample in range(2):
        h_VF = features_XF.double().numpy()[sample * VIEWS :][:VIEWS] + own["embedding_VF"]
        value = np.tanh(h_VF @ own["value.weight"].T + own["value.bias"])
        gate = 1 / (1 + np.exp(-(h_VF @ own["gate.weight"].T + own["gate.bias"])))
        score_V = np.exp((value * gate) @ own["score.weight"][0])
        weight_V = score_V / score_V.sum()
        np.testing.assert_allclose(weights_BV[sample], weight_V, atol=1e-5)
        np.testing.assert_allclose(fused_BF[sample], weight_V @ h_VF, atol=1e-4)


def test_attention_starts_as_the_mean_and_learns_to_look_at_one_view() -> None:
    fusion = Attention(4, 3)
    features_XF = torch.randn(30 * 3, 4)
    torch.testing.assert_close(fusion(features_XF), Mean(3)(features_XF))
    wanted_BF = features_XF.unflatten(0, (-1, 3))[:, 1]  # told apart by its place alone
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.mse_loss(fusion(features_XF), wanted_BF).backward()
        optimizer.step()
    assert fusion.weights(features_XF)[:, 1].mean() > 0.8


@pytest.mark.parametrize("features", (512, 12, 7, 11, 9))
def test_a_transformer_takes_any_width(features: int) -> None:
    fusion = Transformer(features, VIEWS)
    assert features % fusion.layer.self_attn.num_heads == 0
    assert fusion(torch.randn(2 * VIEWS, features)).shape == (2, features)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_backbone_sees_all_views_at_once(fusion: str) -> None:
    network = build_model(tiny(fusion=fusion), outputs=3, views=VIEWS)
    shapes = []
    network.backbone.conv1.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    network(some_images())
    joined = {"stack": (2, 3 * VIEWS, 32, 32), "grid": (2, 3, 64, 32 * VIEWS // 2)}
    assert shapes == [joined.get(fusion, (2 * VIEWS, 3, 32, 32))]


# --- the model of a fold


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fold_model_predicts_rows_of_views(tmp_path, fusion: str) -> None:
    recipe = tiny(fusion=fusion, tta=4, channels=2)
    network = build_model(recipe, outputs=2, channels=2, views=VIEWS).eval()
    facts = {
        "target.mean": torch.tensor([1.0, 2.0]),
        "target.std": torch.tensor([3.0, 4.0]),
        "image.mean": torch.full((2,), 0.5),
        "image.std": torch.full((2,), 0.25),
    }
    path = tmp_path / "fold-0.safetensors"
    state = {**network.state_dict(), **facts}
    save_model(path, state, recipe.to_dict(), 2, channels=2, views=VIEWS)
    model = FoldModel.load(path)
    stored = np.random.default_rng(0).integers(0, 256, (5 * VIEWS, 32, 32, 3), dtype=np.uint8)
    pred_NT = model.predict(stored, batch_size=2)
    assert pred_NT.shape == (5, 2)
    normal = (torch.from_numpy(stored[..., :2]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    flips = [normal, normal.flip(3), normal.flip(2), normal.flip(2, 3)]  # all views alike
    with torch.no_grad():
        raw_NT = torch.stack([network(images) for images in flips]).mean(0)
        features_NF = torch.stack([network.features(images) for images in flips]).mean(0)
    np.testing.assert_allclose(
        pred_NT, raw_NT * facts["target.std"] + facts["target.mean"], atol=1e-3
    )
    np.testing.assert_allclose(model.features(stored, batch_size=2), features_NF, atol=1e-4)
    some = np.array([3, 1])
    np.testing.assert_allclose(model.predict(stored, rows=some), pred_NT[some], atol=1e-4)


# --- groups of layers


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [("test_resnet", 5), ("test_vit", 7), ("test_convnext", 5), ("test_efficientnet", 6)],
)
def test_layer_groups_hold_the_whole_backbone_from_stem_to_last_stage(
    backbone: str, stages: int
) -> None:
    network = build_model(tiny(backbone=backbone, pooling="gem"), outputs=2, views=VIEWS)
    groups = layer_groups(network)
    assert len(groups) == stages
    found = [(name, parameter) for group in groups for name, parameter in group]
    own = dict(network.named_parameters())
    assert all(own[name] is parameter for name, parameter in found)
    assert {name for name, _ in found} == {name for name in own if name.startswith("backbone.")}
    assert len(found) == len({name for name, _ in found})
    assert all(any(parameter.ndim > 1 for _, parameter in group) for group in groups)
    stem = ("backbone.conv", "backbone.stem", "backbone.patch_embed", "backbone.cls_token")
    assert groups[0][0][0].startswith(stem)


def test_a_backbone_without_stages_is_one_group() -> None:
    network = build_model(tiny(), outputs=2)
    network.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    (group,) = layer_groups(network)
    assert len(group) == 4
