"""The squared-error engine against the metric itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import squared
from ensemble.engines.squared import SquaredErrorEngine
from search.metrics import fold_scores, get_metric

NAMES = ("rmse", "r2")


def naive(metric, preds, true_TN, fold_N, weights):
    """Fold scores of the mean. It stays in float64, as in the engine: rounding to float32 moves a
    score by 1e-7 of the size of the predictions."""
    total = sum(np.float64(w) * p.astype(np.float64) for w, p in zip(weights, preds, strict=True))
    pred_TN = total / np.sum(weights)
    return [s.value for s in fold_scores(metric.fit(true_TN), pred_TN, true_TN, fold_N)]


def naive_steps(metric, preds, true_TN, fold_N, counts):
    eye = np.eye(len(preds), dtype=np.int64)
    return np.array([naive(metric, preds, true_TN, fold_N, counts + one) for one in eye]).T


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outputs, folds = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    fold_N = rng.permutation(
        np.r_[np.arange(folds).repeat(3), rng.integers(0, folds, draw(st.integers(1, 40)))]
    )
    shape = (outputs, len(fold_N))
    offset = draw(st.sampled_from((0.0, 5.0, 100.0)))
    true_TN = offset + rng.normal(size=shape)
    count, form = draw(st.integers(1, 5)), draw(st.sampled_from(("near", "whole", "constant")))
    if form == "whole":
        true_TN = np.round(true_TN)
    if outputs > 1 and draw(st.booleans()):
        true_TN[1, fold_N == 0] = 3.0  # does not count in fold 0 where r2 is asked for
    true_TN[0, [np.flatnonzero(fold_N == k)[0] for k in range(folds)]] += 7.0  # varies everywhere
    preds = true_TN + rng.uniform(0.1, 1, (count, 1, 1)) * rng.normal(size=(count, *shape))
    if form == "whole":
        preds = np.round(preds)
    elif form == "constant":
        preds[0] = offset
    preds[rng.integers(count)] = preds[0]  # a twin
    return list(preds.astype(np.float32)), np.float32(true_TN), fold_N, rng


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(NAMES))
def test_fold_scores_are_the_metric_of_the_weighted_mean(case, name):
    preds, true_TN, fold_N, rng = case
    metric = get_metric(name)
    engine = SquaredErrorEngine(metric.fit(true_TN), preds, true_TN, fold_N)
    weights = rng.random(len(preds)) * (rng.random(len(preds)) < 0.7) + 1e-3
    for w in (weights, np.ones(len(preds)), np.eye(len(preds))[0]):
        expected = naive(metric, preds, true_TN, fold_N, w)
        # The root of 0 is 1e-8, up to rounding.
        np.testing.assert_allclose(engine.fold_scores(w), expected, rtol=1e-9, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(NAMES))
def test_steps_and_their_order_are_those_of_the_naive_loop(case, name):
    preds, true_TN, fold_N, _ = case
    metric = get_metric(name)
    engine = SquaredErrorEngine(metric.fit(true_TN), preds, true_TN, fold_N)
    counts = np.zeros(len(preds), dtype=np.int64)
    for _ in range(4):
        steps = engine.fold_steps(counts)
        expected = naive_steps(metric, preds, true_TN, fold_N, counts)
        np.testing.assert_allclose(steps, expected, rtol=1e-9, atol=1e-7)
        best = [
            int(np.flatnonzero(s >= s.max() - 1e-9)[0]) for s in (steps.mean(0), expected.mean(0))
        ]
        assert best[0] == best[1]
        counts[best[0]] += 1


@pytest.mark.parametrize("name", NAMES)
def test_members_that_cancel_each_other_leave_no_error(name):
    rng = np.random.default_rng(3)
    true_TN = np.float32(rng.integers(-50, 50, (4, 300)))
    error_TN = np.float32(rng.integers(-8, 9, (4, 300)))
    preds, fold_N = [true_TN + error_TN, true_TN - error_TN], np.arange(300) % 3
    engine = SquaredErrorEngine(get_metric(name).fit(true_TN), preds, true_TN, fold_N)
    perfect = 1.0 if name == "r2" else 0.0
    np.testing.assert_allclose(engine.fold_scores(np.ones(2)), perfect, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_small_blocks_change_nothing(name, monkeypatch):
    rng = np.random.default_rng(5)
    true_TN, fold_N = rng.normal(size=(5, 90)).astype(np.float32), rng.integers(0, 3, 90)
    preds = [true_TN + rng.normal(size=true_TN.shape).astype(np.float32) for _ in range(6)]
    fitted, weights = get_metric(name).fit(true_TN), rng.random(6)
    plain = SquaredErrorEngine(fitted, preds, true_TN, fold_N).fold_scores(weights)
    monkeypatch.setattr(squared, "_BLOCK", 100)
    monkeypatch.setattr(squared, "_ROWS", 10)
    frugal = SquaredErrorEngine(fitted, preds, true_TN, fold_N).fold_scores(weights)
    np.testing.assert_allclose(plain, frugal, rtol=1e-12)


def test_r2_is_refused_where_no_truth_varies():
    true_TN, fold_N = np.float32([[1, 2, 3, 3]]), np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="undefined in a fold"):
        SquaredErrorEngine(get_metric("r2").fit(true_TN), [true_TN], true_TN, fold_N)
