"""Backbones that start from one's own checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from search.data.folds import write_folds
from search.model.backbone import Network, build_model
from search.model.infer import FACTS, save_model
from search.model.initial import load_initial, plan_initial, read_initial, start_from
from search.run_folder import RunFolder, write_json
from spaces.errors import UserError
from spaces.recipe import Recipe

IDS = tuple(f"R{i}" for i in range(6))
OTHERS = tuple(f"S{i}" for i in range(6))
FOLD_N = np.arange(6) % 3
STEM, DEEP = "conv1.0.weight", "layer4.0.conv2.weight"


def tiny(backbone: str = "test_resnet", **fields: object) -> Recipe:
    return Recipe(backbone=backbone, image_size=32, **fields)  # type: ignore[arg-type]


def built(seed: int, backbone: str = "test_resnet", **options: int) -> Network:
    torch.manual_seed(seed)
    return build_model(tiny(backbone), options.pop("outputs", 3), **options)


def own_file(path: Path, network: Network, recipe: Recipe) -> Path:
    facts = {name: torch.ones(3) for name in FACTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, {**network.state_dict(), **facts}, recipe.to_dict(), 3)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of three trials on IDS: test_resnet twice, the second better, and test_vit."""
    run = RunFolder(tmp_path / "run")
    write_json(run.run, {})
    write_folds(run.folds, IDS, None, FOLD_N)
    trials = [("test_resnet", 0.5), ("test_resnet", 0.7), ("test_vit", 0.9)]
    for trial, (backbone, score) in enumerate(trials):
        add_trial(run, trial, tiny(backbone), score)
    return run


def add_trial(run: RunFolder, trial: int, recipe: Recipe, score: float | None) -> None:
    for fold in range(3):
        path = run.checkpoints(trial) / f"fold-{fold}.safetensors"
        own_file(path, built(10 * trial + fold, recipe.backbone), recipe)
    write_json(run.checkpoints(trial) / "recipe.json", {"recipe": recipe.to_dict()})
    write_json(run.oof(trial) / "meta.json", {"score": score})


# --- tensors


def test_a_start_is_the_backbone_and_nothing_else(tmp_path: Path) -> None:
    theirs, ours = built(1), built(2, outputs=7, views=4)
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    count = start_from(ours, own_file(tmp_path / "fold-0.safetensors", theirs, tiny()))
    assert count == len(theirs.backbone.state_dict())
    after, source = ours.state_dict(), theirs.state_dict()
    for name, tensor in after.items():
        origin = source if name.startswith("backbone.") else before
        assert torch.equal(tensor, origin[name]), name
    assert any(name.startswith("fusion.") for name in after)


@pytest.mark.parametrize("suffix", (".safetensors", ".pth"))
def test_plain_tensors_by_timms_names_serve(tmp_path: Path, suffix: str) -> None:
    theirs = timm.create_model("test_resnet", num_classes=9)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict()}, path)
    else:
        save_file(theirs.state_dict(), path)
    ours = built(2)
    start_from(ours, path)
    assert torch.equal(ours.backbone.state_dict()[DEEP], theirs.state_dict()[DEEP])
    assert read_initial(path)[1] is None


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (3, 4), (4, 3), (1, 3), (2, 24)])
def test_another_number_of_channels_keeps_the_scale_of_the_stem(theirs: int, ours: int) -> None:
    """A grey image, all channels alike, looks the same to both stems."""
    before, after = built(1, channels=theirs), built(2, channels=ours)
    load_initial(after, before.backbone.state_dict(), "theirs")
    assert torch.equal(after.backbone.state_dict()[DEEP], before.backbone.state_dict()[DEEP])
    stems = [network.backbone.state_dict()[STEM] for network in (before, after)]
    assert stems[1].shape[1] == ours
    if theirs == 3 and ours == 4:  # channels are repeated, so the sum is only near
        torch.testing.assert_close(stems[1][:, :3], stems[0] * 3 / 4)
    elif theirs == 4:
        torch.testing.assert_close(stems[1], stems[0][:, :3] * 4 / 3)
    else:
        torch.testing.assert_close(stems[1].sum(1), stems[0].sum(1))


def test_positions_of_another_image_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    theirs = built(1, "test_vit").backbone
    save_file(theirs.state_dict(), tmp_path / "test_vit.safetensors")
    recipe = Recipe(backbone="test_vit", weights="pretrained", image_size=64)
    reference = build_model(recipe, 3, tmp_path).backbone.state_dict()
    ours = build_model(recipe, 3, pretrained=False)
    assert load_initial(ours, theirs.state_dict(), "theirs") == len(reference)
    for name, tensor in ours.backbone.state_dict().items():
        torch.testing.assert_close(tensor, reference[name], msg=name)


def test_another_architecture_is_refused_by_its_name(tmp_path: Path) -> None:
    path = own_file(tmp_path / "fold-0.safetensors", built(1, "test_vit"), tiny("test_vit"))
    with pytest.raises(UserError, match=r"fold-0.* \(test_vit\) fills 0 of the backbone's \d+"):
        start_from(built(2), path)


def test_a_refused_start_changes_nothing() -> None:
    ours = built(2)
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    few = dict(list(built(1).backbone.state_dict().items())[:6])
    with pytest.raises(UserError, match="same architecture"):
        load_initial(ours, few, "few")
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())


def test_files_of_the_format_before_serve_as_starts(tmp_path: Path) -> None:
    theirs: dict[str, Tensor] = dict(built(1).state_dict())
    recipe = {"backbone": "test_resnet", "gone": 1}  # of fields that recipes no longer have
    metadata = {"format": "1", "recipe": json.dumps(recipe), "outputs": "3"}
    save_file(theirs, tmp_path / "old.safetensors", metadata)
    ours = built(2)
    start_from(ours, tmp_path / "old.safetensors")
    assert torch.equal(ours.state_dict()[f"backbone.{DEEP}"], theirs[f"backbone.{DEEP}"])


# --- plans


def test_a_run_gives_each_backbone_its_best_trial(run: RunFolder) -> None:
    plan = plan_initial(str(run.root), ("test_resnet", "resnet18", "test_vit"), OTHERS, FOLD_N)
    for fold in range(3):
        name = f"fold-{fold}.safetensors"
        assert plan.file_for("test_resnet", fold) == run.checkpoints(1) / name
        assert plan.file_for("test_vit", fold) == run.checkpoints(2) / name
        assert plan.file_for("resnet18", fold) is None
    assert "test_resnet from trial 1" in plan.sentence and "left out: resnet18" in plan.sentence
    assert plan.file_for("test_resnet", 4) == run.checkpoints(1) / "fold-1.safetensors"


def test_probes_have_learned_nothing_to_start_from(run: RunFolder) -> None:
    add_trial(run, 3, tiny(probe="ridge", epochs=1), 0.99)
    add_trial(run, 4, tiny(), None)
    plan = plan_initial(str(run.root), ("test_resnet",), OTHERS, FOLD_N)
    assert plan.file_for("test_resnet", 0) == run.checkpoints(1) / "fold-0.safetensors"


def test_a_run_on_the_same_rows_serves_fold_by_fold(run: RunFolder) -> None:
    order = [4, 0, 5]  # some of the rows, and new ones
    ids, fold_N = [IDS[i] for i in order] + ["new"], [*FOLD_N[order], 2]
    plan = plan_initial(str(run.root), ("test_resnet",), ids, np.array(fold_N))
    for fold in range(3):
        assert plan.file_for("test_resnet", fold) == run.checkpoints(1) / f"fold-{fold}.safetensors"
    assert "3 rows are the same" in plan.sentence


@pytest.mark.parametrize("moved", range(6))
def test_no_fold_starts_from_a_model_that_has_seen_it(run: RunFolder, moved: int) -> None:
    fold_N = FOLD_N.copy()
    fold_N[moved] = (fold_N[moved] + 1) % 3
    single = run.checkpoints(1) / "fold-0.safetensors"
    for source in (run.root, single):
        with pytest.raises(UserError, match="on 6 rows of the same ids, 1 of them in other folds"):
            plan_initial(str(source), ("test_resnet",), IDS, fold_N)


def test_a_run_that_began_with_another_on_these_rows_is_refused(
    run: RunFolder, tmp_path: Path
) -> None:
    middle = RunFolder(tmp_path / "middle")
    start = str(run.checkpoints(1) / "fold-0.safetensors")
    write_json(middle.run, {"initial": {"test_resnet": {"0": start}}})
    write_folds(middle.folds, OTHERS, None, FOLD_N)
    add_trial(middle, 0, tiny(), 0.5)
    unseen = [f"unseen {name}" for name in IDS]
    assert plan_initial(str(middle.root), ("test_resnet",), unseen, FOLD_N).files
    with pytest.raises(UserError, match=r"began with models of .*run, which has 6 rows"):
        plan_initial(str(middle.root), ("test_resnet",), IDS, FOLD_N)


def test_a_file_inside_a_run_is_its_folds_alone(run: RunFolder) -> None:
    path = run.checkpoints(0) / "fold-1.safetensors"
    plan = plan_initial(str(path), ("test_resnet", "test_vit"), IDS, FOLD_N)
    for fold in range(3):
        assert plan.file_for("test_resnet", fold) == run.checkpoints(0) / f"fold-{fold}.safetensors"
    assert plan.file_for("test_vit", 0) is None
    elsewhere = plan_initial(str(path), ("test_resnet",), OTHERS, FOLD_N)
    assert {elsewhere.file_for("test_resnet", fold) for fold in range(3)} == {path}
    (run.checkpoints(0) / "fold-2.safetensors").unlink()
    with pytest.raises(UserError, match="has seen rows of this data"):
        plan_initial(str(path), ("test_resnet",), IDS, FOLD_N)


def test_a_plain_file_serves_the_backbones_that_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(timm.create_model("test_resnet", in_chans=1).state_dict(), path)
    plan = plan_initial(str(path), ("test_vit", "test_resnet"), IDS, FOLD_N)
    assert plan.file_for("test_resnet", 2) == path and plan.file_for("test_vit", 2) is None


def test_sources_that_have_nothing_are_told_apart(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        plan_initial(str(tmp_path / "no"), ("test_resnet",), IDS, FOLD_N)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run\.json"):
        plan_initial(str(tmp_path / "empty"), ("test_resnet",), IDS, FOLD_N)
    with pytest.raises(UserError, match=r"trials of test_resnet, test_vit.*over resnet18"):
        plan_initial(str(run.root), ("resnet18",), IDS, FOLD_N)
    with pytest.raises(UserError, match=r"checkpoint of test_resnet.*over test_vit"):
        plan_initial(str(run.checkpoints(0) / "fold-0.safetensors"), ("test_vit",), IDS, FOLD_N)
    (run.checkpoints(1) / "fold-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks .*fold-2"):
        plan_initial(str(run.root), ("test_resnet",), IDS, FOLD_N)
