"""The correlation engine against the metric itself and the naive loop.

Shapes: M members, T outputs, N rows, K folds.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import pearson, values
from ensemble.engines.base import TIE
from ensemble.engines.pearson import GramEngine
from search.metrics import fold_scores, get_metric

METRICS = [
    get_metric("gene_expr", heg_n=3, hvg_n=2),
    get_metric("gene_expr", heg_n=3, hvg_n=2, nan="drop"),
    get_metric("pearson"),
    get_metric("pearson", nan="drop"),
]


def naive(fitted, preds, true_TN, fold_N, weights_M):
    """Fold scores of the weighted mean, which stays in float64, as in the engine."""
    total = sum(w * p.astype(np.float64) for w, p in zip(weights_M, preds, strict=True))
    mean_TN = total / np.sum(weights_M)
    return [s.value for s in fold_scores(fitted, mean_TN, true_TN, fold_N)]


def naive_steps(fitted, preds, true_TN, fold_N, counts_M):
    ones = np.eye(len(preds), dtype=np.int64)
    return np.array([naive(fitted, preds, true_TN, fold_N, counts_M + one) for one in ones]).T


def pick(scores_KM, counts_M):
    """The best candidate; among equal ones a member that is in, then the first."""
    scores_M = scores_KM.mean(axis=0)
    tied = np.flatnonzero(scores_M >= scores_M.max() - TIE)
    inside = tied[counts_M[tied] > 0]
    return int((inside if len(inside) else tied)[0])


def path(engine, steps):
    """Members in the order of selection, and the fold scores of each step."""
    counts_M, order, scores = np.zeros(engine.members, dtype=np.int64), [], []
    for _ in range(steps):
        scores.append(engine.fold_steps(counts_M))
        order.append(pick(scores[-1], counts_M))
        counts_M[order[-1]] += 1
    return order, np.array(scores)


def assert_like_the_naive_loop(metric, preds, true_TN, fold_N, steps):
    fitted = metric.fit(true_TN)
    engine, counts_M = GramEngine(fitted, preds, true_TN, fold_N), np.zeros(len(preds), dtype=int)
    for _ in range(steps):
        got, expected = (
            engine.fold_steps(counts_M),
            naive_steps(fitted, preds, true_TN, fold_N, counts_M),
        )
        np.testing.assert_allclose(got, expected, atol=1e-6)
        chosen = pick(got, counts_M)
        assert chosen == pick(expected, counts_M)
        counts_M[chosen] += 1


def problem(seed, members=5, outputs=7, rows=40, folds=3):
    rng = np.random.default_rng(seed)
    profile = rng.normal(3, 2, (outputs, 1))
    true_TN = profile + rng.normal(size=(outputs, rows))
    shares = rng.uniform(0.2, 1, members)
    preds = [profile + s * (true_TN - profile) + rng.normal(size=true_TN.shape) for s in shares]
    fold_N = rng.permutation(np.arange(rows) % folds)
    return [p.astype(np.float32) for p in preds], true_TN.astype(np.float32), fold_N


@st.composite
def awkward_problems(draw):
    """Small whole-number predictions with constant members, constant genes and duplicates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outputs, rows, folds = draw(st.integers(2, 5)), draw(st.integers(6, 14)), 2
    members = draw(st.integers(1, 5))
    true_TN = rng.integers(-3, 4, (outputs, rows)).astype(np.float32)
    preds = [rng.integers(-3, 4, (outputs, rows)).astype(np.float32) for _ in range(members)]
    kinds = ["plain", "constant", "profile", "gene", "row", "copy", "mirror"]
    for index in range(members):
        kind = draw(st.sampled_from(kinds))
        if kind == "constant":
            preds[index][:] = rng.normal()
        elif kind == "profile":
            preds[index][:] = rng.normal(size=(outputs, 1))
        elif kind == "gene":
            preds[index][rng.integers(outputs)] = rng.normal()
        elif kind == "row":
            preds[index][:, rng.integers(rows)] = rng.normal()
        elif kind == "copy":
            preds[index] = preds[rng.integers(members)].copy()
        elif kind == "mirror":
            preds[index] = 1 - preds[rng.integers(members)]
    if draw(st.booleans()):
        true_TN[rng.integers(outputs)] = 0.1
    fold_N = np.arange(rows) % folds
    fold_N = np.sort(fold_N) if draw(st.booleans()) else rng.permutation(fold_N)
    return preds, true_TN, fold_N


@settings(deadline=None, max_examples=60)
@given(awkward_problems(), st.sampled_from(METRICS))
def test_steps_and_their_order_are_those_of_the_naive_loop(awkward, metric):
    assert_like_the_naive_loop(metric, *awkward, steps=4)


@settings(deadline=None, max_examples=60)
@given(awkward_problems(), st.sampled_from(METRICS), st.data())
def test_fold_scores_equal_the_metric_of_the_weighted_mean(awkward, metric, data):
    preds, true_TN, fold_N = awkward
    fitted = metric.fit(true_TN)
    shares = st.one_of(st.integers(0, 9), st.just(0), st.floats(1e-3, 10))
    weights_M = np.array(data.draw(st.lists(shares, min_size=5, max_size=5)))[: len(preds)]
    weights_M = weights_M + (weights_M.sum() == 0)
    got_K = GramEngine(fitted, preds, true_TN, fold_N).fold_scores(weights_M)
    expected_K = naive(fitted, preds, true_TN, fold_N, weights_M)
    np.testing.assert_allclose(got_K, expected_K, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS[::2], ids=["gene_expr", "pearson"])
def test_large_offsets_cost_no_accuracy(metric):
    preds, true_TN, fold_N = problem(2)
    offset_T1 = np.linspace(500, 3000, len(true_TN))[:, None]
    preds, true_TN = [np.float32(p + offset_T1) for p in preds], np.float32(true_TN + offset_T1)
    assert_like_the_naive_loop(metric, preds, true_TN, fold_N, steps=6)


@pytest.mark.parametrize("metric", METRICS[::2], ids=["gene_expr", "pearson"])
def test_values_far_from_the_first_ones_cost_no_accuracy(metric):
    """The first rows and outputs say nothing about the others' level."""
    preds, true_TN, fold_N = problem(3, outputs=90, rows=400)
    preds = [p + np.float32(4000) * (np.arange(400) >= 210) for p in preds]
    preds = [p + np.float32(4000) * (np.arange(90) >= 70)[:, None] for p in preds]
    preds = [np.float32(p) for p in preds]
    weights_M = np.array([0.2, 1.5, 0, 0.3, 1])
    fitted = metric.fit(true_TN)
    got_K = GramEngine(fitted, preds, true_TN, fold_N).fold_scores(weights_M)
    expected_K = naive(fitted, preds, true_TN, fold_N, weights_M)
    np.testing.assert_allclose(got_K, expected_K, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS[::2], ids=["gene_expr", "pearson"])
def test_products_made_late_and_read_in_pieces_change_nothing(metric, monkeypatch):
    preds, true_TN, fold_N = problem(4, members=6, rows=300)
    fitted, weights_M = metric.fit(true_TN), np.array([0.1, 0, 2, 0.7, 0, 0.3])
    whole = GramEngine(fitted, preds, true_TN, fold_N)
    order, scores = path(whole, 8)
    monkeypatch.setattr(values, "_BLOCK_BYTES", 3000)
    monkeypatch.setattr(values, "_OUTPUTS", 3)
    for ready in (0, 2):
        column_bytes = 8 * 6 * (3 * 7 + 300 * (metric.name == "gene_expr"))
        monkeypatch.setattr(pearson, "_GRAM_BYTES", ready * column_bytes)
        pieces = GramEngine(fitted, preds, true_TN, fold_N)
        np.testing.assert_allclose(
            pieces.fold_scores(weights_M), whole.fold_scores(weights_M), atol=1e-12
        )
        late_order, late_scores = path(pieces, 8)
        assert late_order == order
        np.testing.assert_allclose(late_scores, scores, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS[::2], ids=["gene_expr", "pearson"])
def test_steps_do_not_depend_on_the_ones_before(metric):
    preds, true_TN, fold_N = problem(5)
    fitted = metric.fit(true_TN)
    engine = GramEngine(fitted, preds, true_TN, fold_N)
    for counts in ([1, 0, 2, 0, 0], [1, 1, 2, 0, 3], [0, 0, 5, 0, 0], [0, 0, 0, 0, 0]):
        fresh = GramEngine(fitted, preds, true_TN, fold_N)
        got, expected = (e.fold_steps(np.array(counts)) for e in (engine, fresh))
        np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_members_that_cancel_each_other_are_constant_and_not_rounding_noise(seed, metric):
    rng = np.random.default_rng(seed)
    true_TN = rng.normal(size=(5, 26)).astype(np.float32)
    one_TN, two_TN = (np.float32(rng.integers(-99, 99, (5, 26))) / 8 for _ in range(2))
    preds = [one_TN, two_TN, -one_TN - two_TN]
    engine = GramEngine(metric.fit(true_TN), preds, true_TN, np.arange(26) % 2)
    assert engine.fold_scores(np.full(3, 0.7)) == pytest.approx([0, 0], abs=1e-12)
    assert engine.fold_steps(np.array([1, 1, 0]))[:, 2] == pytest.approx([0, 0], abs=1e-12)


def test_memory_mapped_predictions_give_the_same(tmp_path):
    preds, true_TN, fold_N = problem(6)
    fitted = METRICS[0].fit(true_TN)
    for index, p in enumerate(preds):
        np.save(tmp_path / f"{index}.npy", p)
    mapped = [np.load(tmp_path / f"{index}.npy", mmap_mode="r") for index in range(len(preds))]
    got, expected = (GramEngine(fitted, p, true_TN, fold_N) for p in (mapped, preds))
    assert np.array_equal(got.fold_scores(np.ones(5)), expected.fold_scores(np.ones(5)))
