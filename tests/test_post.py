"""What is fitted after a blend: thresholds, temperature, shrinkage.

Shapes: T outputs, N rows, n rows of the folds given.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.bench import Bench
from ensemble.blend import Blend, Post
from ensemble.post import LEAST_GAIN, LEAST_SHRINK_GAIN, fit_post, lowest
from ensemble.transforms import temper
from search.metrics import best_thresholds, get_metric
from tests.pools import METRICS, make_pool, pool_for

seeds = st.integers(0, 10_000)
FITTED = ("khd", "f1", "accuracy", "log_loss", "log_loss-classes", "log_loss-labels", "gene_expr",
          "gene_expr-drop")  # fmt: skip


def mean_of_all(pool):
    members = tuple(range(len(pool.members)))
    weights = (1 / len(members),) * len(members)
    return Blend(method="mean", task_type=pool.task_type, members=members, weights=weights)


def fitted(pool, folds):
    bench, blend = Bench(pool), mean_of_all(pool)
    return bench, blend, fit_post(bench, blend, folds)


def score(pool, blend, folds):
    """Mean score over folds from the predictions themselves."""
    thresholds_T = blend.post.thresholds_T
    pred_TN = blend.apply([member.pred_TN for member in pool.members])
    each = [pool.fold_N == fold for fold in folds]
    scores = [
        pool.metric.score(pred_TN[:, k], pool.true_TN[:, k], thresholds_T).value for k in each
    ]
    return float(np.mean(scores))


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(FITTED))
def test_only_rows_of_the_folds_are_read(seed, key):
    pool = pool_for(key, seed=seed, rows=45)
    other = pool.fold_N == 1
    rng = np.random.default_rng(seed)
    true_TN = pool.true_TN.copy()
    true_TN[:, other] = pool.true_TN[:, rng.permutation(np.flatnonzero(other))]
    members = []
    for member in pool.members:
        pred_TN = member.pred_TN.copy()
        pred_TN[:, other] = pred_TN[:, rng.permutation(np.flatnonzero(other))]
        members.append(replace(member, pred_TN=pred_TN))
    changed = replace(pool, true_TN=true_TN, members=tuple(members))
    assert same(fitted(pool, [0, 2])[2], fitted(changed, [0, 2])[2])


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(FITTED), st.floats(0.2, 3))
def test_the_score_on_the_fitted_rows_never_falls(seed, key, noise):
    pool = pool_for(key, seed=seed, rows=45, noise=noise)
    _, blend, post = fitted(pool, [0, 2])
    before = score(pool, blend, [0, 2])
    after = score(pool, replace(blend, post=post), [0, 2])
    if post.thresholds_T is not None:
        assert after >= before - 1e-12  # that with 0.5
    elif post.temperature != 1:
        assert after - before >= LEAST_GAIN * -before - 1e-9
        assert 0.2 <= post.temperature <= 5
    elif post.mean_T is not None:
        assert after - before >= LEAST_SHRINK_GAIN - 1e-6  # predictions are rounded to float32
        assert 0.25 <= post.shrink <= 1.5
    else:
        assert same(post, Post())


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(("khd", "f1", "accuracy")))
def test_thresholds_are_the_best_of_the_blended_predictions(seed, key):
    pool = pool_for(key, seed=seed)
    _, blend, post = fitted(pool, [0, 2])
    rows = np.isin(pool.fold_N, [0, 2])
    pred_Tn = blend.apply([member.pred_TN[:, rows] for member in pool.members])
    expected_T = best_thresholds(pool.metric, pred_Tn, pool.true_TN[:, rows], pool.fold_N[rows])
    np.testing.assert_array_equal(post.thresholds_T, expected_T)
    assert replace(blend, post=post).is_mean


@pytest.mark.parametrize("task_type", ("binary", "multilabel", "multiclass"))
@pytest.mark.parametrize("known", (0.4, 2.5))
def test_a_known_temperature_is_found(task_type, known):
    """Labels are drawn from probabilities that are then made too sure or not sure enough."""
    rng = np.random.default_rng(5)
    outputs, rows = {"binary": 1, "multilabel": 3, "multiclass": 4}[task_type], 20_000
    logit_TN = rng.normal(size=(outputs, rows)) * 1.5
    if task_type == "multiclass":
        right_TN = np.exp(logit_TN) / np.exp(logit_TN).sum(axis=0)
        label_N = (rng.random(rows) > right_TN.cumsum(axis=0)).sum(axis=0)
        true_TN = np.arange(outputs)[:, None] == label_N
    else:
        right_TN = 1 / (1 + np.exp(-logit_TN))
        true_TN = rng.random(right_TN.shape) < right_TN
    pred_TN = np.float32(temper(right_TN, 1 / known, task_type))
    metric = get_metric("log_loss", multiclass=task_type == "multiclass")
    pool = make_pool([pred_TN], np.float32(true_TN), np.arange(rows) % 3, metric, task_type)
    _, blend, post = fitted(pool, [0, 1, 2])
    assert post.temperature == pytest.approx(known, rel=0.05)
    again_TN = replace(blend, post=post).apply([pred_TN])
    pool = make_pool([again_TN], pool.true_TN, pool.fold_N, metric, task_type)
    assert fitted(pool, [0, 1, 2])[2].temperature == 1.0  # exactly: hardly anything is left


@settings(deadline=None, max_examples=20)
@given(seeds, st.sampled_from(("log_loss", "log_loss-classes", "log_loss-labels")))
def test_no_temperature_of_a_fine_grid_is_better(seed, key):
    pool = pool_for(key, seed=seed, rows=45)
    _, blend, post = fitted(pool, [0, 2])
    got = score(pool, replace(blend, post=post), [0, 2])
    for temperature in np.geomspace(0.2, 5, 80):
        other = replace(blend, post=Post(temperature=temperature))
        assert score(pool, other, [0, 2]) <= got + 2 * LEAST_GAIN * abs(got)


@pytest.mark.parametrize("key", ("log_loss", "log_loss-classes", "log_loss-labels"))
def test_probabilities_of_0_and_1_break_nothing(key):
    pool = pool_for(key)
    pred_TN = np.round(pool.members[0].pred_TN)
    pool = replace(pool, members=(replace(pool.members[0], pred_TN=pred_TN),))
    assert fitted(pool, [0, 1])[2].temperature == 1.0  # sure ones stay at every temperature
    pool = replace(pool, members=(replace(pool.members[0], pred_TN=0 * pred_TN),))
    assert fitted(pool, [0, 1])[2].temperature == 1.0


@pytest.mark.parametrize("known", (0.4, 1.3))
def test_a_known_shrink_is_found(known):
    rng = np.random.default_rng(1)
    profile_T1 = rng.normal(2, 1, (40, 1))
    true_TN = np.float32(profile_T1 + rng.normal(size=(40, 900)))
    mean_T1 = true_TN.mean(axis=1, dtype=np.float64)[:, None]
    pred_TN = np.float32(mean_T1 + (true_TN - mean_T1) / known)
    metric = get_metric("gene_expr", heg_n=3, hvg_n=2)
    pool = make_pool([pred_TN], true_TN, np.arange(900) % 3, metric, "regression")
    post = fitted(pool, [0, 1, 2])[2]
    assert post.shrink == pytest.approx(known, abs=0.01)
    np.testing.assert_allclose(post.mean_T, mean_T1[:, 0], rtol=1e-12)
    pool = make_pool([true_TN], true_TN, np.arange(900) % 3, metric, "regression")
    assert same(fitted(pool, [0, 1, 2])[2], Post())


@settings(deadline=None, max_examples=20)
@given(seeds, st.sampled_from(("gene_expr", "gene_expr-drop")), st.booleans())
def test_no_shrink_of_a_fine_grid_is_better(seed, key, constant):
    pool = pool_for(key, seed=seed, rows=45)
    if constant:
        pool.true_TN[:, 3:6] = 1.0  # cells without a correlation
    _, blend, post = fitted(pool, [0, 2])
    got = score(pool, replace(blend, post=post), [0, 2])
    mean_T = pool.true_TN[:, np.isin(pool.fold_N, [0, 2])].mean(axis=1, dtype=np.float64)
    for shrink in np.linspace(0.25, 1.5, 60):
        other = replace(blend, post=Post(shrink=shrink, mean_T=mean_T))
        assert score(pool, other, [0, 2]) <= got + LEAST_SHRINK_GAIN + 1e-6


@pytest.mark.parametrize("key", sorted(set(METRICS) - set(FITTED)))
def test_other_metrics_get_nothing(key):
    assert same(fitted(pool_for(key), [0, 1])[2], Post())


@given(st.floats(-3, 4))
def test_the_lowest_point_of_a_valley_is_found(at):
    found = lowest(lambda x: (x - at) ** 2, -2.0, 3.0)
    assert found == pytest.approx(np.clip(at, -2, 3), abs=2e-3)
