"""Inner products of errors, made in blocks, equal those of the errors themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import error_moments as module
from ensemble.bench import Bench
from ensemble.error_moments import error_moments
from tests.pools import arrays, make_pool, metric_of


def literal(preds, true_TN, fold_N, folds):
    """(M, X) errors of these folds in units of their output's sd there, the same centred, and
    the centred predictions."""
    raw, centred, values = [], [], []
    for fold in folds:
        part_TN = np.float64(true_TN[:, fold_N == fold])
        sd_T1 = part_TN.std(axis=1, keepdims=True)
        live = sd_T1[:, 0] > 0
        pred_MTX = (
            np.stack([np.float64(p)[:, fold_N == fold] for p in preds])[:, live] / sd_T1[live]
        )
        error_MTX = pred_MTX - part_TN[live] / sd_T1[live]
        for found, part in ((raw, error_MTX),
                            (centred, error_MTX - error_MTX.mean(axis=2, keepdims=True)),
                            (values, pred_MTX - pred_MTX.mean(axis=2, keepdims=True))):  # fmt: skip
            found.append(part.reshape(len(preds), -1))
    return raw, np.concatenate(centred, axis=1), np.concatenate(values, axis=1)


def cosines(value_MX):
    unit_MX = value_MX / np.linalg.norm(value_MX, axis=1, keepdims=True)
    return unit_MX @ unit_MX.T


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), block=st.sampled_from([1, 300, 1 << 22]))
def test_gram_correlation_and_likeness_equal_the_literal_ones(seed, block):
    preds, true_TN, fold_N = arrays("regression", seed)
    true_TN[1] = 3.0  # a constant output takes no part
    true_TN[2, fold_N == 0] = 1.0  # nor one that is constant in a fold, there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        moments = error_moments(preds, true_TN, fold_N)
    raw, centred_MX, value_MX = literal(preds, true_TN, fold_N, [0, 2])
    wanted = np.mean([e_MX @ e_MX.T / e_MX.shape[1] for e_MX in raw], axis=0)
    assert moments.gram([0, 2]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert moments.correlation([0, 2]) == pytest.approx(cosines(centred_MX), abs=1e-5)
    wanted = np.minimum(cosines(centred_MX), cosines(value_MX))
    assert moments.likeness([0, 2]) == pytest.approx(wanted, abs=1e-5)


def test_a_member_without_error_correlates_with_none():
    preds, true_TN, fold_N = arrays("binary")
    corr_MM = error_moments([*preds, true_TN], true_TN, fold_N).correlation([0, 1, 2])
    assert corr_MM[-1].tolist() == [0.0] * len(preds) + [1.0]


def pool_of(preds, true_TN):
    return make_pool([np.float32(p) for p in preds], np.float32(true_TN),
                     np.arange(true_TN.shape[1]) % 3, *metric_of("pearson"))  # fmt: skip


def test_copies_are_twins_even_when_the_errors_are_tiny_and_others_are_not():
    rng = np.random.default_rng(0)
    true_TN = rng.normal(1000, 1, (3, 90))
    one_TN, two_TN = (true_TN + 1e-2 * rng.normal(size=(3, 90)) for _ in range(2))
    pool = pool_of([one_TN, one_TN, two_TN], true_TN)
    assert sorted(Bench(pool).candidates([0, 1, 2])) in ([0, 2], [1, 2])


def test_timid_predictions_of_a_noisy_truth_are_no_twins():
    """Their errors are all but the truth itself, and so are alike; what they say is not."""
    rng = np.random.default_rng(1)
    true_TN = rng.normal(size=(2, 90))
    preds = [0.02 * rng.normal(size=(2, 90)) for _ in range(4)]
    pool = pool_of(preds, true_TN)
    assert Bench(pool).errors.correlation([0, 1, 2]).min() > 0.999
    assert len(Bench(pool).candidates([0, 1, 2])) == 4
