"""Baselines predict rows that they have not seen, from what they may see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.baselines import (
    BASELINES,
    colour_ridge,
    colour_statistics,
    fold_order,
    mean_profile,
)


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
    pred_TN = mean_profile(targets_TN, fold_N)
    for k in range(3):
        expected = targets_TN[:, fold_N != k].mean(axis=1, keepdims=True)
        assert pred_TN[:, fold_N == k] == pytest.approx(np.repeat(expected, 30, axis=1), abs=1e-6)


def test_colour_ridge_finds_what_follows_the_colour(coloured):
    images_NHWC, targets_TN, fold_N = coloured
    pred_TN = colour_ridge(images_NHWC, targets_TN, fold_N)
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


def test_colour_statistics_ignore_where_pixels_lie(coloured):
    images_NHWC = coloured[0]
    moved = images_NHWC[:, ::-1].swapaxes(1, 2)
    assert colour_statistics(images_NHWC).shape == (90, 53)
    assert colour_statistics(moved) == pytest.approx(colour_statistics(images_NHWC), abs=1e-3)


@pytest.mark.parametrize("value", [0, 127, 255])
def test_colour_statistics_of_flat_tiles_are_finite(value):
    assert np.isfinite(colour_statistics(np.full((2, 8, 8, 3), value, np.uint8))).all()


def test_colour_statistics_refuse_floats_and_grey():
    for images in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 1), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            colour_statistics(images)


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
