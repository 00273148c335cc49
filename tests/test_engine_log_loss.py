"""The log-loss engine against the metric itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import log_loss
from ensemble.engines.log_loss import LogLossEngine
from search.metrics import fold_scores, get_metric


def naive(metric, preds, true_TN, fold_N, weights):
    """Fold scores of the mean, from the predictions as they would be stored."""
    total = sum(np.float64(w) * p.astype(np.float64) for w, p in zip(weights, preds, strict=True))
    pred_TN = (total / np.sum(weights)).astype(np.float32)
    return [s.value for s in fold_scores(metric.fit(true_TN), pred_TN, true_TN, fold_N)]


def naive_steps(metric, preds, true_TN, fold_N, counts):
    eye = np.eye(len(preds), dtype=np.int64)
    return np.array([naive(metric, preds, true_TN, fold_N, counts + one) for one in eye]).T


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    task_type = draw(st.sampled_from(("binary", "multilabel", "multiclass")))
    outputs = 1 if task_type == "binary" else draw(st.integers(2, 4))
    folds, rows = draw(st.integers(1, 3)), draw(st.integers(1, 60))
    fold_N = rng.permutation(np.r_[np.arange(folds), rng.integers(0, folds, rows)])
    shape = (outputs, len(fold_N))
    if task_type == "multiclass":
        true_TN = np.arange(outputs)[:, None] == rng.integers(0, outputs, shape[1])
    else:
        true_TN = rng.random(shape) < draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    count = draw(st.integers(1, 5))
    sharpness = draw(st.sampled_from((0.0, 1.0, 10.0, 100.0)))  # 100: many are 0 or 1
    preds = 1 / (1 + np.exp(-sharpness * rng.normal(size=(count, *shape))))
    if draw(st.booleans()):
        preds = np.round(preds, 1)
    preds[rng.integers(count)] = preds[0]  # a twin
    eps = draw(st.sampled_from((1e-15, 1e-7, 1e-40)))
    metric = get_metric("log_loss", multiclass=task_type == "multiclass", eps=eps)
    return metric, list(preds.astype(np.float32)), np.float32(true_TN), fold_N, rng


@settings(deadline=None, max_examples=60)
@given(cases())
def test_fold_scores_are_the_metric_of_the_weighted_mean(case):
    metric, preds, true_TN, fold_N, rng = case
    engine = LogLossEngine(metric.fit(true_TN), preds, true_TN, fold_N)
    weights = rng.random(len(preds)) * (rng.random(len(preds)) < 0.7) + 1e-3
    for w in (weights, np.ones(len(preds)), np.eye(len(preds))[0]):
        expected = naive(metric, preds, true_TN, fold_N, w)
        np.testing.assert_allclose(engine.fold_scores(w), expected, rtol=1e-11, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_steps_and_their_order_are_those_of_the_naive_loop(case):
    metric, preds, true_TN, fold_N, _ = case
    engine = LogLossEngine(metric.fit(true_TN), preds, true_TN, fold_N)
    counts = np.zeros(len(preds), dtype=np.int64)
    for _ in range(4):
        steps = engine.fold_steps(counts)
        expected = naive_steps(metric, preds, true_TN, fold_N, counts)
        np.testing.assert_allclose(steps, expected, rtol=1e-11, atol=1e-13)
        best = [
            int(np.flatnonzero(s >= s.max() - 1e-9)[0]) for s in (steps.mean(0), expected.mean(0))
        ]
        assert best[0] == best[1]
        counts[best[0]] += 1


def test_all_wrong_for_certain_does_not_underflow():
    true_TN = np.ones((1, 64), dtype=np.float32)
    metric = get_metric("log_loss").fit(true_TN)
    engine = LogLossEngine(metric, [np.zeros_like(true_TN)], true_TN, np.zeros(64, dtype=np.int64))
    np.testing.assert_allclose(engine.fold_scores(np.ones(1)), np.log(1e-15), rtol=1e-12)


@pytest.mark.parametrize("multiclass", [False, True])
def test_small_blocks_change_nothing(multiclass, monkeypatch):
    rng = np.random.default_rng(5)
    fold_N = rng.integers(0, 3, 200)
    true_TN = np.float32(np.arange(3)[:, None] == rng.integers(0, 3, 200))
    preds = list(rng.random((6, 3, 200), dtype=np.float32))
    fitted = get_metric("log_loss", multiclass=multiclass).fit(true_TN)
    engine = LogLossEngine(fitted, preds, true_TN, fold_N)
    counts, weights = np.array([1, 0, 2, 0, 0, 1]), rng.random(6)
    steps, scores = engine.fold_steps(counts), engine.fold_scores(weights)
    monkeypatch.setattr(log_loss, "_BLOCK", 100)
    np.testing.assert_allclose(engine.fold_steps(counts), steps, rtol=1e-12)
    np.testing.assert_allclose(engine.fold_scores(weights), scores, rtol=1e-12)


def test_values_are_those_of_scikit_learn():
    from sklearn.metrics import log_loss as reference

    rng = np.random.default_rng(7)
    class_N, fold_N = rng.integers(0, 4, 90), np.arange(90) % 2
    true_TN = np.float32(np.arange(4)[:, None] == class_N)
    pred_TN = rng.dirichlet(np.ones(4), 90).T.astype(np.float32)
    fitted = get_metric("log_loss", multiclass=True).fit(true_TN)
    engine = LogLossEngine(fitted, [pred_TN], true_TN, fold_N)
    expected = [
        -reference(class_N[fold_N == k], pred_TN.T[fold_N == k].astype(np.float64), labels=range(4))
        for k in range(2)
    ]
    # scikit-learn divides by the sum of the classes, which is 1 up to float32 rounding.
    np.testing.assert_allclose(engine.fold_scores(np.ones(1)), expected, atol=1e-6)
