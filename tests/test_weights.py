"""Pretrained weights: local folders, and a hub that cannot be reached."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from search.model.backbone import build_model
from search.model.weights import WeightsSource, probe_weights, reachable_backbones
from spaces.errors import UserError
from spaces.recipe import Recipe

FIRST = "conv1.0.weight"  # of test_resnet, (out, in, 3, 3)


def recipe(backbone: str = "test_resnet", weights: str = "pretrained") -> Recipe:
    return Recipe(backbone=backbone, weights=weights, image_size=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the weights of a test_resnet that was trained for 7 classes."""
    save_file(saved(), tmp_path / "test_resnet.safetensors")
    return tmp_path


def saved() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(timm.create_model("test_resnet", num_classes=7).state_dict())


def loaded(folder: Path, channels: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(2)
    network = build_model(recipe(), outputs=5, weights_dir=folder, channels=channels).eval()
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 5)
    return dict(network.backbone.state_dict())


def test_local_weights_serve_another_class_count(folder: Path) -> None:
    theirs, ours = saved(), loaded(folder)
    assert ours.keys() == {name for name in theirs if not name.startswith("fc.")}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=name)


def test_one_channel_sees_grey_images_as_three_channels_did(folder: Path) -> None:
    theirs, ours = saved(), loaded(folder, channels=1)
    torch.testing.assert_close(ours[FIRST], theirs[FIRST].sum(1, keepdim=True))
    torch.testing.assert_close(ours["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])


def test_more_channels_repeat_the_three_at_the_same_scale(folder: Path) -> None:
    theirs, ours = saved(), loaded(folder, channels=4)
    torch.testing.assert_close(ours[FIRST][:, :3], theirs[FIRST] * 3 / 4)
    torch.testing.assert_close(ours[FIRST][:, 3], theirs[FIRST][:, 0] * 3 / 4)


@pytest.mark.parametrize("channels", (1, 4))
@pytest.mark.parametrize(
    "backbone", ("test_vit", "test_convnext", "test_efficientnet", "test_mambaout", "resnet10t")
)
def test_stems_of_all_families_keep_what_they_learned(
    tmp_path: Path, backbone: str, channels: int
) -> None:
    theirs = timm.create_model(backbone, num_classes=0)
    save_file(theirs.state_dict(), tmp_path / f"{backbone}.safetensors")
    network = build_model(recipe(backbone), 2, tmp_path, channels=channels)
    ours, first = network.backbone.state_dict(), f"{theirs.pretrained_cfg['first_conv']}.weight"
    source = theirs.state_dict()[first]
    expected = source.sum(1, keepdim=True) if channels == 1 else source[:, [0, 1, 2, 0]] * 3 / 4
    torch.testing.assert_close(ours[first], expected)
    for name, tensor in theirs.state_dict().items():
        assert name in (first, "pos_embed") or torch.equal(ours[name], tensor), name


def test_stacked_views_repeat_the_stem(folder: Path) -> None:
    stacked = Recipe(backbone="test_resnet", weights="pretrained", image_size=32, fusion="stack")
    network = build_model(stacked, outputs=2, weights_dir=folder, views=8)
    stem = network.backbone.state_dict()[FIRST]
    torch.testing.assert_close(stem, saved()[FIRST].repeat(1, 8, 1, 1) / 8)


@pytest.mark.parametrize("name", ("test_resnet.pth", "test_resnet.pt"))
def test_torch_files_are_read_too(folder: Path, name: str) -> None:
    (folder / "test_resnet.safetensors").unlink()
    state = {f"module.{k}": v for k, v in saved().items()}  # as saved from DataParallel
    torch.save({"state_dict": state, "epoch": 3}, folder / name)
    torch.testing.assert_close(loaded(folder)[FIRST], saved()[FIRST])


def test_pickled_code_is_refused_and_never_run(folder: Path) -> None:
    (folder / "test_resnet.safetensors").unlink()
    mark = folder / "mark"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (mark,)

    torch.save({"state_dict": Attack()}, folder / "test_resnet.pth")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        loaded(folder)
    assert not mark.exists()


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    foreign = timm.create_model("test_convnext", num_classes=7).state_dict()
    save_file(foreign, folder / "test_resnet.safetensors")
    with pytest.raises(UserError, match=r"fill 0 of its \d+ kernels"):
        loaded(folder)


def test_weights_of_another_width_are_refused(folder: Path) -> None:
    wide = {k: torch.cat([v, v]) if v.ndim else v for k, v in saved().items()}
    save_file(wide, folder / "test_resnet.safetensors")
    with pytest.raises(UserError, match="test_resnet"):
        loaded(folder)


def test_a_missing_file_lists_what_is_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no test_vit\.safetensors.*has: test_resnet\.safetensors"):
        build_model(recipe("test_vit"), outputs=2, weights_dir=folder)
    with pytest.raises(UserError) as caught:
        probe_weights(str(folder), ("test_vit", "test_resnet", "test_convnext"))
    assert len(caught.value.faults) == 2
    with pytest.raises(UserError, match="does not exist"):
        probe_weights(str(folder / "nowhere"))


def test_a_folder_with_all_weights_is_the_source(folder: Path) -> None:
    source = probe_weights(str(folder), ("test_resnet",))
    assert source.pretrained and source.folder == folder


def test_a_recipe_of_random_weights_reads_no_file(tmp_path: Path) -> None:
    build_model(recipe(weights="random"), outputs=2, weights_dir=tmp_path)
    build_model(recipe(), outputs=2, weights_dir=tmp_path, pretrained=False)


# --- the hub


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub that takes connections and never answers, behind no proxy; an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield


@pytest.mark.usefixtures("silent_hub")
@pytest.mark.timeout(60)  # a hub that swallows connections would hold us for minutes
def test_an_unreachable_hub_is_noticed_within_seconds() -> None:
    source = probe_weights("auto", ("test_resnet",))
    assert not source.pretrained
    assert "random weights, since http://127.0.0.1" in source.reason
    with pytest.raises(UserError, match="asked for but http"):
        probe_weights("pretrained")


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "HF_HUB_OFFLINE is set" in probe_weights("auto").reason
    assert not probe_weights("random").pretrained


def test_cached_weights_need_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--timm--test_resnet.r160_in1k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert probe_weights("auto", ("test_resnet",)).pretrained
    assert not probe_weights("auto", ("test_resnet", "resnet18")).pretrained


def test_failing_download_names_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"test_resnet could not be fetched.*--weights DIR"):
        build_model(recipe(), outputs=2)


# --- models that only the hub knows

UNI, OWN = "hf-hub:MahmoodLab/uni", "hf-hub:me/mine"
HUB = WeightsSource(pretrained=True, folder=None, reason="the weights hub answers")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub with an empty cache that gives away OWN and refuses UNI; what it was asked for."""
    asked = []

    class GatedRepoError(OSError):
        pass

    def config(model: str) -> tuple[dict[str, object], str, dict[str, object]]:
        asked.append(model)
        if model == "MahmoodLab/uni":
            raise GatedRepoError("401")
        return {}, "test_resnet", {}

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("search.model.weights._hub_fault", lambda: None)
    monkeypatch.setattr("search.model.weights.load_model_config_from_hf", config)
    return asked


def test_gated_models_are_skipped_with_a_line_each(hub: list[str]) -> None:
    assert reachable_backbones(("resnet18",), HUB) == (("resnet18",), []) and not hub
    kept, lines = reachable_backbones(("resnet18", UNI, OWN), HUB)
    assert kept == ("resnet18", OWN)
    assert lines == [
        f"backbone {UNI} is skipped: the hub says gated repo; ask its owners for access, or log in"
    ]
    assert sorted(hub) == ["MahmoodLab/uni", "me/mine"]


def test_a_model_in_the_cache_is_not_asked_for(hub: list[str], tmp_path: Path) -> None:
    snapshot = tmp_path / "models--MahmoodLab--uni" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    assert reachable_backbones((UNI,), HUB) == ((UNI,), [])
    assert not hub


def test_local_folders_have_no_hub_models(folder: Path, hub: list[str]) -> None:
    source = probe_weights(str(folder), ("test_resnet", UNI))
    kept, (line,) = reachable_backbones(("test_resnet", UNI), source)
    assert kept == ("test_resnet",) and f"only the hub has it (weights from {folder})" in line
    assert not hub


def test_a_hub_that_is_away_is_asked_for_no_model(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.model.weights._hub_fault", lambda: "nobody is there")
    kept, lines = reachable_backbones(("resnet18", UNI, OWN), HUB)
    assert kept == ("resnet18",)
    assert lines == [f"backbone {name} is skipped: nobody is there" for name in (UNI, OWN)]
    assert not hub


def test_a_slow_answer_counts_as_none(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.model.weights._HUB_SECONDS", 0.1)
    monkeypatch.setattr("search.model.weights.load_model_config_from_hf", lambda _: time.sleep(2))
    started = time.monotonic()
    kept, lines = reachable_backbones((UNI, OWN), HUB)
    assert time.monotonic() - started < 1
    assert not kept and all("did not answer within 0.1 s" in line for line in lines)
