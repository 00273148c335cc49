"""Baselines predict rows that they have not seen, from what they may see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.baselines import BASELINES, fold_order
from search.metrics import check_predictions, fold_scores, get_metric

CLASSES = ("binary", "multilabel", "multiclass")
NOTHING = np.empty((90, 0, 0, 3), np.uint8)


@pytest.fixture(scope="module")
def coloured():
    """Flat-coloured noisy tiles; the first target follows the red, the second nothing."""
    rng = np.random.default_rng(0)
    colour_N3 = rng.uniform(40, 220, (90, 3))
    noise = rng.normal(0, 8, (90, 16, 16, 3))
    images_NHWC = np.clip(colour_N3[:, None, None] + noise, 0, 255).astype(np.uint8)
    targets_TN = np.stack([colour_N3[:, 0] / 100, rng.normal(0, 1, 90)]).astype(np.float32)
    return images_NHWC, targets_TN, np.arange(90) % 3


def test_mean_profile_is_the_mean_of_the_other_folds(coloured):
    _, targets_TN, fold_N = coloured
    pred_TN = BASELINES["mean_profile"](NOTHING, targets_TN, fold_N)
    for k in range(3):
        expected = targets_TN[:, fold_N != k].mean(axis=1, keepdims=True)
        assert pred_TN[:, fold_N == k] == pytest.approx(np.repeat(expected, 30, axis=1), abs=1e-6)


def test_colour_ridge_finds_what_follows_the_colour(coloured):
    images_NHWC, targets_TN, fold_N = coloured
    pred_TN = BASELINES["colour_ridge"](images_NHWC, targets_TN, fold_N)
    assert np.corrcoef(pred_TN[0], targets_TN[0])[0, 1] > 0.95


@pytest.mark.parametrize("name", BASELINES)
def test_a_folds_own_targets_do_not_change_its_predictions(name, coloured):
    images_NHWC, targets_TN, fold_N = coloured
    changed_TN = targets_TN.copy()
    changed_TN[:, fold_N == 1] += 50
    before, after = (BASELINES[name](images_NHWC, t, fold_N) for t in (targets_TN, changed_TN))
    assert np.array_equal(before[:, fold_N == 1], after[:, fold_N == 1])
    assert not np.allclose(before[:, fold_N != 1], after[:, fold_N != 1])


@pytest.mark.parametrize("name", BASELINES)
def test_predict_is_a_fit_on_all_training_rows(name, coloured):
    images_NHWC, targets_TN, fold_N = coloured
    inside = fold_N == 2
    pred_TM = BASELINES[name].predict(
        images_NHWC[~inside], targets_TN[:, ~inside], images_NHWC[inside]
    )
    assert pred_TM.dtype == np.float32
    oof_TN = BASELINES[name].oof(images_NHWC, targets_TN, fold_N)
    assert pred_TM == pytest.approx(oof_TN[:, inside], abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_a_constant_target_and_a_single_target_are_predicted(name, coloured):
    images_NHWC, targets_TN, fold_N = coloured
    pred_TN = BASELINES[name](images_NHWC, np.full_like(targets_TN[:1], 2.5), fold_N)
    assert pred_TN == pytest.approx(np.full((1, 90), 2.5, np.float32), abs=1e-5)


# --- classes ---------------------------------------------------------------------------------


def class_data(task_type, rows=120, seed=0):
    """Flat tiles whose colours follow their classes."""
    rng = np.random.default_rng(seed)
    shade_N3 = rng.uniform(0, 1, (rows, 3))
    if task_type == "multiclass":
        targets_TN = shade_N3.argmax(axis=1) == np.arange(3)[:, None]
    else:
        noise_N3 = rng.normal(0, 0.1, shade_N3.shape)
        targets_TN = (shade_N3 + noise_N3 > [0.5, 0.8, 0.3]).T
        targets_TN = targets_TN[: 1 if task_type == "binary" else 3]
    tiles = 60 + 120 * shade_N3[:, None, None] + rng.normal(0, 8, (rows, 12, 12, 3))
    return tiles.clip(0, 255).astype(np.uint8), targets_TN.astype(np.float32), np.arange(rows) % 4


@pytest.mark.parametrize("task_type", CLASSES)
@pytest.mark.parametrize("name", BASELINES)
def test_classes_are_predicted_as_probabilities(name, task_type):
    images_NHWC, targets_TN, fold_N = class_data(task_type)
    pred_TN = BASELINES[name](images_NHWC, targets_TN, fold_N, task_type)
    assert pred_TN.shape == targets_TN.shape
    assert pred_TN.dtype == np.float32
    assert pred_TN.min() >= 0
    assert pred_TN.max() <= 1
    if task_type == "multiclass":
        assert pred_TN.sum(axis=0) == pytest.approx(np.ones(120), abs=1e-5)
    if name == "mean_profile":
        prior_T = targets_TN[:, fold_N != 2].mean(axis=1)
        assert pred_TN[:, fold_N == 2][:, 0] == pytest.approx(prior_T, abs=1e-6)
    inside = fold_N == 1
    again_TM = BASELINES[name].predict(
        images_NHWC[~inside], targets_TN[:, ~inside], images_NHWC[inside], task_type
    )
    assert again_TM == pytest.approx(pred_TN[:, inside], abs=1e-5)


@pytest.mark.parametrize("task_type", CLASSES)
def test_the_ridge_beats_the_prior_where_colours_follow_the_classes(task_type):
    images_NHWC, targets_TN, fold_N = class_data(task_type)
    for name, args in (("auroc", {}), ("log_loss", {"multiclass": task_type == "multiclass"})):
        fitted = get_metric(name, **args).fit(targets_TN)
        ridge, prior = (
            np.mean([
                score.value
                for score in fold_scores(
                    fitted, BASELINES[b](images_NHWC, targets_TN, fold_N, task_type),
                    targets_TN, fold_N,
                )
            ])
            for b in ("colour_ridge", "mean_profile")
        )  # fmt: skip
        assert ridge > prior + 0.2


def test_a_ridge_that_finds_nothing_predicts_the_prior():
    """Its shrinkage is chosen by leave-one-out: noise is not learned."""
    images_NHWC, targets_TN, fold_N = class_data("binary")
    targets_TN = targets_TN[:, np.random.default_rng(1).permutation(120)]
    ridge, prior = (b(images_NHWC, targets_TN, fold_N, "binary") for b in BASELINES.values())
    assert np.abs(ridge - prior).mean() < 0.1


@pytest.mark.parametrize("task_type", CLASSES)
@pytest.mark.parametrize("name", BASELINES)
def test_a_fold_that_learns_from_a_single_class_is_predicted(name, task_type):
    images_NHWC, targets_TN, fold_N = class_data(task_type)
    targets_TN[:, fold_N != 0] = 0
    targets_TN[0, fold_N != 0] = 1
    pred_TN = BASELINES[name](images_NHWC, targets_TN, fold_N, task_type)
    expected_T = np.eye(len(targets_TN))[0]
    assert pred_TN[:, fold_N == 0] == pytest.approx(np.repeat(expected_T[:, None], 30, axis=1))
    assert np.isfinite(pred_TN).all()


@pytest.mark.parametrize(
    ("metric", "task_type"),
    [
        *((m, "binary") for m in ("khd", "auroc", "average_precision", "f1", "log_loss")),
        *((m, "multilabel") for m in ("presence_locations", "average_precision", "accuracy")),
    ],
)
def test_the_prior_has_a_score_in_every_metric(metric, task_type):
    images_NHWC, targets_TN, fold_N = class_data(task_type)
    pred_TN = BASELINES["mean_profile"](images_NHWC, targets_TN, fold_N, task_type)
    fitted = get_metric(metric).fit(targets_TN)
    assert check_predictions(fitted, pred_TN, "mean_profile") == []
    values = [score.value for score in fold_scores(fitted, pred_TN, targets_TN, fold_N)]
    assert np.isfinite(values).all()
    if metric in ("auroc", "presence_locations"):
        assert values == pytest.approx([0.5] * 4)


# --- other images ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("task_type", ["regression", "binary"])
def test_images_of_any_number_of_channels_are_learned_from(channels, task_type):
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 150, (90, 8, 8, channels)).astype(np.uint8)
    shift_N = rng.integers(0, 100, 90)
    images_NHWC[..., -1] += shift_N[:, None, None].astype(np.uint8)
    targets_TN = np.float32(shift_N[None] if task_type == "regression" else shift_N[None] > 50)
    pred_TN = BASELINES["colour_ridge"](images_NHWC, targets_TN, np.arange(90) % 3, task_type)
    assert np.corrcoef(pred_TN[0], targets_TN[0])[0, 1] > 0.8


@pytest.mark.parametrize("views", [2, 12])
@pytest.mark.parametrize("name", BASELINES)
def test_a_row_is_predicted_from_all_its_views(name, views):
    """The target is the brightness of the brightest view; 12 views are joined as mean and max."""
    rng = np.random.default_rng(0)
    shade_NV = rng.uniform(30, 220, (100, views))
    noise = rng.normal(0, 5, (100 * views, 6, 6, 3))
    images = np.clip(shade_NV.reshape(-1, 1, 1, 1) + noise, 0, 255).astype(np.uint8)
    targets_TN, fold_N = np.float32(shade_NV.max(axis=1))[None] / 100, np.arange(100) % 4
    pred_TN = BASELINES[name].oof(images, targets_TN, fold_N, views=views)
    assert pred_TN.shape == (1, 100)
    error = np.square(pred_TN - targets_TN).mean()
    assert error < 0.5 * targets_TN.var() if name == "colour_ridge" else error > 0
    images_KN, targets_KN = images[views * 25 :], targets_TN[:, 25:]
    test_TM = BASELINES[name].predict(images_KN, targets_KN, images[: views * 25], views=views)
    assert test_TM.shape == (1, 25)


# --- the order of folds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        ([0.4, 0.513, 0.579, 0.6, 0.568], [4, 2, 3, 1, 0]),
        ([0.1, 0.2, 0.3], [1, 0, 2]),
        ([0.5, 0.5], [0, 1]),
        ([0.3], [0]),
        ([0.1, 0.2, 0.4, 0.9], [1, 2, 0, 3]),
    ],
)
def test_the_fold_nearest_the_median_comes_first(scores, order):
    assert fold_order(scores) == order


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
def test_fold_order_is_a_permutation_by_distance_from_the_median(scores):
    order = fold_order(scores)
    assert sorted(order) == list(range(len(scores)))
    distance = np.abs(np.array(scores) - np.median(scores))[order]
    assert (np.diff(distance) >= -1e-11).all()


@pytest.mark.parametrize("scores", [[], [0.1, np.nan], [np.inf]])
def test_fold_order_refuses_missing_scores(scores):
    with pytest.raises(ValueError, match="one finite score a fold"):
        fold_order(scores)
