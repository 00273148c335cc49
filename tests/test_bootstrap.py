"""Bootstrap intervals: what is drawn is stated, and the fast way equals the literal one."""

import numpy as np
import pytest

from ensemble import bootstrap
from ensemble.bench import Bench
from ensemble.bootstrap import REPLICATES, Draws, intervals
from ensemble.combiners import get_combiner
from ensemble.honest import Nesting, nested_predictions
from tests.pools import pool_for


def counts(fold_N, group_N):
    draws = Draws(np.asarray(fold_N), group_N)
    return np.concatenate(list(draws.blocks())), draws.unit


def test_whole_groups_are_drawn_where_there_are_ten():
    group_N = np.arange(100) // 8
    counts_RN, unit = counts(np.arange(100) % 3, group_N)
    assert unit == "13 groups" and counts_RN.shape == (REPLICATES, 100)
    for group in range(13):
        inside_RN = counts_RN[:, group_N == group]
        assert (inside_RN == inside_RN[:, :1]).all()


@pytest.mark.parametrize("groups", [None, np.arange(60) // 12])
def test_with_few_groups_rows_are_drawn_within_their_folds_and_it_is_said(groups):
    fold_N = np.arange(60) % 4
    counts_RN, unit = counts(fold_N, groups)
    assert unit.startswith("rows within folds")
    assert ("5 groups are too few" in unit) == (groups is not None)
    for fold in range(4):
        assert (counts_RN[:, fold_N == fold].sum(axis=1) == 15).all()


def test_many_rows_are_drawn_less_often_and_in_blocks(monkeypatch):
    monkeypatch.setattr(bootstrap, "_ROWS", 6000)
    monkeypatch.setattr(bootstrap, "_COUNTS", 700)
    blocks = list(Draws(np.arange(100) % 3, None).blocks())
    assert [len(block) for block in blocks] == [7] * 8 + [4]
    whole = counts(np.arange(100) % 3, None)[0]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_folds_of_one_row_have_no_interval_for_correlations():
    pool = pool_for("pearson", rows=5, folds=5)
    nesting = Nesting(Bench(pool), [get_combiner("best_single")])
    pred_TN = nested_predictions(nesting.bench, nesting.nested(nesting.combiners[0]))
    assert intervals(nesting.bench, [pred_TN], [[None] * 5]) == ([None], None)


@pytest.mark.parametrize(
    "key", ["gene_expr", "gene_expr-drop", "pearson", "auroc", "khd", "rmse", "mae"]
)
def test_intervals_equal_those_of_literally_repeated_rows(key):
    pool = pool_for(key, rows=120)
    nesting = Nesting(Bench(pool), [get_combiner("best_single"), get_combiner("greedy")])
    nested = [nesting.nested(c) for c in nesting.combiners]
    preds = [nested_predictions(nesting.bench, n) for n in nested]
    thresholds = [[b.post.thresholds_T for b in n.blends] for n in nested]
    found, difference = intervals(nesting.bench, preds, thresholds)
    counts_RN, _ = counts(pool.fold_N, None)
    wanted = []
    for pred_TN, thresholds_KT in zip(preds, thresholds, strict=True):
        scores = []
        for counts_N in counts_RN.astype(int):
            per_fold = []
            for fold in range(3):
                rows = np.flatnonzero(pool.fold_N == fold)
                at = np.repeat(rows, counts_N[rows])
                score = pool.metric.score(pred_TN[:, at], pool.true_TN[:, at], thresholds_KT[fold])
                per_fold.append(score.value)
            scores.append(np.mean(per_fold))
        wanted.append(np.array(scores))
    for interval, score_R in zip(found, wanted, strict=True):
        low, high = np.quantile(score_R, [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-5)
    low, high = np.quantile(wanted[0] - wanted[1], [0.025, 0.975])
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=1e-5)


def test_the_interval_holds_the_nested_score():
    pool = pool_for("pearson", rows=120)
    nesting = Nesting(Bench(pool), [get_combiner("greedy")])
    nested = nesting.nested(nesting.combiners[0])
    pred_TN = nested_predictions(nesting.bench, nested)
    (interval,), _ = intervals(nesting.bench, [pred_TN], [[None] * 3])
    assert interval.low < nested.score.mean < interval.high
