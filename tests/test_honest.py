"""The nested score never lets a fold choose what it is scored on."""

import numpy as np
import pytest

from ensemble.engines import make_engine
from ensemble.greedy import best_single, select
from ensemble.honest import Estimate, nested
from search.metrics import fold_scores, get_metric


def problem(seed, members=6, outputs=5, rows=60, folds=3):
    rng = np.random.default_rng(seed)
    true_TN = rng.normal(size=(outputs, rows)).astype(np.float32)
    preds = [true_TN * 0.3 + rng.normal(size=true_TN.shape) for _ in range(members)]
    return [p.astype(np.float32) for p in preds], true_TN, np.arange(rows) % folds


def test_each_fold_is_scored_by_what_the_other_folds_chose():
    preds, true_TN, fold_N = problem(0)
    fitted = get_metric("pearson").fit(true_TN)
    engine = make_engine(fitted, preds, true_TN, fold_N)
    result = nested(engine)
    for fold in range(3):
        others = [k for k in range(3) if k != fold]
        counts_M = select(engine, others).counts_M
        assert result.counts_KM[fold] == tuple(counts_M)
        mean_TN = np.tensordot(counts_M / counts_M.sum(), np.float64(preds), 1)
        wanted = fold_scores(fitted, mean_TN, true_TN, fold_N)[fold].value
        assert result.ensemble.per_fold[fold] == pytest.approx(wanted, abs=1e-9)
        best = best_single(engine, others)
        wanted = fold_scores(fitted, preds[best], true_TN, fold_N)[fold].value
        assert result.singles[fold] == best
        assert result.single.per_fold[fold] == pytest.approx(wanted, abs=1e-9)


def test_the_truth_of_a_fold_cannot_change_what_is_chosen_for_it():
    preds, true_TN, fold_N = problem(1)
    fitted = get_metric("pearson").fit(true_TN)
    before = nested(make_engine(fitted, preds, true_TN, fold_N))
    other_TN = np.where(fold_N == 2, np.float32(1) - true_TN[:, ::-1], true_TN)
    after = nested(make_engine(fitted, preds, other_TN, fold_N))
    assert before.counts_KM[2] == after.counts_KM[2]
    assert before.singles[2] == after.singles[2]
    assert before.ensemble.per_fold[2] != after.ensemble.per_fold[2]


def test_on_pure_noise_selection_is_optimistic_and_the_nested_score_is_not():
    optimistic, honest = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        true_TN = rng.normal(size=(1, 60)).astype(np.float32)
        preds = [rng.normal(size=(1, 60)).astype(np.float32) for _ in range(20)]
        engine = make_engine(get_metric("pearson").fit(true_TN), preds, true_TN, np.arange(60) % 3)
        optimistic.append(select(engine).score)
        honest.append(nested(engine).ensemble.mean)
    assert np.mean(optimistic) > 0.3  # the true correlation is 0
    assert abs(np.mean(honest)) < 0.1


def test_mean_standard_error_and_paired_difference():
    estimate = Estimate((0.1, 0.2, 0.6))
    assert estimate.mean == pytest.approx(0.3)
    assert estimate.se == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    preds, true_TN, fold_N = problem(2)
    result = nested(make_engine(get_metric("pearson").fit(true_TN), preds, true_TN, fold_N))
    pairs = np.subtract(result.ensemble.per_fold, result.single.per_fold)
    assert result.difference.per_fold == pytest.approx(pairs)


def test_one_fold_is_refused():
    preds, true_TN, _ = problem(3)
    engine = make_engine(get_metric("pearson").fit(true_TN), preds, true_TN, np.zeros(60, int))
    with pytest.raises(ValueError, match="2 or more"):
        nested(engine)
