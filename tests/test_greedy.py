"""Greedy selection and its engines agree with the naive loop over averaged predictions.

Shapes: M members, T outputs, N rows, K folds.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.engines import CallableEngine, GramEngine, make_engine, pearson
from ensemble.greedy import TIE, best_single, select
from search.metrics import fold_scores, get_metric, trial_score


def naive(metric, preds_MTN, true_TN, fold_N, steps, max_members=None):
    """The textbook loop: average, score, keep the best; ties as documented."""
    members, order, trace = len(preds_MTN), [], []
    for _ in range(steps):
        scores = []
        for candidate in range(members):
            mean_TN = np.mean([np.float64(preds_MTN[m]) for m in [*order, candidate]], axis=0)
            full = max_members is not None and len(set(order)) >= max_members
            allowed = not full or candidate in order
            score = trial_score(fold_scores(metric, mean_TN, true_TN, fold_N))
            scores.append(score if allowed else -np.inf)
        best = max(scores)
        tied = [m for m in range(members) if scores[m] >= best - TIE]
        order.append(next((m for m in tied if m in order), tied[0]))
        trace.append(scores[order[-1]])
    length = next(i for i, s in enumerate(trace) if s >= max(trace) - TIE) + 1
    return order[:length], trace


def problem(seed, members=5, outputs=7, rows=40, folds=3, noise=1.0):
    rng = np.random.default_rng(seed)
    profile = rng.normal(3, 2, (outputs, 1))
    true_TN = profile + rng.normal(size=(outputs, rows))
    preds = [
        (
            profile
            + rng.uniform(0.2, 1) * (true_TN - profile)
            + noise * rng.normal(size=true_TN.shape)
        )
        for _ in range(members)
    ]
    fold_N = rng.permutation(np.arange(rows) % folds)
    return [p.astype(np.float32) for p in preds], true_TN.astype(np.float32), fold_N


METRICS = [
    get_metric("gene_expr", heg_n=3, hvg_n=2),
    get_metric("gene_expr", heg_n=3, hvg_n=2, nan="drop"),
    get_metric("pearson"),
    get_metric("pearson", nan="drop"),
    get_metric("rmse"),
]
IDS = ["gene_expr", "gene_expr-drop", "pearson", "pearson-drop", "rmse"]


@pytest.mark.parametrize("metric", METRICS, ids=IDS)
def test_engine_picks_the_same_members_in_the_same_order_as_the_naive_loop(metric):
    preds, true_TN, fold_N = problem(1)
    fitted = metric.fit(true_TN)
    order, trace = naive(fitted, preds, true_TN, fold_N, steps=8)
    selection = select(make_engine(fitted, preds, true_TN, fold_N), steps=8)
    assert list(selection.order) == order
    assert selection.trace == pytest.approx(trace, abs=1e-6)
    assert selection.weights_M.sum() == pytest.approx(1)
    assert selection.weights_M == pytest.approx(np.bincount(order, minlength=5) / len(order))


def test_correlation_metrics_get_the_gram_engine_and_others_the_slow_one():
    preds, true_TN, fold_N = problem(1)
    kinds = [type(make_engine(m.fit(true_TN), preds, true_TN, fold_N)) for m in METRICS]
    assert kinds == [GramEngine] * 4 + [CallableEngine]


@st.composite
def awkward_problems(draw):
    """Small whole-number predictions with constant members, constant genes and duplicates."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    outputs, rows, folds = draw(st.integers(2, 5)), draw(st.integers(6, 14)), 2
    members = draw(st.integers(1, 5))
    true_TN = rng.integers(-3, 4, (outputs, rows)).astype(np.float32)
    preds = [rng.integers(-3, 4, (outputs, rows)).astype(np.float32) for _ in range(members)]
    for index in range(members):
        kind = draw(st.sampled_from(["plain", "constant", "profile", "gene", "copy", "mirror"]))
        if kind == "constant":
            preds[index][:] = rng.normal()
        elif kind == "profile":
            preds[index][:] = rng.normal(size=(outputs, 1))
        elif kind == "gene":
            preds[index][rng.integers(outputs)] = rng.normal()
        elif kind == "copy":
            preds[index] = preds[rng.integers(members)].copy()
        elif kind == "mirror":
            preds[index] = 1 - preds[rng.integers(members)]
    if draw(st.booleans()):
        true_TN[rng.integers(outputs)] = 0.1
    fold_N = rng.permutation(np.arange(rows) % folds)
    return preds, true_TN, fold_N


@settings(deadline=None, max_examples=60)
@given(awkward_problems(), st.sampled_from(METRICS[:4]), st.sampled_from([None, 1, 2]))
def test_engine_agrees_with_the_naive_loop_on_awkward_members(awkward, metric, max_members):
    preds, true_TN, fold_N = awkward
    fitted = metric.fit(true_TN)
    order, trace = naive(fitted, preds, true_TN, fold_N, steps=4, max_members=max_members)
    engine = make_engine(fitted, preds, true_TN, fold_N)
    selection = select(engine, steps=4, max_members=max_members)
    assert selection.trace == pytest.approx(trace, abs=1e-6)
    assert list(selection.order) == order


@settings(deadline=None, max_examples=60)
@given(awkward_problems(), st.sampled_from(METRICS[:4]), st.data())
def test_fold_scores_equal_the_metric_of_the_averaged_predictions(awkward, metric, data):
    preds, true_TN, fold_N = awkward
    fitted = metric.fit(true_TN)
    counts_M = np.array(data.draw(st.lists(st.integers(0, 9), min_size=5, max_size=5)))
    counts_M = counts_M[: len(preds)] + (counts_M[: len(preds)].sum() == 0)
    mean_TN = sum(c * np.float64(p) for c, p in zip(counts_M, preds, strict=True)) / counts_M.sum()
    wanted = [s.value for s in fold_scores(fitted, mean_TN, true_TN, fold_N)]
    for engine in (GramEngine, CallableEngine):
        got_K = engine(fitted, preds, true_TN, fold_N).fold_scores(counts_M)
        assert got_K == pytest.approx(wanted, abs=1e-6)


def test_large_offsets_cost_no_accuracy():
    preds, true_TN, fold_N = problem(2)
    offset_T1 = np.linspace(500, 3000, len(true_TN))[:, None]
    preds, true_TN = [np.float32(p + offset_T1) for p in preds], np.float32(true_TN + offset_T1)
    fitted = METRICS[0].fit(true_TN)
    order, trace = naive(fitted, preds, true_TN, fold_N, steps=6)
    selection = select(make_engine(fitted, preds, true_TN, fold_N), steps=6)
    assert list(selection.order) == order
    assert selection.trace == pytest.approx(trace, abs=1e-6)


def test_products_made_late_and_read_in_pieces_change_nothing(monkeypatch):
    preds, true_TN, fold_N = problem(3, members=6)
    fitted = METRICS[0].fit(true_TN)
    whole = select(make_engine(fitted, preds, true_TN, fold_N), steps=8)
    monkeypatch.setattr(pearson, "_GRAM_BYTES", 0)
    monkeypatch.setattr(pearson, "_BLOCK_BYTES", 3000)
    pieces = select(make_engine(fitted, preds, true_TN, fold_N), steps=8)
    assert pieces.order == whole.order
    assert pieces.trace == pytest.approx(whole.trace, abs=1e-12)


def test_a_tie_goes_to_the_first_member_and_then_to_the_one_already_in():
    preds, true_TN, fold_N = problem(4, members=1)
    engine = make_engine(METRICS[2].fit(true_TN), preds * 3, true_TN, fold_N)
    selection = select(engine, steps=5)
    assert selection.order == (0,)  # the shortest prefix: copies add nothing
    assert selection.trace == pytest.approx([selection.score] * 5)
    assert best_single(engine) == 0


def test_among_equal_candidates_the_one_already_in_wins_over_an_earlier_one():
    """A constant member changes no correlation, so adding it ties with adding the best one again.
    Weight 1 of the noisy member is too much, a half of it helps: only twice the best lets it in."""
    rng = np.random.default_rng(0)
    true_TN = rng.normal(size=(4, 900)).astype(np.float32)
    good_TN = true_TN + 0.5 * rng.normal(size=true_TN.shape)
    noisy_TN = 0.2 * (true_TN + 2 * rng.normal(size=true_TN.shape))
    preds = [np.float32(p) for p in (np.ones_like(true_TN), good_TN, noisy_TN)]
    engine = make_engine(METRICS[2].fit(true_TN), preds, true_TN, np.arange(900) % 3)
    assert select(engine, steps=3).order == (1, 1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_members_that_cancel_each_other_are_constant_and_not_rounding_noise(seed):
    rng = np.random.default_rng(seed)
    true_TN = rng.normal(size=(5, 26)).astype(np.float32)
    one_TN, two_TN = (np.float32(rng.integers(-99, 99, (5, 26))) / 8 for _ in range(2))
    preds = [one_TN, two_TN, -one_TN - two_TN]
    for metric in METRICS[:4]:
        fitted = get_metric(metric.name, **metric.args).fit(true_TN)
        engine = GramEngine(fitted, preds, true_TN, np.arange(26) % 2)
        assert engine.fold_scores(np.array([3, 3, 3])) == pytest.approx([0, 0], abs=1e-12)


def test_selection_on_some_folds_ignores_the_rows_of_the_others():
    preds, true_TN, fold_N = problem(5)
    fitted = METRICS[0].fit(true_TN)
    before = select(make_engine(fitted, preds, true_TN, fold_N), [0, 2])
    spoilt = [np.where(fold_N == 1, np.float32(m), p) for m, p in enumerate(preds)]
    after = select(make_engine(fitted, spoilt, true_TN, fold_N), [0, 2])
    assert before.order == after.order
    assert before.trace == pytest.approx(after.trace, abs=1e-12)


def test_no_more_members_than_allowed():
    preds, true_TN, fold_N = problem(6, members=8, noise=3.0)
    engine = make_engine(METRICS[0].fit(true_TN), preds, true_TN, fold_N)
    free = select(engine)
    assert len(free.chosen) > 2
    assert len(select(engine, max_members=2).chosen) == 2


def test_the_score_is_the_mean_over_folds_of_the_returned_weights():
    preds, true_TN, fold_N = problem(7)
    engine = make_engine(METRICS[0].fit(true_TN), preds, true_TN, fold_N)
    selection = select(engine)
    assert selection.score == pytest.approx(engine.fold_scores(selection.counts_M).mean())
    assert selection.score >= engine.step(np.zeros(5, dtype=int)).mean(axis=0).max() - TIE


def test_shapes_that_do_not_match_are_refused():
    preds, true_TN, fold_N = problem(8)
    fitted = METRICS[2].fit(true_TN)
    with pytest.raises(ValueError, match="do not match"):
        make_engine(fitted, [*preds, preds[0][:, 1:]], true_TN, fold_N)
    with pytest.raises(ValueError, match="none empty"):
        make_engine(fitted, preds, true_TN, np.where(fold_N == 1, 7, fold_N))
    with pytest.raises(ValueError, match="at least one"):
        make_engine(fitted, [], true_TN, fold_N)
