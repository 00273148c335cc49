"""Probes: one epoch on frozen features, honest, and the same as what the fold's file predicts.

Shapes: N rows, T outputs, V validation rows, S test rows.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.data.features import load_or_compute
from search.model.infer import FoldModel
from search.model.probe_head import ProbeHead
from search.train import probe_mlp
from search.train.fold import FoldTraining, make_training, save_fold, train_fold
from search.train.frozen import Frozen
from search.train.job import FoldJob, FoldResult
from search.train.probe import ProbeTraining
from spaces.errors import UserError
from spaces.recipe import Recipe

ROWS, TESTS, OUTPUTS, SIZE = 40, 5, 3, 32
KINDS = ("ridge", "knn", "mlp")


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_mlp, "HIDDEN", (16,))
        patch.setattr(probe_mlp, "STEPS", 40)
        yield
    torch.set_num_threads(threads)


def images(count: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    tint = rng.random((count, 1, 1, 3))
    noise = rng.random((count, SIZE, SIZE, 3))
    return (255 * (0.7 * tint + 0.3 * noise)).astype(np.uint8)


def job(**changes: Any) -> FoldJob:
    """A small fold whose targets are functions of the images' colours; `changes` go to the recipe
    or to the job."""
    given = images(ROWS)
    tint_NC = given.mean(axis=(1, 2)) / 255
    targets_TN = np.random.default_rng(1).normal(size=(OUTPUTS, 3)) @ tint_NC.T + 3
    recipe: dict[str, Any] = {
        "backbone": "test_resnet", "image_size": SIZE, "epochs": 1, "tta": 4, "probe": "ridge",
    }  # fmt: skip
    settings: dict[str, Any] = {
        "images_NHWC": given,
        "test_images_NHWC": images(TESTS, 7),
        "targets_TN": targets_TN.astype(np.float32),
        "train_rows": np.arange(ROWS - 10),
        "valid_rows": np.arange(ROWS - 10, ROWS),
        "seed": 5,
        "store_key": "made",
    }
    for name, value in changes.items():
        (settings if name in FoldJob.__dataclass_fields__ else recipe)[name] = value
    if settings.get("task_type", "regression") != "regression":
        high_TN = targets_TN > np.median(targets_TN, axis=1, keepdims=True)
        if settings["task_type"] == "multiclass":
            high_TN = np.arange(OUTPUTS)[:, None] == targets_TN.argmax(axis=0)
        settings["targets_TN"] = high_TN.astype(np.float32)
    return FoldJob(**{"recipe": Recipe(**recipe), **settings})


def finished(job: FoldJob) -> FoldResult:
    result = train_fold(job)
    assert result is not None
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", ["regression", "multilabel", "multiclass"])
def test_the_folds_file_predicts_what_training_reported(
    kind: str, task_type: str, tmp_path: Path
) -> None:
    given = job(probe=kind, task_type=task_type, pca=8 if kind == "knn" else 0)
    result = finished(given)
    save_fold(tmp_path / "fold.safetensors", result, given.recipe)
    model = FoldModel.load(tmp_path / "fold.safetensors")
    assert isinstance(model.network.head, ProbeHead) and model.network.head.kind == kind
    valid_VT = model.predict(given.images_NHWC, rows=given.valid_rows)
    assert np.abs(valid_VT.T - result.pred_TV).max() < 1e-4
    assert result.test_pred_TS is not None and given.test_images_NHWC is not None
    assert np.abs(model.predict(given.test_images_NHWC).T - result.test_pred_TS).max() < 1e-4
    assert np.abs(valid_VT.T - given.targets_TN[:, given.valid_rows]).mean() < 0.5


@pytest.mark.parametrize("fusion", ["mean", "concat", "attention", "stack"])
def test_rows_of_several_views_are_probed_as_the_folds_file_sees_them(
    fusion: str, tmp_path: Path
) -> None:
    changes = {"images_NHWC": images(2 * ROWS), "test_images_NHWC": images(2 * TESTS, 7)}
    given = job(views=2, fusion=fusion, normalise="train", **changes)
    result = finished(given)
    assert result.views == 2 and result.pred_TV.shape == (OUTPUTS, 10)
    save_fold(tmp_path / "fold.safetensors", result, given.recipe)
    model = FoldModel.load(tmp_path / "fold.safetensors")
    valid_VT = model.predict(given.images_NHWC, rows=given.valid_rows)
    assert np.abs(valid_VT.T - result.pred_TV).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_validation_rows_decide_nothing(kind: str) -> None:
    plain = job(probe=kind)
    targets_TN, pixels = plain.targets_TN.copy(), plain.images_NHWC.copy()
    targets_TN[:, plain.valid_rows] = 1e6
    pixels[plain.valid_rows] = 255 - pixels[plain.valid_rows]
    changed = job(probe=kind, targets_TN=targets_TN, images_NHWC=pixels)
    heads = []
    for given in (plain, changed):
        training = ProbeTraining(given)
        training.epoch()
        assert training.state.head is not None
        heads.append(training.state.head)
    assert heads[0].table == heads[1].table
    assert heads[0].tensors.keys() == heads[1].tensors.keys()
    for name, tensor in heads[0].tensors.items():
        assert torch.equal(tensor, heads[1].tensors[name]), name


def test_an_epoch_is_all_there_is_and_its_result_is_whole() -> None:
    training = make_training(job())
    assert isinstance(training, ProbeTraining) and not isinstance(training, FoldTraining)
    assert not training.done and training.state.epoch == 0
    result = training.epoch()
    assert training.done and training.state.epoch == result.epoch == result.epochs == 1
    assert result.micro_batch == result.batch == ROWS - 10
    assert 0 <= result.loss < 0.5
    last = training.finish()
    assert np.array_equal(last.pred_TV, result.pred_TV)
    assert last.predict_ms > 0 and last.params > 1000


def test_what_is_reported_is_the_same_each_time() -> None:
    for kind in KINDS:
        assert np.array_equal(finished(job(probe=kind)).pred_TV, finished(job(probe=kind)).pred_TV)


def test_folds_share_features_even_of_random_weights(tmp_path: Path) -> None:
    first = Frozen(job(cache=tmp_path, seed=1))
    first.features()
    second = Frozen(job(cache=tmp_path, seed=2, valid_rows=np.arange(10)))
    second._compute = None  # type: ignore[assignment, method-assign]  # a call would fail
    assert np.array_equal(second.features().values_NF, first.features().values_NF)
    assert second.features().seconds == first.features().seconds > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"tta": 1},
        {"image_size": 24},
        {"normalise": "minmax"},
        {"pooling": "max"},
        {"recipe_seed": 1},
        {"store_key": "other"},
        {"channels": 1},
    ],
)
def test_features_of_other_origin_are_computed_anew(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = job(cache=tmp_path)
    Frozen(plain).features()
    if "recipe_seed" in changes:
        changed = dataclasses.replace(plain, recipe=dataclasses.replace(plain.recipe, seed=1))
    else:
        changed = job(cache=tmp_path, **changes)
    Frozen(changed).features()
    assert len(list((tmp_path / "features").glob("*/manifest.json"))) == 2


def test_kept_features_are_mapped_and_broken_ones_computed_again(tmp_path: Path) -> None:
    calls = []

    def compute() -> Any:
        calls.append(1)
        return np.arange(12, dtype=np.float64).reshape(4, 3)

    for _ in range(2):
        features = load_or_compute(tmp_path, {"what": "made"}, compute)
        assert isinstance(features.values_NF, np.memmap)
        assert features.values_NF.dtype == np.float32 and features.values_NF[3, 2] == 11
    assert len(calls) == 1
    load_or_compute(tmp_path, {"what": "other"}, compute)
    assert len(calls) == 2
    for name in ("features.npy", "manifest.json"):
        for path in (tmp_path / "features").glob(f"*/{name}"):
            path.write_bytes(path.read_bytes()[:20])
        load_or_compute(tmp_path, {"what": "made"}, compute)
    assert len(calls) == 4


def test_a_failure_keeps_nothing(tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        load_or_compute(tmp_path, {"what": "made"}, fail)
    assert load_or_compute(tmp_path, {"what": "made"}, lambda: np.ones((2, 2))).values_NF.sum() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_brings_the_head_back(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch.safetensors"
    training = ProbeTraining(job(probe=kind))
    pred_TV = training.epoch().pred_TV
    training.save(path, "a note")
    again = ProbeTraining(job(probe=kind))
    assert again.restore(path) == "a note"
    assert again.done and np.array_equal(again.finish().pred_TV, pred_TV)
    with pytest.raises(UserError, match="seed 6"):
        ProbeTraining(job(probe=kind, seed=6)).restore(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no probe checkpoint"):
        again.restore(path)


def test_groups_and_score_reach_the_choice() -> None:
    seen = []

    def score(pred_TN: Any, true_TN: Any) -> float:
        seen.append(true_TN.shape)
        return -float(np.abs(pred_TN - true_TN).mean())

    given = job(probe="knn")
    training = ProbeTraining(given, score=score, groups_N=np.arange(ROWS) // 20)
    training.epoch()
    assert set(seen) == {(OUTPUTS, 30)}
    assert training.state.head is not None
    # Rows 0..19 are one group and 20..29 the other: none has more than 10 others to look at.
    assert max(settings["k"] for settings, _ in training.state.head.table) == 10


def test_a_refit_on_all_rows_and_without_a_test_set_is_possible() -> None:
    result = finished(
        job(train_rows=np.arange(ROWS), valid_rows=np.arange(0), test_images_NHWC=None)
    )
    assert result.pred_TV.shape == (OUTPUTS, 0) and result.test_pred_TS is None
