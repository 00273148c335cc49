"""A small model tells sets apart where they differ, and only there."""

import numpy as np
import pytest

from search.data import adversarial
from search.data.adversarial import folds_apart, separability, train_or_test


def drawn(rows, shift=0.0, seed=0):
    """Features of which the first is shifted."""
    features_NF = np.random.default_rng(seed).normal(0, 1, (rows, 12))
    features_NF[:, 0] += shift
    return features_NF


def test_the_auc_is_that_of_the_best_rule():
    """Two normal distributions one standard deviation apart: AUC = Phi(1 / sqrt(2)) = 0.760."""
    features_NF = np.concatenate([drawn(1500), drawn(1500, shift=1, seed=1)])
    auc = separability(features_NF, np.repeat([0, 1], 1500), seed=0)
    assert auc == pytest.approx(0.760, abs=0.025)


def test_equal_sets_are_at_chance_and_distant_ones_apart():
    alike = train_or_test(drawn(600), drawn(200, seed=1), seed=0)
    assert abs(alike.auc - 0.5) < 0.1
    assert "look like" in alike.meaning and not alike.clear
    apart = train_or_test(drawn(600), drawn(200, shift=4, seed=1), seed=0)
    assert apart.auc > 0.95 and apart.clear
    assert "expect a lower test score" in apart.meaning
    between = train_or_test(drawn(900), drawn(900, shift=0.9, seed=1), seed=0)
    assert "somewhat" in between.meaning


def test_scale_constants_and_missing_values_do_no_harm():
    features_NF = np.concatenate([drawn(300), drawn(300, shift=3, seed=1)])
    label_N = np.repeat([0, 1], 300)
    plain = separability(features_NF, label_N, seed=0)
    scaled_NF = np.hstack([features_NF * 1e6, np.ones((600, 1))])
    assert separability(scaled_NF, label_N, seed=0) == pytest.approx(plain, abs=1e-6)
    scaled_NF[3, 3] = np.nan
    assert np.isfinite(separability(scaled_NF, label_N, seed=0))


def test_groups_keep_a_slide_from_being_recognised():
    """Each group has a place of its own and labels go by group: only rows of seen groups tell."""
    rng = np.random.default_rng(0)
    group_N = np.repeat(np.arange(24), 25)
    features_NF = rng.normal(0, 1, (24, 40))[group_N] + rng.normal(0, 0.1, (600, 40))
    label_N = rng.permutation(np.repeat([0, 1], 12))[group_N]
    assert separability(features_NF, label_N, seed=0) > 0.95
    names = [f"slide {g}" for g in group_N]
    assert separability(features_NF, label_N, seed=0, groups=names) < 0.75


def test_too_few_rows_are_not_judged():
    assert np.isnan(separability(drawn(20), np.repeat([0, 1], [16, 4]), seed=0))
    found = train_or_test(drawn(100), drawn(3), seed=0)
    assert np.isnan(found.auc) and "too few" in found.meaning and not found.clear
    assert "no test images" in train_or_test(drawn(100), drawn(0), seed=0).meaning
    with pytest.raises(ValueError, match="0 or 1"):
        separability(drawn(20), np.arange(20), seed=0)


def test_folds_of_slides_are_apart_and_random_folds_are_not():
    features_NF = drawn(500)
    fold_N = np.random.default_rng(0).integers(0, 5, 500)
    alike = folds_apart(features_NF, fold_N, seed=0)
    assert abs(alike.auc - 0.5) < 0.1 and "alike" in alike.meaning
    corner = np.eye(12)[fold_N] * 5
    apart = folds_apart(features_NF + corner, fold_N, seed=0)
    assert apart.auc > 0.95 and "different" in apart.meaning


def test_many_rows_are_thinned_out_and_the_seed_decides(monkeypatch):
    monkeypatch.setattr(adversarial, "MOST", 400)
    features_NF = np.concatenate([drawn(1000), drawn(1000, shift=1, seed=1)])
    label_N = np.repeat([0, 1], 1000)
    first, again, other = (separability(features_NF, label_N, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert first == pytest.approx(other, abs=0.12)
