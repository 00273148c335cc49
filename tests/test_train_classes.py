"""Folds of classes and of several views; refits without validation rows.

Shapes: N rows, V views, T outputs, H W C height, width and channels.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from search.model.infer import FoldModel, save_model
from search.train.fold import FoldTraining, make_training, save_fold, train_fold
from search.train.job import FoldJob, FoldResult
from spaces.errors import UserError
from spaces.parts import Classification, Regression
from spaces.recipe import FUSIONS, Augment, Recipe

ROWS, TRAIN, SIZE = 88, 56, 32
TYPES = ("binary", "multilabel", "multiclass")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(task_type: str = "binary", views: int = 1, channels: int = 3, **changes: Any) -> FoldJob:
    """A fold whose classes are colours: of each row, a channel of one view is bright or not.
    `changes` go to the recipe or to the job."""
    rng = np.random.default_rng(0)
    bright_NC = rng.random((ROWS, 3)) < 0.5
    if task_type == "multiclass":
        bright_NC = np.eye(3, dtype=bool)[rng.integers(0, 3, ROWS)]
    images_NVHWC = rng.integers(0, 160, (ROWS, views, SIZE, SIZE, channels))
    images_NVHWC[np.arange(ROWS), rng.integers(0, views, ROWS), ..., :3] += (
        90 * bright_NC[:, None, None, :]
    )
    targets_TN = bright_NC.T[: 1 if task_type == "binary" else 3].astype(np.float32)
    recipe = {
        "backbone": "test_resnet",
        "image_size": SIZE,
        "batch_size": 8,
        "epochs": 4,
        "lr": 4e-3,
        "ema": 0.9,
        "tta": 4,
        "channels": channels,
        "task": Regression() if task_type == "regression" else Classification(),
    }
    settings: dict[str, Any] = {
        "images_NHWC": images_NVHWC.reshape(-1, SIZE, SIZE, channels).astype(np.uint8),
        "targets_TN": targets_TN,
        "train_rows": np.arange(TRAIN),
        "valid_rows": np.arange(TRAIN, ROWS),
        "task_type": task_type,
        "views": views,
        "evaluate_at": frozenset(),  # after the last epoch alone
        "seed": 5,
        "bf16": False,
    }
    for name, value in changes.items():
        (settings if name in FoldJob.__dataclass_fields__ else recipe)[name] = value
    return FoldJob(**{"recipe": Recipe(**recipe), **settings})


def run(job: FoldJob) -> FoldResult:
    result = train_fold(job)
    assert result is not None
    return result


def auroc(job: FoldJob, result: FoldResult) -> float:
    true_TV = job.targets_TN[:, job.valid_rows]
    return float(roc_auc_score(true_TV.T, result.pred_TV.T, average="macro"))


# --- classes


@pytest.mark.parametrize(
    ("task_type", "part"),
    (
        ("binary", Classification()),
        ("binary", Classification(loss="focal", sampler="over")),
        ("multilabel", Classification(loss="asymmetric", rest_weight=1.0)),
        ("multiclass", Classification(label_smoothing=0.1, class_weight="balanced")),
        ("multiclass", Classification(loss="focal", sampler="under")),
    ),
)
def test_a_fold_learns_classes_and_predicts_probabilities(
    tmp_path: Path, task_type: str, part: Classification
) -> None:
    small = job(task_type, task=part)
    small = dataclasses.replace(small, test_images_NHWC=small.images_NHWC[:5])
    result = run(small)
    assert auroc(small, result) > 0.9
    assert (result.pred_TV >= 0).all() and (result.pred_TV <= 1).all()
    if task_type == "multiclass":
        np.testing.assert_allclose(result.pred_TV.sum(axis=0), 1, atol=1e-5)
    save_fold(tmp_path / "fold-0.safetensors", result, small.recipe)
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    again_TV = model.predict(small.images_NHWC, rows=small.valid_rows, batch_size=5).T
    np.testing.assert_allclose(again_TV, result.pred_TV, atol=1e-5)
    assert result.test_pred_TS is not None
    np.testing.assert_allclose(
        model.predict(small.images_NHWC[:5]).T, result.test_pred_TS, atol=1e-5
    )


def test_a_fold_starts_at_the_frequencies_of_its_classes() -> None:
    small = job("multilabel")
    targets_TN = small.targets_TN.copy()
    targets_TN[1, 6:] = 0  # rare
    fold = FoldTraining(dataclasses.replace(small, targets_TN=targets_TN))
    with torch.no_grad():
        raw_NT = fold.state.network.eval()(torch.randn(16, 3, SIZE, SIZE))
    found_T = raw_NT.sigmoid().mean(0).numpy()
    np.testing.assert_allclose(found_T, targets_TN[:, :TRAIN].mean(1), atol=0.02)


def test_rows_that_are_not_trained_on_do_not_weigh() -> None:
    small = job(task=Classification(class_weight="balanced", sampler="over"), epochs=1)
    targets_TN = small.targets_TN.copy()
    targets_TN[:, small.valid_rows] = 1
    blind = run(dataclasses.replace(small, targets_TN=targets_TN))
    np.testing.assert_array_equal(run(small).pred_TV, blind.pred_TV)


# --- views


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_learns_from_the_views_of_a_row(tmp_path: Path, fusion: str) -> None:
    small = job(views=2, fusion=fusion, tta=1)
    small = dataclasses.replace(small, test_images_NHWC=small.images_NHWC[:6])
    result = run(small)
    assert auroc(small, result) > 0.9
    assert result.test_pred_TS is not None
    assert result.test_pred_TS.shape == (1, 3)
    save_fold(tmp_path / "fold-0.safetensors", result, small.recipe)
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    again_TV = model.predict(small.images_NHWC, rows=small.valid_rows, batch_size=5).T
    np.testing.assert_allclose(again_TV, result.pred_TV, atol=1e-5)


@pytest.mark.parametrize("task_type", ("regression", "multilabel"))
def test_micro_batches_of_rows_with_views_agree_with_the_full_batch(task_type: str) -> None:
    small = job(task_type, views=2, backbone="test_convnext", optimizer="sgd", lr=0.005, epochs=1)
    full, cut = (make_training(dataclasses.replace(small, micro_batch=m)) for m in (8, 3))
    assert cut.epoch().loss == pytest.approx(full.epoch().loss, rel=1e-5)
    weights = full.finish().state
    for name, tensor in cut.finish().state.items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-5, msg=name)


def test_a_mirrored_patient_has_mirrored_views_and_labels() -> None:
    """Left is learned from the left view alone, so what is right must be learned by mirroring."""
    rng = np.random.default_rng(1)
    has_N2 = rng.random((ROWS, 2)) < 0.5
    has_N2[:TRAIN, 1] = False
    images = rng.integers(0, 130, (ROWS, 2, SIZE, SIZE, 3)) + 120 * has_N2[..., None, None, None]
    small = job(
        "multilabel",
        images_NHWC=images.reshape(-1, SIZE, SIZE, 3).astype(np.uint8),
        targets_TN=has_N2.T.astype(np.float32),
        views=2,
        fusion="concat",
        mirror_views=(1, 0),
        mirror_targets=(1, 0),
        epochs=8,
        augment=Augment(mirror=True),
    )
    pred_TV, true_TV = run(small).pred_TV, small.targets_TN[:, small.valid_rows]
    assert roc_auc_score(true_TV[1], pred_TV[1]) > 0.9


@pytest.mark.parametrize("normalise", ("imagenet", "minmax", "train", "image"))
def test_channels_and_normalisation_reach_the_model_file(tmp_path: Path, normalise: str) -> None:
    small = job("multilabel", channels=4, normalise=normalise, epochs=2)
    small = dataclasses.replace(small, recipe=dataclasses.replace(small.recipe, channels=3))
    result = run(small)
    assert result.channels == 3
    if normalise == "train":
        train = small.images_NHWC[:TRAIN, ..., :3] / 255
        np.testing.assert_allclose(result.state["image.mean"], train.mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(result.state["image.std"], train.std((0, 1, 2)), atol=1e-5)
    save_fold(tmp_path / "fold-0.safetensors", result, small.recipe)
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    again_TV = model.predict(small.images_NHWC, rows=small.valid_rows).T
    np.testing.assert_allclose(again_TV, result.pred_TV, atol=1e-5)


# --- starts and refits


def test_a_fold_may_start_from_the_backbone_of_another(tmp_path: Path) -> None:
    first = job(epochs=1)
    result = run(first)
    path = tmp_path / "fold-0.safetensors"
    save_fold(path, result, first.recipe)
    start = FoldTraining(job("multilabel", initial=path)).state.network.state_dict()
    for name, tensor in start.items():
        if name.startswith("backbone."):
            torch.testing.assert_close(tensor, result.state[name], rtol=0, atol=0)
    save_model(path, {"head.1.bias": torch.zeros(1), **_FACTS}, first.recipe.to_dict(), 1)
    with pytest.raises(UserError):
        FoldTraining(job(initial=path))


_FACTS = {f"{a}.{b}": torch.zeros(1) for a in ("target", "image") for b in ("mean", "std")}


@pytest.mark.parametrize("task_type", ("regression", *TYPES))
def test_a_refit_has_no_validation_rows_and_uses_all(task_type: str) -> None:
    every = {"train_rows": np.arange(ROWS), "valid_rows": np.arange(0), "epochs": 1}
    small = job(task_type, **every)
    fold = FoldTraining(dataclasses.replace(small, test_images_NHWC=small.images_NHWC[:4]))
    epoch = fold.epoch()
    assert epoch.pred_TV is not None
    outputs = len(small.targets_TN)
    assert epoch.pred_TV.shape == (outputs, 0)
    assert fold.state.step == ROWS // 8
    result = fold.finish()
    assert result.pred_TV.shape == (outputs, 0)
    assert result.test_pred_TS is not None and result.test_pred_TS.shape == (outputs, 4)
    assert result.predict_ms == 0


def test_counterparts_share_the_scale_of_values() -> None:
    small = job("regression", augment=Augment(mirror=True))
    targets_TN = np.random.default_rng(0).normal(size=(3, ROWS)) * [[1], [5], [2]] + [[0], [9], [4]]
    fold = FoldTraining(
        dataclasses.replace(
            small, targets_TN=targets_TN.astype(np.float32), mirror_targets=(1, 0, 2)
        )
    )
    assert fold.target_mean[0] == fold.target_mean[1] != fold.target_mean[2]
    assert fold.target_std[0] == fold.target_std[1] != fold.target_std[2]
