"""Metrics agree with a slow reference and keep their definitions."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import r2_score

from ensemble.vendor import closure
from search import metrics
from search.metrics import (
    FittedMetric,
    Score,
    fold_scores,
    get_metric,
    mean_score,
    row_correlations,
    trial_score,
)
from spaces.errors import UserError


def data(seed=0, outputs=12, rows=40):
    rng = np.random.default_rng(seed)
    true_TN = rng.gamma(1.0, 1.0, (outputs, 1)) + rng.normal(0, 1, (outputs, rows))
    pred_TN = 0.5 * true_TN + rng.normal(0, 1, (outputs, rows))
    return pred_TN.astype(np.float32), true_TN.astype(np.float32)


def slow_gene_expr(pred_TN, true_TN, train_TN, heg_n, hvg_n, hvg_stat, nan):
    """One scipy call per gene and per row, straight from the competition's formula."""

    def corr(a, b):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                return np.nan
            return stats.pearsonr(a.astype(np.float64), b.astype(np.float64))[0]

    def keep(values):
        values = [0.0 if np.isnan(v) and nan == "zero" else v for v in values]
        return [v for v in values if not np.isnan(v)] or [0.0]

    cells = [corr(pred_TN[:, i], true_TN[:, i]) for i in range(true_TN.shape[1])]
    genes = [corr(pred_TN[j], true_TN[j]) for j in range(len(true_TN))]
    train = train_TN.astype(np.float64)
    spread = train.var(axis=1) if hvg_stat == "var" else train.std(axis=1) / train.mean(axis=1)
    heg = sorted(range(len(train)), key=lambda j: -train[j].sum())[:heg_n]
    hvg = sorted(range(len(train)), key=lambda j: -spread[j])[:hvg_n]
    parts = (
        np.mean(keep(cells)),
        np.max(keep(genes)),
        np.mean(keep([genes[j] for j in heg])),
        np.mean(keep([genes[j] for j in hvg])),
    )
    return max(sum(parts) / 4, 0), parts


@pytest.mark.parametrize("nan", ["zero", "drop"])
@pytest.mark.parametrize("hvg_stat", ["var", "cv"])
@pytest.mark.parametrize(("heg_n", "hvg_n"), [(3, 5), (50, 50)])
def test_gene_expr_equals_the_slow_reference(nan, hvg_stat, heg_n, hvg_n):
    pred_TN, true_TN = data()
    train_TN = data(seed=1)[1] + 3  # positive means: the reference's plain std / mean is defined
    pred_TN[2] = 1.5  # a constant predicted gene
    true_TN[4] = 0.25  # a constant true gene
    pred_TN[:, 7] = 0.75  # a constant predicted row
    args = {"heg_n": heg_n, "hvg_n": hvg_n, "hvg_stat": hvg_stat, "nan": nan}
    pred_TN[2] = pred_TN[2, 7]  # still constant after the row was set
    got = get_metric("gene_expr", **args).fit(train_TN).score(pred_TN, true_TN)
    value, parts = slow_gene_expr(pred_TN, true_TN, train_TN, **args)
    names = ("mean_corr_cells", "max_corr_genes", "heg_corr", "hvg_corr")
    assert got.value == pytest.approx(value, abs=1e-12)
    assert [got.parts[name] for name in names] == pytest.approx(parts, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([1, 9, 257]), st.integers(4, 30), st.floats(-1e2, 1e2)
)
def test_row_correlations_equal_scipy_whatever_the_offset(seed, rows, columns, offset):
    rng = np.random.default_rng(seed)
    a_RC = rng.normal(offset, 1, (rows, columns))
    b_RC = rng.normal(0, 1, (rows, columns)) + a_RC
    expected = [stats.pearsonr(a, b)[0] for a, b in zip(a_RC, b_RC, strict=True)]
    assert row_correlations(a_RC, b_RC) == pytest.approx(np.array(expected), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_gene_parts_ignore_a_rising_affine_map_of_each_gene(seed, scale, shift):
    pred_TN, true_TN = (x.astype(np.float64) for x in data(seed))
    fitted = get_metric("gene_expr", heg_n=3, hvg_n=3).fit(true_TN)
    before, after = fitted.score(pred_TN, true_TN), fitted.score(scale * pred_TN + shift, true_TN)
    for name in ("max_corr_genes", "heg_corr", "hvg_corr", "mean_corr_genes"):
        assert after.parts[name] == pytest.approx(before.parts[name], abs=1e-7)


@pytest.mark.parametrize("constant", [0.0, 1 / 3, -4.67, 1e5])
def test_a_gene_that_varies_by_float_noise_alone_scores_zero(constant):
    _, true_TN = data()
    noise = np.random.default_rng(0).integers(-1, 2, true_TN.shape) * np.float32(6e-8)
    pred_TN = (np.float32(constant) * (1 + noise)).astype(np.float32)
    assert get_metric("pearson").fit(true_TN).score(pred_TN, true_TN).value == 0.0


def test_a_small_true_signal_on_a_large_mean_is_kept():
    _, true_TN = data()
    score = get_metric("pearson").fit(true_TN).score(5 + 1e-4 * true_TN.astype("f8"), true_TN)
    assert score.value == pytest.approx(1)


def test_nan_drop_leaves_constant_genes_out_and_zero_counts_them():
    pred_TN, true_TN = data(outputs=4)
    pred_TN[:2] = 0
    dropped = get_metric("pearson", nan="drop").fit(true_TN).score(pred_TN, true_TN).value
    zeroed = get_metric("pearson").fit(true_TN).score(pred_TN, true_TN).value
    assert dropped == pytest.approx(2 * zeroed)
    assert dropped > 0


@pytest.mark.parametrize("nan", ["zero", "drop"])
def test_all_constant_predictions_score_zero(nan):
    _, true_TN = data()
    score = get_metric("gene_expr", nan=nan).fit(true_TN).score(np.ones_like(true_TN), true_TN)
    assert score == Score(0.0, dict.fromkeys(score.parts, 0.0))


def test_perfect_predictions_score_one_and_reversed_ones_never_below_zero():
    _, true_TN = data()
    fitted = get_metric("gene_expr").fit(true_TN)
    assert fitted.score(true_TN, true_TN).value == pytest.approx(1)
    assert fitted.score(-true_TN, true_TN).value == 0.0


def test_lists_come_from_the_fitted_rows_alone_and_hold_all_genes_when_there_are_few():
    train_TN = np.array([[1, 1, 1], [5, 5, 5], [0, 3, 6], [2, 2, 3]], dtype=np.float32)
    fitted = get_metric("gene_expr", heg_n=2, hvg_n=1).fit(train_TN)
    assert fitted.lists == {"heg": (1, 2), "hvg": (2,)}
    assert {len(x) for x in get_metric("gene_expr").fit(train_TN).lists.values()} == {4}


def test_cv_puts_genes_without_a_positive_mean_last():
    train_TN = np.array([[-1.0, 1.0], [-3, 1], [1, 2], [9, 9]])
    fitted = get_metric("gene_expr", hvg_n=2, hvg_stat="cv").fit(train_TN)
    assert fitted.lists["hvg"] == (2, 3)


def test_a_fitted_metric_survives_json():
    pred_TN, true_TN = data()
    for name in ("gene_expr", "pearson", "rmse", "mae", "r2"):
        fitted = get_metric(name).fit(true_TN)
        again = FittedMetric.from_dict(json.loads(json.dumps(fitted.to_dict())))
        assert again == fitted
        assert again.score(pred_TN, true_TN) == fitted.score(pred_TN, true_TN)


def test_a_damaged_fitted_metric_is_refused():
    good = get_metric("gene_expr").fit(data()[1]).to_dict()
    for change in ({"outputs": None}, {"lists": {}}, {"outputs": 3}, {"name": "gene"}):
        with pytest.raises(UserError):
            FittedMetric.from_dict({**good, **change})


def test_errors_are_negated_and_keep_their_name_positive():
    pred_TN, true_TN = data()
    error = pred_TN.astype(np.float64) - true_TN
    rmse = get_metric("rmse").fit(true_TN)
    assert rmse.label == "-rmse"
    assert rmse.score(pred_TN, true_TN).parts["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert rmse.score(pred_TN, true_TN).value == -rmse.score(pred_TN, true_TN).parts["rmse"]
    mae = get_metric("mae").fit(true_TN).score(pred_TN, true_TN)
    assert mae.value == pytest.approx(-np.abs(error).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1e3]))
def test_r2_equals_scikit_learns_over_the_outputs_that_vary(seed, offset):
    pred_TN, true_TN = (x.astype(np.float64) + offset for x in data(seed, outputs=300, rows=9))
    true_TN[[3, 280]] = 0.25  # a constant truth has no r2
    varies = np.ptp(true_TN, axis=1) > 0
    expected = r2_score(true_TN[varies].T, pred_TN[varies].T)
    fitted = get_metric("r2").fit(true_TN)
    assert fitted.score(pred_TN, true_TN).value == pytest.approx(expected)
    assert fitted.score(true_TN, true_TN).value == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["gene_expr", "pearson", "rmse", "mae", "r2", "auroc", "khd"])
def test_non_finite_predictions_are_refused(name, bad):
    pred_TN, true_TN = data()
    pred_TN[1, 2] = bad
    with pytest.raises(ValueError, match="predictions hold 1 values"):
        get_metric(name).fit(true_TN).score(pred_TN, true_TN)


def test_wrong_shapes_are_refused():
    pred_TN, true_TN = data()
    fitted = get_metric("pearson").fit(true_TN)
    for pred, true in ((pred_TN.T, true_TN), (pred_TN[1:], true_TN[1:]), (pred_TN[:, :0],) * 2):
        with pytest.raises(ValueError, match=r"shape|no row"):
            fitted.score(pred, true)


def test_a_trial_is_the_unweighted_mean_of_its_folds():
    pred_TN, true_TN = data()
    fold_N = np.repeat([0, 1, 2], [20, 12, 8])
    fitted = get_metric("gene_expr", heg_n=3, hvg_n=4).fit(true_TN)
    scores = fold_scores(fitted, pred_TN, true_TN, fold_N)
    assert scores[1] == fitted.score(pred_TN[:, 20:32], true_TN[:, 20:32])
    assert trial_score(scores) == pytest.approx(np.mean([s.value for s in scores]))
    assert mean_score(scores).parts["heg_corr"] == pytest.approx(
        np.mean([s.parts["heg_corr"] for s in scores])
    )


@pytest.mark.parametrize("fold", [[0, 0, 2, 2], [-1, 0, 0, 1], [1, 1, 1, 1]])
def test_an_empty_or_unknown_fold_is_refused(fold):
    true_TN = data(rows=4)[1]
    with pytest.raises(ValueError, match="folds are"):
        fold_scores(get_metric("pearson").fit(true_TN), true_TN, true_TN, np.array(fold))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gene_exp", {}, "near names: gene_expr"),
        ("gene_expr", {"heg": 3}, "near names: heg_n"),
        ("rmse", {"nan": "zero"}, "it takes none"),
        ("gene_expr", {"heg_n": 0}, "1 or more"),
        ("gene_expr", {"hvg_n": 2.5}, "whole number"),
        ("gene_expr", {"hvg_stat": "std"}, "known: var, cv"),
        ("pearson", {"nan": "skip"}, "known: zero, drop"),
    ],
)
def test_a_wrong_metric_is_refused_with_what_is_known(name, args, message):
    with pytest.raises(UserError, match=message):
        get_metric(name, **args)


def test_a_bundle_takes_the_whole_package_and_numpy_alone():
    found = closure("search.metrics")
    ours = {path.name for path in found.files if path.parts[:2] == ("search", "metrics")}
    folder = Path(metrics.__file__).parent
    assert ours == {path.name for path in folder.glob("*.py")}
    assert found.packages == ("numpy",)
    assert closure("search.metrics.core").files == found.files
