"""The engine of decisions against the metric itself and `best_thresholds`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import decisions, make_engine
from ensemble.engines.decisions import DecisionEngine
from search.metrics import Counts, best_thresholds, fold_scores, get_metric, rate

NAMES = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "khd")
FORMS = ("random", "quantised", "coarse", "constant", "edges")
THRESHOLDS = ("fit", 0.5, 0.1, 0.7)
TOLERANCE = {"rtol": 0, "atol": 1e-12}


def mean_of(preds, weights):
    """The predictions as they would be stored."""
    total = sum(np.float64(w) * p.astype(np.float64) for w, p in zip(weights, preds, strict=True))
    return (total / np.sum(weights)).astype(np.float32)


def naive(metric, pred_TN, true_TN, fold_N, folds, chosen_on):
    """Mean score over folds, with thresholds of the folds `chosen_on` where they are fitted."""
    thresholds_T = None
    if metric.fits_thresholds:
        rows = np.isin(fold_N, chosen_on)
        thresholds_T = best_thresholds(metric, pred_TN[:, rows], true_TN[:, rows], fold_N[rows])
    each = [fold_N == fold for fold in folds]
    scores = [metric.score(pred_TN[:, k], true_TN[:, k], thresholds_T).value for k in each]
    return float(np.mean(scores))


def members(rng, form, count, shape):
    if form == "random":
        preds = rng.random((count, *shape))
    elif form == "quantised":
        preds = rng.integers(0, 9, (count, *shape)) / 8
    elif form == "coarse":
        preds = np.round(rng.random((count, *shape)), 1)
    elif form == "constant":
        preds = np.broadcast_to(rng.random((count, 1, 1)), (count, *shape)).copy()
        preds[-1] = rng.random(shape)
    else:
        preds = rng.integers(0, 2, (count, *shape)).astype(float)
        preds[preds == 0] *= -1  # -0.0 ties with 0.0
    preds[rng.integers(count)] = preds[0]  # a twin
    return list(preds.astype(np.float32))


@st.composite
def cases(draw, kinds=("binary", "multilabel", "multiclass")):
    """Members, truth, folds of unequal size; in a fold an output may lack a class."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(kinds))
    outputs = 1 if kind == "binary" else draw(st.integers(2, 4))
    folds, rows = draw(st.integers(1, 4)), draw(st.integers(5, 40))
    fold_N = rng.permutation(np.r_[np.arange(folds).repeat(2), rng.integers(0, folds, rows)])
    shape = (outputs, len(fold_N))
    if kind == "multiclass":
        true_TN = np.arange(outputs)[:, None] == rng.integers(0, outputs, shape[1])
    else:
        true_TN = rng.random(shape) < draw(st.sampled_from((0.05, 0.5, 0.95)))
        for fold in range(folds):  # in every fold one output has both classes
            first = np.flatnonzero(fold_N == fold)[:2]
            true_TN[rng.integers(outputs), first] = [True, False]
    preds = members(rng, draw(st.sampled_from(FORMS)), draw(st.integers(1, 5)), shape)
    name, threshold = draw(st.sampled_from(NAMES)), draw(st.sampled_from(THRESHOLDS))
    metric = get_metric(name, threshold=threshold)
    if kind == "multiclass" and draw(st.booleans()):
        metric = get_metric(name, multiclass=True)
    chosen = sorted(draw(st.sets(st.integers(0, folds - 1), min_size=1)))
    true_TN = np.float32(true_TN)
    return metric.fit(true_TN), preds, true_TN, fold_N, chosen, rng


@settings(deadline=None, max_examples=60)
@given(cases())
def test_score_is_the_mean_of_fold_scores_with_the_best_thresholds_of_those_folds(case):
    metric, preds, true_TN, fold_N, chosen, rng = case
    engine = DecisionEngine(metric, preds, true_TN, fold_N)
    assert (engine.members, engine.folds) == (len(preds), fold_N.max() + 1)
    weights = rng.random(len(preds)) * (rng.random(len(preds)) < 0.7) + 1e-3
    for w in (weights, np.ones(len(preds)), np.eye(len(preds))[0]):
        expected = naive(metric, mean_of(preds, w), true_TN, fold_N, chosen, chosen)
        np.testing.assert_allclose(engine.score(w, chosen), expected, **TOLERANCE)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_step_is_the_score_with_one_more_of_each_member(case):
    metric, preds, true_TN, fold_N, chosen, rng = case
    engine = DecisionEngine(metric, preds, true_TN, fold_N)
    for counts in (np.zeros(len(preds), dtype=np.int64), rng.integers(0, 3, len(preds))):
        for folds in (chosen, list(range(engine.folds))):
            expected = [
                naive(metric, mean_of(preds, counts + one), true_TN, fold_N, folds, folds)
                for one in np.eye(len(preds), dtype=np.int64)
            ]
            for _ in range(2):  # the second time it is remembered
                np.testing.assert_allclose(engine.step(counts, folds), expected, **TOLERANCE)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_held_out_fold_is_scored_with_thresholds_of_the_others(case):
    metric, preds, true_TN, fold_N, chosen, rng = case
    engine = DecisionEngine(metric, preds, true_TN, fold_N)
    weights, fold = rng.random(len(preds)) + 0.1, int(rng.integers(engine.folds))
    expected = naive(metric, mean_of(preds, weights), true_TN, fold_N, [fold], chosen)
    assert engine.held_out(weights, fold, chosen) == pytest.approx(expected, rel=0, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(1, 70))
def test_the_size_of_blocks_changes_nothing(case, block):
    metric, preds, true_TN, fold_N, chosen, rng = case
    counts = rng.integers(0, 3, len(preds))
    whole = DecisionEngine(metric, preds, true_TN, fold_N).step(counts, chosen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "_BLOCK", block)
        pieces = DecisionEngine(metric, preds, true_TN, fold_N).step(counts, chosen)
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.parametrize("name", NAMES)
def test_no_rate_falls_when_one_more_decision_is_right(name):
    """What lets the engine leave out thresholds: `Cuts` relies on it."""
    more_fn, more_fp = np.arange(7)[:, None], np.arange(7)
    for positives in range(7):
        for negatives in range(7):
            fn, fp = np.minimum(more_fn, positives), np.minimum(more_fp, negatives)
            counts = Counts(tp=positives - fn, fp=fp + 0 * fn, tn=negatives - fp, fn=fn + 0 * fp)
            counts = Counts(*np.broadcast_arrays(*counts))
            got = rate(name, counts)
            for axis in (0, 1):
                assert not (np.diff(got, axis=axis) > 1e-15).any()


def test_many_folds_are_told_apart():
    rng = np.random.default_rng(0)
    fold_N = np.arange(600) % 200
    true_TN = np.float32(rng.random((1, 600)) < 0.4)
    preds = members(rng, "quantised", 3, (1, 600))
    metric = get_metric("khd").fit(true_TN)
    engine, folds = DecisionEngine(metric, preds, true_TN, fold_N), list(range(200))
    for use in (folds, folds[::3]):
        expected = naive(metric, mean_of(preds, [1, 1, 1]), true_TN, fold_N, use, use)
        assert engine.score(np.ones(3), use) == pytest.approx(expected, rel=0, abs=1e-12)


def test_what_the_metric_would_refuse_is_refused():
    true_TN, fold_N = np.float32([[0, 1, 0, 0]]), np.array([0, 0, 1, 1])
    metric = get_metric("f1").fit(true_TN)
    with pytest.raises(ValueError, match="undefined in fold 1: there no target has a positive"):
        DecisionEngine(metric, [0.5 * true_TN], true_TN, fold_N)
    for wrong in (1.5, -0.5, np.nan):
        with pytest.raises(ValueError, match="member 1"):
            DecisionEngine(metric, [true_TN, wrong + true_TN], true_TN, 0 * fold_N)


@pytest.mark.parametrize("outputs", [1, 3])
def test_khd_with_nested_thresholds_is_what_fold_scores_says(outputs):
    rng = np.random.default_rng(outputs)
    true_TN, fold_N = np.float32(rng.random((outputs, 150)) < 0.3), np.arange(150) % 5
    preds = [np.float32(0.3 * true_TN + 0.7 * rng.random(true_TN.shape)) for _ in range(3)]
    metric, weights = get_metric("khd").fit(true_TN), np.array([2.0, 1.0, 0.0])
    assert metric.fits_thresholds
    engine = make_engine(metric, preds, true_TN, fold_N)
    assert isinstance(engine, DecisionEngine)
    nested = [engine.held_out(weights, k, [f for f in range(5) if f != k]) for k in range(5)]
    expected = [s.value for s in fold_scores(metric, mean_of(preds, weights), true_TN, fold_N)]
    assert nested == pytest.approx(expected, rel=0, abs=1e-12)
    # Chosen on the rows that are scored, thresholds look better than they are.
    assert engine.score(weights, range(5)) > np.mean(nested)
