"""Greedy selection picks what the naive loop over averaged predictions picks, whatever the engine.

Shapes: M members, T outputs, N rows, K folds.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import greedy
from ensemble.bench import Bench
from ensemble.engines import make_engine, tie
from ensemble.greedy import Options, closer_then_stranger, path, select, select_members
from ensemble.limits import Cost, Limits
from search.metrics import best_thresholds
from spaces.errors import UserError
from tests.pools import METRICS, arrays, make_pool, metric_of, pool_for


def naive_score(metric, pred_TN, true_TN, fold_N, folds):
    """Mean over folds of the metric; thresholds, where it fits them, from these folds' rows."""
    pred_TN = np.float32(pred_TN)
    use = np.isin(fold_N, folds)
    thresholds_T = None
    if metric.fits_thresholds:
        thresholds_T = best_thresholds(metric, pred_TN[:, use], true_TN[:, use], fold_N[use])
    scores = [
        metric.score(pred_TN[:, fold_N == k], true_TN[:, fold_N == k], thresholds_T).value
        for k in folds
    ]
    return float(np.mean(scores))


def naive(metric, preds_MTN, true_TN, fold_N, steps, folds):
    """The textbook loop: average, score, keep the best. Among equals a member that is in, then
    the first."""
    order, trace = [], []
    for _ in range(steps):
        scores = []
        for candidate in range(len(preds_MTN)):
            mean_TN = np.mean([np.float64(preds_MTN[m]) for m in [*order, candidate]], axis=0)
            scores.append(naive_score(metric, mean_TN, true_TN, fold_N, folds))
        tied = [m for m in range(len(scores)) if scores[m] >= max(scores) - tie(max(scores))]
        order.append(next((m for m in tied if m in order), tied[0]))
        trace.append(scores[order[-1]])
    length = next(i for i, s in enumerate(trace) if s >= max(trace) - tie(max(trace))) + 1
    return order[:length], trace


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10_000), some=st.booleans())
@pytest.mark.parametrize("key", METRICS)
def test_the_same_members_in_the_same_order_as_the_naive_loop(key, seed, some):
    metric, task_type = metric_of(key)
    preds, true_TN, fold_N = arrays(task_type, seed)
    fitted = metric.fit(true_TN)
    folds = [0, 2] if some else [0, 1, 2]
    order, trace = naive(fitted, preds, true_TN, fold_N, 6, folds)
    selection = select(make_engine(fitted, preds, true_TN, fold_N), folds, steps=6)
    assert list(selection.order) == order
    assert selection.trace == pytest.approx(trace, abs=1e-6)


def test_a_tie_goes_to_the_first_member_and_then_to_the_one_already_in():
    preds, true_TN, fold_N = arrays("regression", members=1)
    metric, _ = metric_of("pearson")
    engine = make_engine(metric.fit(true_TN), preds * 3, true_TN, fold_N)
    selection = select(engine, steps=5)
    assert selection.order == (0,)  # the shortest prefix: copies add nothing
    assert selection.trace == pytest.approx([selection.score] * 5)


def test_among_equal_candidates_the_one_already_in_wins_over_an_earlier_one():
    """A constant member changes no correlation, so adding it ties with adding the best one again.
    Weight 1 of the noisy member is too much, a half of it helps: only twice the best lets it in."""
    rng = np.random.default_rng(0)
    true_TN = rng.normal(size=(4, 900)).astype(np.float32)
    good_TN = true_TN + 0.5 * rng.normal(size=true_TN.shape)
    noisy_TN = 0.2 * (true_TN + 2 * rng.normal(size=true_TN.shape))
    preds = [np.float32(p) for p in (np.ones_like(true_TN), good_TN, noisy_TN)]
    metric, _ = metric_of("pearson")
    engine = make_engine(metric.fit(true_TN), preds, true_TN, np.arange(900) % 3)
    assert select(engine, steps=3).order == (1, 1, 2)


def test_a_tie_goes_to_the_lower_squared_error():
    """AUROC cannot tell members that order rows alike; squared error can."""
    rng = np.random.default_rng(1)
    signal_N = rng.normal(size=90)
    label_N = np.float32(signal_N + 0.3 * rng.normal(size=90) > 0)
    timid_N, sure_N = (1 / (1 + np.exp(-slope * signal_N)) for slope in (0.2, 4))
    preds = [np.float32(p)[None] for p in (timid_N, sure_N)]
    bench = Bench(make_pool(preds, label_N[None], np.arange(90) % 3, *metric_of("auroc")))
    assert bench.candidates([0, 1, 2]) == (0, 1)
    assert path(bench, [0, 1, 2], Options()).order == (1,)


def test_then_to_the_member_whose_errors_resemble_the_ensembles_least():
    """Between two members of equal score and equal squared error."""
    gram_MM = np.array([[4.0, 3.0, 1.0], [3.0, 4.0, 1.0], [1.0, 1.0, 4.0]])
    bench = Bench(pool_for("pearson", members=3))
    bench.errors = SimpleNamespace(gram=lambda folds: gram_MM)
    prefer = closer_then_stranger(bench, [0, 1, 2])
    assert prefer(np.array([1, 0, 0]), [1, 2]) == 2
    assert prefer(np.array([0, 0, 0]), [0, 1, 2]) == 0


def test_selection_on_some_folds_ignores_the_rows_of_the_others():
    pool = pool_for("gene_expr")
    before = select_members(Bench(pool), [0, 2], Options())
    spoilt = [np.where(pool.fold_N == 1, np.float32(m), p.pred_TN)
              for m, p in enumerate(pool.members)]  # fmt: skip
    metric, task_type = metric_of("gene_expr")
    true_TN = np.where(pool.fold_N == 1, pool.true_TN[:, ::-1], pool.true_TN)
    other = make_pool(spoilt, true_TN, pool.fold_N, metric, task_type)
    object.__setattr__(other, "metric", pool.metric)  # gene lists come from all rows, once
    assert select_members(Bench(other), [0, 2], Options()) == pytest.approx(before)


@pytest.mark.parametrize("bag", [(), ("members",), ("rows",), ("members", "rows")])
@pytest.mark.parametrize("start", [0, 3])
def test_every_variant_keeps_the_limits_and_is_reproducible(bag, start, monkeypatch):
    monkeypatch.setattr(greedy, "BAGS", 4)
    costs = [Cost(family="xy"[m % 2], mb=10.0 * (m + 1), ms=1.0) for m in range(8)]
    pool = pool_for("gene_expr", members=8, noise=3.0, costs=costs)
    limits = Limits(max_members=3, max_per_family=2, max_mb=120)
    options = Options(bag=bag, sorted_start=start)
    weights_M = select_members(Bench(pool, limits), [0, 1, 2], options)
    chosen = np.flatnonzero(weights_M)
    assert 1 <= len(chosen) <= 3
    assert sum(costs[m].mb for m in chosen) <= 120
    assert max(np.bincount(chosen % 2)) <= 2
    assert weights_M.sum() == pytest.approx(1)
    again_M = select_members(Bench(pool, limits), [0, 1, 2], options)
    assert np.array_equal(weights_M, again_M)


def test_a_sorted_start_begins_with_the_best_members():
    bench = Bench(pool_for("rmse", members=8, noise=3.0))
    best = bench.candidates([0, 1, 2])[:3]
    order = path(bench, [0, 1, 2], Options(sorted_start=3)).order
    assert order == best[: len(order)] or order[:3] == best


def test_bagging_spreads_the_weights():
    bench = Bench(pool_for("gene_expr", members=10, noise=3.0), Limits(max_members=None))
    plain = np.count_nonzero(select_members(bench, [0, 1, 2], Options()))
    assert np.count_nonzero(select_members(bench, [0, 1, 2], Options(bag=("members",)))) > plain


def test_the_score_is_that_of_the_returned_weights_and_no_worse_than_the_best_member():
    bench = Bench(pool_for("gene_expr"))
    selection = path(bench, bench.folds, Options())
    assert selection.score == pytest.approx(bench.engine.score(selection.weights_M, bench.folds))
    best = bench.engine.step(np.zeros(5, dtype=int), bench.folds).max()
    assert selection.score >= best - tie(best)


def test_unknown_bags_and_negative_starts_are_refused_together():
    with pytest.raises(UserError) as caught:
        Options(bag=("columns",), sorted_start=-1)
    assert len(caught.value.faults) == 2


def test_shapes_that_do_not_match_are_refused():
    preds, true_TN, fold_N = arrays("regression")
    fitted = metric_of("pearson")[0].fit(true_TN)
    with pytest.raises(ValueError, match="do not match"):
        make_engine(fitted, [*preds, preds[0][:, 1:]], true_TN, fold_N)
    with pytest.raises(ValueError, match="none empty"):
        make_engine(fitted, preds, true_TN, np.where(fold_N == 1, 7, fold_N))
    with pytest.raises(ValueError, match="at least one"):
        make_engine(fitted, [], true_TN, fold_N)


def test_bags_of_rows_keep_a_rare_label_in_every_fold():
    preds, true_TN, fold_N = arrays("binary", rows=60)
    true_TN[:] = 0
    true_TN[0, [np.flatnonzero(fold_N == k)[0] for k in range(3)]] = 1
    bench = Bench(make_pool(preds, true_TN, fold_N, *metric_of("auroc")))
    assert select_members(bench, [0, 1, 2], Options(bag=("rows",))).sum() == pytest.approx(1)


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_the_unit_of_the_targets_changes_no_choice(unit):
    preds, true_TN, fold_N = arrays("regression", noise=2.0)
    metric, task_type = metric_of("rmse")
    scaled = make_pool([p * np.float32(unit) for p in preds], true_TN * np.float32(unit), fold_N,
                       metric, task_type)  # fmt: skip
    plain = path(Bench(make_pool(preds, true_TN, fold_N, metric, task_type)), [0, 1, 2], Options())
    assert path(Bench(scaled), [0, 1, 2], Options()).order == plain.order


def test_the_last_ties_go_by_name_whatever_the_order():
    preds, true_TN, fold_N = arrays("regression", members=1)
    pool = make_pool(preds * 3, true_TN, fold_N, *metric_of("rmse"))
    for order in ([0, 1, 2], [2, 1, 0]):
        members = tuple(replace(pool.members[m], name=f"m{9 + m}") for m in order)
        bench = Bench(replace(pool, members=members))
        (chosen,) = path(bench, [0, 1, 2], Options()).order
        assert members[chosen].name == "m9"
