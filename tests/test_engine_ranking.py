"""The ranking engine against the metric itself, ties and missing classes included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import make_engine, ranking
from ensemble.engines.callable import CallableEngine
from ensemble.engines.ranking import RankingEngine
from search.metrics import fold_scores, get_metric

NAMES = ("auroc", "average_precision", "presence_locations")
FORMS = ("random", "quantised", "coarse", "constant", "signed", "signed_quantised")


def metric_of(name, true_TN):
    """The metric fitted, with few positives asked for, as the cases have few."""
    args = {"min_positives": 3} if name == "presence_locations" else {}
    return get_metric(name, **args).fit(true_TN)


def as_needed(name, preds):
    """The predictions, as probabilities where the metric takes no others."""
    return [np.clip(p, 0, 1) for p in preds] if name == "presence_locations" else preds


def naive(metric, preds, true_TN, fold_N, weights):
    """Fold scores of the mean, from the predictions as they would be stored."""
    total = sum(np.float64(w) * p.astype(np.float64) for w, p in zip(weights, preds, strict=True))
    pred_TN = (total / np.sum(weights)).astype(np.float32)
    return [s.value for s in fold_scores(metric, pred_TN, true_TN, fold_N)]


def naive_steps(metric, preds, true_TN, fold_N, counts):
    eye = np.eye(len(preds), dtype=np.int64)
    return np.array([naive(metric, preds, true_TN, fold_N, counts + one) for one in eye]).T


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
    elif form == "signed":
        preds = rng.normal(size=(count, *shape))
    else:
        preds = rng.integers(-2, 3, (count, *shape)) / 2
        preds[preds == 0] *= -1  # -0.0 ties with 0.0
    preds[rng.integers(count)] = preds[0]  # a twin
    return list(preds.astype(np.float32))


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    task_type = draw(st.sampled_from(("binary", "multilabel", "multiclass")))
    outputs = 1 if task_type == "binary" else draw(st.integers(2, 4))
    folds, rows = draw(st.integers(1, 3)), draw(st.integers(12, 40))
    fold_N = rng.permutation(np.r_[np.arange(folds).repeat(4), rng.integers(0, folds, rows)])
    shape = (outputs, len(fold_N))
    if task_type == "multiclass":
        true_TN = np.arange(outputs)[:, None] == rng.integers(0, outputs, shape[1])
    else:
        true_TN = rng.random(shape) < draw(st.sampled_from((0.1, 0.5, 0.9)))
    for fold in range(folds):  # output 0 counts in every fold, the others may not
        first = np.flatnonzero(fold_N == fold)[:2]
        true_TN[:, first] = False
        true_TN[0, first[0]] = true_TN[-1 if outputs > 1 else 0, first[1]] = True
        if outputs == 1:
            true_TN[0, first[1]] = False
    count = draw(st.integers(1, 5))
    preds = members(rng, draw(st.sampled_from(FORMS)), count, shape)
    return preds, np.float32(true_TN), fold_N, rng


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(NAMES))
def test_fold_scores_are_the_metric_of_the_weighted_mean(case, name):
    preds, true_TN, fold_N, rng = case
    metric, preds = metric_of(name, true_TN), as_needed(name, preds)
    engine = RankingEngine(metric, preds, true_TN, fold_N)
    weights = rng.random(len(preds)) * (rng.random(len(preds)) < 0.7) + 1e-3
    for w in (weights, np.ones(len(preds)), np.eye(len(preds))[0]):
        expected = naive(metric, preds, true_TN, fold_N, w)
        np.testing.assert_allclose(engine.fold_scores(w), expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from(NAMES))
def test_steps_and_their_order_are_those_of_the_naive_loop(case, name):
    preds, true_TN, fold_N, _ = case
    metric, preds = metric_of(name, true_TN), as_needed(name, preds)
    engine = RankingEngine(metric, preds, true_TN, fold_N)
    counts = np.zeros(len(preds), dtype=np.int64)
    for _ in range(4):
        steps = engine.fold_steps(counts)
        expected = naive_steps(metric, preds, true_TN, fold_N, counts)
        np.testing.assert_allclose(steps, expected, rtol=0, atol=1e-12)
        best = [
            int(np.flatnonzero(s >= s.max() - 1e-9)[0]) for s in (steps.mean(0), expected.mean(0))
        ]
        assert best[0] == best[1]
        counts[best[0]] += 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_small_blocks_and_predictions_read_every_step_change_nothing(name, form, monkeypatch):
    rng = np.random.default_rng(5)
    true_TN, fold_N = np.float32(rng.random((3, 90)) < 0.4), rng.integers(0, 3, 90)
    preds = as_needed(name, members(rng, form, 6, true_TN.shape))
    fitted = metric_of(name, true_TN)
    counts, weights = np.array([1, 0, 2, 0, 0, 1]), rng.random(6)
    plain = RankingEngine(fitted, preds, true_TN, fold_N)
    monkeypatch.setattr(ranking, "_BLOCK", 100)
    monkeypatch.setattr(ranking, "_KEPT_BYTES", 0)
    frugal = RankingEngine(fitted, preds, true_TN, fold_N)
    np.testing.assert_array_equal(plain.fold_steps(counts), frugal.fold_steps(counts))
    np.testing.assert_array_equal(plain.fold_scores(weights), frugal.fold_scores(weights))


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_scikit_learn(form):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(7)
    true_TN, fold_N = np.float32(rng.random((2, 80)) < 0.3), np.arange(80) % 2
    pred_TN = members(rng, form, 1, true_TN.shape)[0]
    for name, of in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        engine = RankingEngine(get_metric(name).fit(true_TN), [pred_TN], true_TN, fold_N)
        expected = [
            np.mean([of(true_TN[t, fold_N == k], pred_TN[t, fold_N == k]) for t in range(2)])
            for k in range(2)
        ]
        np.testing.assert_allclose(engine.fold_scores(np.ones(1)), expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_fold_in_which_no_output_is_defined_is_refused(name):
    true_TN = np.float32([[0, 1, 0, 0]])
    pred_TN = np.float32([[0.1, 0.2, 0.3, 0.4]])
    with pytest.raises(ValueError, match="undefined in fold 1"):
        RankingEngine(get_metric(name).fit(true_TN), [pred_TN], true_TN, np.array([0, 0, 1, 1]))


def test_presence_is_weighed_against_the_locations_that_count_in_each_fold():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    true_TN = np.float32(rng.random((5, 120)) < np.array([[0.4], [0.3], [0.01], [0.2], [0.3]]))
    fold_N = np.arange(120) % 3
    true_TN[3, fold_N == 1] = 0  # undefined there
    true_TN[[1, 3, 4]] *= fold_N != 2  # there no location is
    preds = [rng.random((5, 120)).astype(np.float32) for _ in range(3)]
    fitted = get_metric("presence_locations", presence_weight=0.6).fit(true_TN)
    assert fitted.lists == {"locations": (1, 3, 4)}
    engine = make_engine(fitted, preds, true_TN, fold_N)
    assert isinstance(engine, RankingEngine)
    pred_TN = np.mean(preds, axis=0, dtype=np.float64).astype(np.float32)

    def auroc(t, k):
        return roc_auc_score(true_TN[t, fold_N == k], pred_TN[t, fold_N == k])

    expected = [
        0.6 * auroc(0, 0) + 0.4 * np.mean([auroc(t, 0) for t in (1, 3, 4)]),
        0.6 * auroc(0, 1) + 0.4 * np.mean([auroc(t, 1) for t in (1, 4)]),
        auroc(0, 2),
    ]
    np.testing.assert_allclose(engine.fold_scores(np.ones(3)), expected, rtol=0, atol=1e-12)
    counts = np.array([1, 1, 0])
    for folds in ([0, 1, 2], [1], [0, 2]):
        slow = CallableEngine(fitted, preds, true_TN, fold_N)
        np.testing.assert_allclose(
            engine.step(counts, folds), slow.step(counts, folds), rtol=0, atol=1e-12
        )
