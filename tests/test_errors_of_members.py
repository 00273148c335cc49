"""Inner products of errors, made in blocks, equal those of the errors themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble import errors
from ensemble.errors import error_moments
from tests.pools import arrays


def literal(preds, true_TN, fold_N):
    """(M, X) errors in units of their output's sd in their fold, and the fold of each."""
    errors, folds = [], []
    for fold in np.unique(fold_N):
        part_TN = np.float64(true_TN[:, fold_N == fold])
        sd_T1 = part_TN.std(axis=1, keepdims=True)
        live = sd_T1[:, 0] > 0
        errors.append([((np.float64(p)[:, fold_N == fold] - part_TN)[live] / sd_T1[live]).ravel()
                       for p in preds])  # fmt: skip
        folds += [fold] * len(errors[-1][0])
    return np.concatenate(errors, axis=1), np.array(folds)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), block=st.sampled_from([1, 300, 1 << 22]))
def test_gram_and_correlation_equal_the_literal_ones(seed, block):
    preds, true_TN, fold_N = arrays("regression", seed)
    true_TN[1] = 3.0  # a constant output takes no part
    true_TN[2, fold_N == 0] = 1.0  # nor one that is constant in a fold, there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "_BLOCK", block)
        moments = error_moments(preds, true_TN, fold_N)
    error_MX, folds_X = literal(preds, true_TN, fold_N)
    grams = [error_MX[:, folds_X == k] @ error_MX[:, folds_X == k].T / (folds_X == k).sum()
             for k in (0, 2)]  # fmt: skip
    assert moments.gram([0, 2]) == pytest.approx(np.mean(grams, axis=0), rel=1e-5, abs=1e-6)
    wanted = np.corrcoef(error_MX[:, np.isin(folds_X, [0, 2])])
    assert moments.correlation([0, 2]) == pytest.approx(wanted, abs=1e-5)


def test_a_member_without_error_correlates_with_none():
    preds, true_TN, fold_N = arrays("binary")
    corr_MM = error_moments([*preds, true_TN], true_TN, fold_N).correlation([0, 1, 2])
    assert corr_MM[-1].tolist() == [0.0] * len(preds) + [1.0]


def test_copies_correlate_fully_even_when_the_errors_are_tiny():
    rng = np.random.default_rng(0)
    true_TN = np.float32(rng.normal(1000, 1, (3, 50)))
    near_TN, far_TN = (true_TN + np.float32(s * rng.normal(size=(3, 50))) for s in (1e-2, 1e-2))
    moments = error_moments([near_TN, near_TN, far_TN], true_TN, np.arange(50) % 2)
    corr_MM = moments.correlation([0, 1])
    assert corr_MM[0, 1] == pytest.approx(1)
    assert abs(corr_MM[0, 2]) < 0.4
