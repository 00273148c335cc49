"""The nested score never lets a fold choose what it is scored on."""

import numpy as np
import pytest

from ensemble.bench import Bench
from ensemble.combiners import COMBINERS, get_combiner
from ensemble.honest import Estimate, Nesting, nested_predictions
from search.metrics import fold_scores
from spaces.errors import UserError
from tests.pools import arrays, make_pool, metric_of, pool_for

NAMES = ("best_single", "top_k", "greedy", "convex")


def nesting_of(pool, names=NAMES):
    return Nesting(Bench(pool), [get_combiner(name) for name in names])


def test_each_fold_is_scored_by_what_the_other_folds_chose():
    pool = pool_for("pearson", members=6)
    nesting = nesting_of(pool)
    for combiner in nesting.combiners:
        result = nesting.nested(combiner)
        for fold in range(3):
            others = [k for k in range(3) if k != fold]
            blend = combiner.fit(Bench(pool), others)
            assert blend.members == result.blends[fold].members
            assert blend.weights == result.blends[fold].weights
            pred_TN = blend.apply([pool.members[m].pred_TN for m in blend.members])
            wanted = fold_scores(pool.metric, pred_TN, pool.true_TN, pool.fold_N)[fold].value
            assert result.score.per_fold[fold] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("key", ["pearson", "gene_expr", "auroc-labels", "khd", "log_loss-classes"])
@pytest.mark.parametrize("method", ["auto", "greedy"])
def test_the_truth_of_a_fold_cannot_change_what_is_chosen_for_it(key, method):
    metric, task_type = metric_of(key)
    preds, true_TN, fold_N = arrays(task_type, rows=90)
    other_TN = true_TN.copy()
    rows = np.flatnonzero(fold_N == 2)
    other_TN[:, rows] = true_TN[:, np.roll(rows, 5)]
    blends = []
    for truth_TN in (true_TN, other_TN):
        pool = make_pool(preds, truth_TN, fold_N, metric, task_type)
        object.__setattr__(pool, "metric", metric.fit(true_TN))  # lists come from all rows, once
        nesting = nesting_of(pool)
        blends.append(nesting.nested(nesting.find(method)).blends[2])
    one, two = blends
    assert one.method == two.method and one.members == two.members
    assert one.weights == pytest.approx(two.weights, abs=1e-12)
    assert np.array_equal(one.apply([preds[m] for m in one.members]),
                          two.apply([preds[m] for m in two.members]))  # fmt: skip


def test_on_pure_noise_selection_is_optimistic_and_the_nested_score_is_not():
    optimistic, honest = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        true_TN = rng.normal(size=(1, 60)).astype(np.float32)
        preds = [rng.normal(size=(1, 60)).astype(np.float32) for _ in range(20)]
        pool = make_pool(preds, true_TN, np.arange(60) % 3, *metric_of("pearson"))
        nesting = nesting_of(pool)
        greedy = nesting.find("greedy")
        optimistic.append(nesting.bench.score(nesting.fit(greedy, [0, 1, 2]), [0, 1, 2]))
        honest.append(nesting.nested(greedy).score.mean)
    assert np.mean(optimistic) > 0.3  # the true correlation is 0
    assert abs(np.mean(honest)) < 0.1


def test_auto_takes_the_simplest_within_one_standard_error_of_the_best():
    nesting = nesting_of(pool_for("pearson", members=8))
    chosen = nesting.simplest((0, 1, 2))
    scores = {c.name: nesting.nested(c).score for c in nesting.combiners}
    best = max(scores.values(), key=lambda score: score.mean)
    close = [c for c in nesting.combiners
             if best.minus(scores[c.name]).mean <= best.minus(scores[c.name]).se]  # fmt: skip
    assert chosen is close[0]
    blend = nesting.fit(nesting.find("auto"), (0, 1, 2))
    assert blend.method == chosen.name


def test_auto_chooses_the_combiner_anew_without_each_fold():
    nesting = nesting_of(pool_for("auroc", members=8, rows=90))
    result = nesting.nested(nesting.find("auto"))
    for fold in range(3):
        rest = tuple(k for k in range(3) if k != fold)
        assert result.blends[fold].method == nesting.simplest(rest).name


def test_equal_members_make_the_simplest_choice():
    preds, true_TN, fold_N = arrays("regression", members=1)
    nesting = nesting_of(make_pool(preds * 4, true_TN, fold_N, *metric_of("rmse")))
    assert nesting.simplest((0, 1, 2)).name == "best_single"


def test_nested_predictions_are_those_of_the_blend_without_the_rows_fold():
    pool = pool_for("gene_expr")
    nesting = nesting_of(pool)
    result = nesting.nested(nesting.find("greedy"))
    pred_TN = nested_predictions(nesting.bench, result)
    for fold, blend in enumerate(result.blends):
        rows = pool.fold_N == fold
        wanted = blend.apply([pool.members[m].pred_TN[:, rows] for m in blend.members])
        assert np.array_equal(pred_TN[:, rows], wanted)


def test_mean_standard_error_and_paired_difference():
    estimate = Estimate((0.1, 0.2, 0.6))
    assert estimate.mean == pytest.approx(0.3)
    assert estimate.se == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert estimate.minus(Estimate((0.1, 0.1, 0.1))).per_fold == pytest.approx((0, 0.1, 0.5))


def test_one_fold_is_refused():
    preds, true_TN, _ = arrays("regression")
    pool = make_pool(preds, true_TN, np.zeros(60, int), *metric_of("pearson"))
    nesting = nesting_of(pool)
    with pytest.raises(ValueError, match="2 or more"):
        nesting.nested(nesting.combiners[0])


def test_an_unknown_method_and_one_that_cannot_work_here_are_refused_with_the_reason():
    nesting = Nesting(Bench(pool_for("rmse")), [c for c in COMBINERS if c.name == "greedy"])
    with pytest.raises(UserError, match="greedy"):
        nesting.find("greedi")
    with pytest.raises(UserError, match="cannot be used"):
        nesting.find("hard_vote")
