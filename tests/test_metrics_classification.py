"""Metrics of classification agree with scikit-learn, the KHD script and brute force."""

import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from search.metrics import (
    FittedMetric,
    best_thresholds,
    check_predictions,
    check_truth,
    fold_scores,
    get_metric,
    known_metrics,
    mean_score,
    threshold_candidates,
)
from spaces.errors import UserError

FITTED = ("accuracy", "f1", "khd")
ONE_SIDED = ("sensitivity", "specificity", "ppv", "npv")
DECISIONS = (*FITTED, *ONE_SIDED)
seeds = st.integers(0, 10_000)
# How many different predictions there are: from all tied to hardly any tie.
levels = st.sampled_from([1, 2, 4, 30, 100_000])


def data(seed, outputs=3, rows=40, many=30, share=0.4):
    """Probabilities with ties and truth of 0 and 1, which may lack a class."""
    rng = np.random.default_rng(seed)
    true_TN = (rng.random((outputs, rows)) < share).astype(np.float32)
    pred_TN = np.clip(0.25 * true_TN + 0.75 * rng.random((outputs, rows)), 0, 1)
    return (np.round(pred_TN * (many - 1)) / max(many - 1, 1)).astype(np.float32), true_TN


def classes(seed, outputs=4, rows=40):
    """Probabilities over classes and one-hot truth, in which a class may be missing."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, outputs - 1, rows)
    true_TN = (np.arange(outputs)[:, None] == label_N).astype(np.float32)
    pred_TN = rng.random((outputs, rows)) + true_TN
    return (pred_TN / pred_TN.sum(axis=0)).astype(np.float32), true_TN, label_N


def value(name, pred_TN, true_TN, thresholds_T=None, **args):
    return get_metric(name, **args).fit(true_TN).score(pred_TN, true_TN, thresholds_T).value


# --- ranking ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(seeds, levels, st.sampled_from([0.05, 0.5, 0.95]), st.sampled_from([5, 60]))
def test_ranking_metrics_equal_scikit_learns_over_the_outputs_that_are_defined(
    seed, many, share, rows
):
    pred_TN, true_TN = data(seed, rows=rows, many=many, share=share)
    true_TN[0, 0] = 1
    true_TN[0, 1] = 0
    pairs = list(zip(true_TN, pred_TN, strict=True))
    both = [sk.roc_auc_score(t, p) for t, p in pairs if 0 < t.sum() < rows]
    some = [sk.average_precision_score(t, p) for t, p in pairs if t.sum() > 0]
    assert value("auroc", pred_TN, true_TN) == pytest.approx(np.mean(both), abs=1e-12)
    assert value("average_precision", pred_TN, true_TN) == pytest.approx(np.mean(some), abs=1e-12)


def test_ranking_of_classes_is_one_against_the_rest():
    pred_TN, _, _ = classes(1)
    label_N = np.arange(40) % 4
    true_TN = (np.arange(4)[:, None] == label_N).astype(np.float32)
    probability_NT = pred_TN.T.astype(np.float64)
    probability_NT /= probability_NT.sum(axis=1, keepdims=True)
    expected = sk.roc_auc_score(label_N, probability_NT, multi_class="ovr", average="macro")
    assert value("auroc", pred_TN, true_TN) == pytest.approx(expected, abs=1e-12)
    expected = sk.average_precision_score(true_TN.T, pred_TN.T, average="macro")
    assert value("average_precision", pred_TN, true_TN) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(seeds, levels)
def test_auroc_is_turned_by_turned_predictions_and_kept_by_a_rising_map(seed, many):
    pred_TN, true_TN = data(seed, many=many)
    true_TN[:, :2] = [0, 1]
    straight = value("auroc", pred_TN, true_TN)
    assert value("auroc", -pred_TN, true_TN) == pytest.approx(1 - straight, abs=1e-12)
    assert value("auroc", 7 * pred_TN.astype(np.float64) - 3, true_TN) == straight


def test_many_outputs_are_ranked_in_blocks(monkeypatch):
    pred_TN, true_TN = data(3, outputs=9, rows=30)
    true_TN[:, :2] = [0, 1]
    whole = value("auroc", pred_TN, true_TN), value("average_precision", pred_TN, true_TN)
    monkeypatch.setattr("search.metrics.ranking._VALUES", 70)
    assert whole == (value("auroc", pred_TN, true_TN), value("average_precision", pred_TN, true_TN))


# --- decisions -------------------------------------------------------------------------------


def scikit_rates(true_N, called_N):
    """The six rates of one output; None where the house leaves the output out."""
    return {
        "accuracy": sk.accuracy_score(true_N, called_N),
        "sensitivity": sk.recall_score(true_N, called_N) if true_N.any() else None,
        "specificity": sk.recall_score(1 - true_N, 1 - called_N) if (1 - true_N).any() else None,
        "ppv": sk.precision_score(true_N, called_N, zero_division=0),
        "npv": sk.precision_score(1 - true_N, 1 - called_N, zero_division=0),
        "f1": sk.f1_score(true_N, called_N) if true_N.any() else None,
    }


def macro(rates, name):
    kept = [r[name] for r in rates if r[name] is not None]
    return np.mean(kept) if kept else None


@settings(deadline=None, max_examples=40)
@given(seeds, levels, st.sampled_from([0.03, 0.5, 0.97]))
def test_rates_equal_scikit_learns_over_the_outputs_that_are_defined(seed, many, share):
    pred_TN, true_TN = data(seed, rows=20, many=many, share=share)
    cuts_T = np.random.default_rng(seed).random(3)
    rates = [
        scikit_rates(true.astype(int), (pred >= cut).astype(int))
        for true, pred, cut in zip(true_TN, pred_TN.astype(np.float64), cuts_T, strict=True)
    ]
    expected = {name: macro(rates, name) for name in rates[0]}
    expected = {name: pytest.approx(v) for name, v in expected.items() if v is not None}
    for name in DECISIONS[:2] + ONE_SIDED:
        fitted = get_metric(name).fit(true_TN)
        if name in expected:
            score = fitted.score(pred_TN, true_TN, cuts_T)
            assert score.parts == expected
            assert score.value == score.parts[name]
        else:
            with pytest.raises(ValueError, match=f"{name} is undefined: no target has"):
                fitted.score(pred_TN, true_TN, cuts_T)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_decisions_among_classes_take_the_highest_and_equal_scikit_learns(seed):
    pred_TN, true_TN, label_N = classes(seed)
    called_N = pred_TN.argmax(axis=0)
    present = sorted(set(label_N.tolist()))
    scores = {
        name: get_metric(name, multiclass=True).fit(true_TN).score(pred_TN, true_TN)
        for name in DECISIONS
    }
    assert scores["accuracy"].value == pytest.approx(sk.accuracy_score(label_N, called_N))
    assert scores["sensitivity"].value == pytest.approx(
        sk.recall_score(label_N, called_N, labels=present, average="macro", zero_division=0)
    )
    assert scores["ppv"].value == pytest.approx(
        sk.precision_score(label_N, called_N, labels=range(4), average="macro", zero_division=0)
    )
    assert scores["f1"].value == pytest.approx(
        sk.f1_score(label_N, called_N, labels=present, average="macro", zero_division=0)
    )
    each = [khd_script((called_N == c).astype(int), (label_N == c).astype(int)) for c in range(4)]
    assert scores["khd"].value == pytest.approx(np.mean(each))
    assert scores["ppv"].parts["accuracy"] == scores["accuracy"].value


def test_a_row_is_positive_from_the_threshold_on():
    pred_TN = np.array([[0.2, 0.5, 0.7]], dtype=np.float32)
    true_TN = np.array([[0, 1, 1]], dtype=np.float32)
    assert value("accuracy", pred_TN, true_TN) == 1
    assert value("accuracy", pred_TN, true_TN, threshold=0.6) == pytest.approx(2 / 3)
    assert value("accuracy", pred_TN, true_TN, [0.2]) == pytest.approx(2 / 3)
    assert value("sensitivity", pred_TN, true_TN, [0.9]) == 0
    assert get_metric("ppv").fit(true_TN).score(pred_TN, true_TN, [0.9]).value == 0
    assert get_metric("npv").fit(true_TN).score(pred_TN, true_TN, [0.0]).value == 0


def khd_script(predicted, actual):
    """evaluation/evaluation.py of github.com/nccaiteam/KHD_2020, without its rounding."""
    smooth = 1e-3
    tp = tn = fp = fn = 0
    for p, a in zip(predicted, actual, strict=True):
        tp += p == 1 and a == 1
        tn += p == 0 and a == 0
        fp += p == 1 and a == 0
        fn += p == 0 and a == 1
    accuracy = (tp + tn) / (tp + fn + fp + tn + smooth)
    precision = tp / (tp + fp + smooth)
    recall = tp / (tp + fn + smooth)
    specificity = tn / (tn + fp + smooth)
    npv = tn / (tn + fn + smooth)
    f1 = 2 * precision * recall / (precision + recall + smooth)
    return (accuracy + precision + recall + specificity + npv + f1) / 6


@settings(deadline=None, max_examples=40)
@given(seeds, levels, st.sampled_from([0.0, 0.3, 1.0]))
def test_khd_is_the_challenges_script_per_output(seed, many, share):
    pred_TN, true_TN = data(seed, outputs=2, rows=15, many=many, share=share)
    expected = [
        khd_script((p >= 0.5).astype(int).tolist(), t.astype(int).tolist())
        for p, t in zip(pred_TN, true_TN, strict=True)
    ]
    score = get_metric("khd").fit(true_TN).score(pred_TN, true_TN)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert score.value == pytest.approx(np.mean(list(score.parts.values())), abs=1e-12)


@pytest.mark.parametrize(("call", "expected"), [("none", 0.4), ("all", 0.3435), ("right", 0.9999)])
def test_khd_of_trivial_decisions_on_the_challenges_test_set(call, expected):
    """1,400 benign and 600 malignant, as the challenge had; rounded as its script rounds."""
    true_TN = np.repeat([0.0, 1.0], [1400, 600])[None]
    pred_TN = {"none": 0 * true_TN, "all": 0 * true_TN + 1, "right": true_TN}[call]
    assert round(value("khd", pred_TN, true_TN), 4) == expected


# --- thresholds ------------------------------------------------------------------------------


def slow_threshold(fitted, pred_N, true_N, fold_N, share_of):
    """Every candidate, scored fold by fold, one output at a time; a fold weighs its `share_of`."""
    distinct = sorted({float(p) for p in pred_N})
    cuts = [(a + b) / 2 for a, b in pairwise(distinct)]
    below, above = np.nextafter(distinct[0], -1), np.nextafter(distinct[-1], 2)
    cuts = [0.5 if distinct[0] > 0.5 else below, *cuts, 0.5 if distinct[-1] < 0.5 else above]
    single = FittedMetric(name=fitted.name, args=fitted.args, outputs=1, lists={})
    means = []
    for cut in cuts:
        scores, shares = [], []
        for k in sorted(set(fold_N.tolist())):
            rows = (pred_N[None, fold_N == k], true_N[None, fold_N == k])
            if single.defined(rows[1]).any():
                scores.append(single.score(*rows, [cut]).value)
                shares.append(share_of[k])
        means.append(np.average(scores, weights=shares) if scores else 0.0)
    tied = [cut for cut, mean in zip(cuts, means, strict=True) if mean >= max(means) - 1e-12]
    return min(tied, key=lambda cut: (abs(cut - 0.5), cut))


@settings(deadline=None, max_examples=60)
@given(seeds, levels, st.sampled_from(DECISIONS), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_best_thresholds_are_those_of_brute_force(seed, many, name, share):
    pred_TN, true_TN = data(seed, outputs=2, rows=14, many=many, share=share)
    fold_N = np.random.default_rng(seed).integers(0, 4, 14)
    fitted = get_metric(name).fit(true_TN)
    got_T = best_thresholds(fitted, pred_TN, true_TN, fold_N)
    # In a fold's score each of the outputs that are defined there has the same share.
    defined = {k: fitted.defined(true_TN[:, fold_N == k]).sum() for k in fold_N.tolist()}
    share_of = {k: 1 / count for k, count in defined.items() if count}
    pairs = zip(pred_TN, true_TN, strict=True)
    expected = [slow_threshold(fitted, p, t, fold_N, share_of) for p, t in pairs]
    assert got_T.dtype == np.float64
    assert got_T.tolist() == expected


@settings(deadline=None, max_examples=30)
@given(seeds, levels, st.sampled_from(FITTED))
def test_no_other_thresholds_have_a_better_mean_score_of_folds(seed, many, name):
    pred_TN, true_TN = data(seed, outputs=2, rows=12, many=many, share=0.2)
    fold_N = np.arange(12) % 3
    true_TN[:, :3] = [[1], [0]]  # in no fold the metric is undefined; one output may be
    fitted = get_metric(name).fit(true_TN)

    def mean(thresholds_T):
        folds = [(pred_TN[:, fold_N == k], true_TN[:, fold_N == k]) for k in range(3)]
        return np.mean([fitted.score(*rows, thresholds_T).value for rows in folds])

    cuts = [threshold_candidates(np.sort(pred_N))[0] for pred_N in pred_TN]
    best = max(mean(np.array(both)) for both in product(*cuts))
    got = mean(best_thresholds(fitted, pred_TN, true_TN, fold_N))
    assert got == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_candidates_make_every_possible_decision_once_even_between_neighbours_in_float64(values):
    values = sorted([*values, values[0], np.nextafter(values[-1], 2)])
    cuts_C, below_C = threshold_candidates(np.array(values))
    assert len(cuts_C) == len(set(values)) + 1
    assert (np.diff(cuts_C) > 0).all()
    assert [sum(v < cut for v in values) for cut in cuts_C] == below_C.tolist()


def test_equal_thresholds_are_decided_by_their_distance_from_a_half():
    pred_TN = np.array([[0.1, 0.3, 0.9, 0.95]])
    fitted = get_metric("accuracy").fit(np.array([[0.0, 1, 0, 1]]))
    # 0.2 and 0.925 both leave one row wrong.
    assert best_thresholds(fitted, pred_TN, [[0, 1, 0, 1]], [0] * 4) == pytest.approx([0.2])
    assert best_thresholds(fitted, [[0.7, 0.9]], [[1, 1]], [0, 0]) == [0.5]
    # Calling all positive and all negative both leave one row wrong, at the same distance.
    got_T = best_thresholds(fitted, [[0.25, 0.75]], [[1, 0]], [0, 0])
    assert got_T == [np.nextafter(0.25, 0)]


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(FITTED), st.integers(2, 4))
def test_a_folds_own_rows_never_choose_its_thresholds(seed, name, folds):
    pred_TN, true_TN = data(seed, rows=30)
    fold_N = np.arange(30) % folds
    true_TN[:, : 2 * folds] = np.repeat([0, 1], folds)
    fitted = get_metric(name).fit(true_TN)
    rng = np.random.default_rng(seed)
    for k, score in enumerate(fold_scores(fitted, pred_TN, true_TN, fold_N)):
        inside = fold_N == k
        chosen_T = best_thresholds(
            fitted, pred_TN[:, ~inside], true_TN[:, ~inside], fold_N[~inside]
        )
        assert score == fitted.score(pred_TN[:, inside], true_TN[:, inside], chosen_T)
        # Other rows in this fold, same thresholds: the score is that of the new rows under them.
        other_TN = pred_TN.copy()
        other_TN[:, inside] = rng.random((3, inside.sum()))
        again = fold_scores(fitted, other_TN, true_TN, fold_N)[k]
        assert again == fitted.score(other_TN[:, inside], true_TN[:, inside], chosen_T)


def test_a_lone_fold_and_a_fixed_threshold_fit_nothing():
    pred_TN, true_TN = data(0)
    fold_N = np.arange(40) % 2
    fixed = get_metric("f1", threshold=0.3).fit(true_TN)
    assert fold_scores(fixed, pred_TN, true_TN, fold_N) == [
        fixed.score(pred_TN[:, fold_N == k], true_TN[:, fold_N == k]) for k in (0, 1)
    ]
    fitted = get_metric("f1").fit(true_TN)
    assert fold_scores(fitted, pred_TN, true_TN, 0 * fold_N) == [
        fitted.score(pred_TN, true_TN, [0.5] * 3)
    ]


def test_thresholds_are_refused_where_they_mean_nothing():
    pred_TN, true_TN, _ = classes(0)
    for name, args in (("auroc", {}), ("accuracy", {"multiclass": True})):
        fitted = get_metric(name, **args).fit(true_TN[:3])
        with pytest.raises(ValueError, match="no thresholds"):
            fitted.score(pred_TN[:3], true_TN[:3], [0.5] * 3)
        with pytest.raises(ValueError, match="no thresholds"):
            best_thresholds(fitted, pred_TN[:3], true_TN[:3], [0] * 40)
    khd = get_metric("khd").fit(true_TN)
    for wrong in ([0.5], [0.5] * 3 + [np.nan], 0.5):
        with pytest.raises(ValueError, match="must be 4 numbers"):
            khd.score(pred_TN, true_TN, wrong)
    with pytest.raises(ValueError, match="do not match"):
        best_thresholds(khd, pred_TN, true_TN, [0] * 39)


# --- probabilities ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_log_loss_equals_scikit_learns(seed):
    pred_TN, true_TN = data(seed, many=100_000)
    pred_TN = np.clip(pred_TN, 1e-4, 1 - 1e-4).astype(np.float64)
    each = [sk.log_loss(t, p, labels=[0, 1]) for t, p in zip(true_TN, pred_TN, strict=True)]
    score = get_metric("log_loss").fit(true_TN).score(pred_TN, true_TN)
    assert score.value == pytest.approx(-np.mean(each))
    assert score.parts == {"log_loss": -score.value}

    pred_TN, true_TN, label_N = classes(seed)
    pred_TN = pred_TN.astype(np.float64)
    pred_TN /= pred_TN.sum(axis=0)
    expected = -sk.log_loss(label_N, pred_TN.T, labels=range(4))
    assert value("log_loss", pred_TN, true_TN, multiclass=True) == pytest.approx(expected)


def test_a_sure_mistake_costs_the_logarithm_of_eps_and_classes_are_not_divided_by_their_sum():
    true_TN = np.array([[1.0, 0.0]])
    assert value("log_loss", 1 - true_TN, true_TN) == pytest.approx(np.log(1e-15))
    assert value("log_loss", 1 - true_TN, true_TN, eps=1e-3) == pytest.approx(np.log(1e-3))
    assert value("log_loss", true_TN, true_TN) == 0
    one_hot_TN, pred_TN = np.eye(2), np.full((2, 2), 0.25)
    got = value("log_loss", pred_TN, one_hot_TN, multiclass=True)
    assert got == pytest.approx(np.log(0.25))


# --- what a metric says of itself, and refusals ----------------------------------------------


def test_every_metric_says_what_it_can_score_and_what_it_needs():
    both = ("binary", "multilabel")
    for name in known_metrics():
        metric = get_metric(name)
        fitted = FittedMetric(name=name, args=metric.args, outputs=2, lists={})
        assert metric.task_types == fitted.task_types
        assert fitted.decides is (name in DECISIONS)
        assert fitted.fits_thresholds is (name in FITTED)
        assert fitted.probabilities is (name in (*DECISIONS, "log_loss", "presence_locations"))
        if name in ("gene_expr", "pearson", "rmse", "mae", "r2"):
            assert fitted.task_types == ("regression",)
        elif name in ("auroc", "average_precision"):
            assert fitted.task_types == (*both, "multiclass")
        elif name == "presence_locations":
            assert fitted.task_types == both
        else:
            assert fitted.task_types == both
            assert get_metric(name, multiclass=True).task_types == ("multiclass",)
            assert not get_metric(name, multiclass=True).fits_thresholds
    assert get_metric("sensitivity", threshold="fit").fits_thresholds
    assert not get_metric("khd", threshold=0.5).fits_thresholds
    assert get_metric("log_loss").label == "-log_loss"


@pytest.mark.parametrize("name", known_metrics())
def test_every_metric_survives_json(name):
    pred_TN, true_TN = data(2)
    fitted = get_metric(name).fit(true_TN)
    again = FittedMetric.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    assert again.score(pred_TN, true_TN) == fitted.score(pred_TN, true_TN)


@pytest.mark.parametrize(
    ("name", "truth", "void"),
    [
        ("auroc", 1, "no target has both a positive and a negative"),
        ("auroc", 0, "no target has both a positive and a negative"),
        ("average_precision", 0, "no target has a positive"),
        ("sensitivity", 0, "no target has a positive"),
        ("f1", 0, "no target has a positive"),
        ("specificity", 1, "no target has a negative"),
        ("r2", 1, "no target has truth that varies"),
    ],
)
def test_where_the_metric_is_undefined_it_is_told_why(name, truth, void):
    true_TN = np.full((2, 6), truth, dtype=np.float32)
    pred_TN = np.linspace(0, 1, 12).reshape(2, 6)
    fitted = get_metric(name).fit(true_TN)
    assert not fitted.defined(true_TN).any()
    with pytest.raises(ValueError, match=f"{name} is undefined: {void}"):
        fitted.score(pred_TN, true_TN)
    true_TN[0, 3] = 1 - truth
    assert fitted.defined(true_TN).tolist() == [True, False]
    assert np.isfinite(fitted.score(pred_TN, true_TN).value)


@pytest.mark.parametrize("name", ["accuracy", "khd", "log_loss", "ppv", "npv"])
@pytest.mark.parametrize("truth", [0, 1])
def test_the_others_are_always_defined(name, truth):
    true_TN = np.full((1, 3), truth, dtype=np.float32)
    for pred in (0.0, 0.4, 1.0):
        assert np.isfinite(value(name, np.full((1, 3), pred), true_TN))


def test_the_mean_of_a_part_that_a_fold_lacks_is_that_of_the_others():
    fitted = get_metric("accuracy").fit(np.array([[0, 1]]))
    scores = [fitted.score([[0.2, 0.8]], [[0, 1]]), fitted.score([[0.2, 0.8]], [[0, 0]])]
    assert "sensitivity" not in scores[1].parts
    mean = mean_score(scores)
    assert mean.parts["sensitivity"] == 1
    assert mean.parts["specificity"] == 0.75
    assert mean.value == 0.75


@pytest.mark.parametrize("name", [*DECISIONS, "log_loss"])
def test_what_is_no_probability_and_no_class_is_refused(name):
    pred_TN, true_TN = data(0)
    fitted = get_metric(name).fit(true_TN)
    with pytest.raises(ValueError, match=r"from .* to 1.5; .* needs \[0, 1\]"):
        fitted.score(np.where(pred_TN == pred_TN.max(), 1.5, pred_TN), true_TN)
    with pytest.raises(ValueError, match="truth holds values other than 0 and 1"):
        fitted.score(pred_TN, true_TN * 2)
    with pytest.raises(ValueError, match="not one-hot"):
        get_metric(name, multiclass=True).fit(true_TN).score(pred_TN, true_TN)


def test_a_mean_of_ones_may_exceed_one_by_the_rounding_of_float64():
    true_TN = np.array([[1.0, 0.0]])
    assert value("khd", np.nextafter(true_TN, 2), true_TN) == value("khd", true_TN, true_TN)


def test_the_fold_that_cannot_be_scored_is_named():
    pred_TN, true_TN = data(0, outputs=1)
    true_TN[:, 20:] = 0
    fold_N = np.repeat([0, 1], 20)
    with pytest.raises(ValueError, match="fold 1: auroc is undefined"):
        fold_scores(get_metric("auroc").fit(true_TN), pred_TN, true_TN, fold_N)


# --- checks ----------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")


def test_truth_that_can_be_scored_has_no_fault():
    pred_TN, true_TN, _ = classes(0)
    fold_N = np.arange(40) % 2
    for name in known_metrics():
        args = {"multiclass": True} if "multiclass" in get_metric(name).args else {}
        fitted = get_metric(name, **args).fit(true_TN)
        expected = name in ("gene_expr", "pearson", "rmse", "mae", "r2") or bool(args)
        if expected or fitted.defined(true_TN).any():
            assert check_truth(fitted, true_TN, fold_N, NAMES) == []
        assert check_predictions(fitted, pred_TN, "trial 3") == []


def test_each_fault_of_the_truth_is_told_with_its_place():
    _, true_TN, _ = classes(0)
    fold_N = np.repeat([0, 1, 2, 3], 10)

    def fault(name, truth_TN, **args):
        (sentence,) = check_truth(get_metric(name, **args).fit(truth_TN), truth_TN, fold_N, NAMES)
        return sentence

    one_TN = np.zeros((1, 40))
    one_TN[0, :10] = np.arange(10) % 2
    assert "undefined in folds 1, 2, 3: there no target has both" in fault("auroc", one_TN)
    assert "fold 2: there no target has a positive" in fault(
        "f1", np.where((fold_N == 2) | (np.arange(40) % 2 == 0), 0.0, 1.0)[None]
    )
    assert "no target has truth that varies" in fault("r2", one_TN)
    doubled = true_TN.copy()
    doubled[1, 4] = 2
    assert "1 values of target b are neither 0 nor 1 (such as 2)" in fault("auroc", doubled)
    assert "targets a, b, c and 1 more" in fault("khd", true_TN + 0.5)
    several = true_TN.copy()
    several[:, 7] = 1
    several[:, 9] = 0
    assert "rows 7, 9, counted from 0, have no class" in fault("khd", several, multiclass=True)
    assert check_truth(get_metric("khd").fit(several), several, fold_N, NAMES) == []
    assert "there is 1 class" in fault("khd", np.ones((1, 40)), multiclass=True)
    fitted = get_metric("auroc").fit(true_TN)
    true_TN[0, 0] = np.nan
    assert "1 values that are NaN" in check_truth(fitted, true_TN, fold_N, NAMES)[0]


def test_each_fault_of_predictions_is_told_with_whose_they_are():
    pred_TN, true_TN = data(0)
    khd, auroc = get_metric("khd").fit(true_TN), get_metric("auroc").fit(true_TN)
    pred_TN[0, 0] = 1.25
    (fault,) = check_predictions(khd, pred_TN, "trial 3")
    assert fault.startswith("trial 3: predictions go from 0")
    assert "to 1.25; metric khd needs probabilities" in fault
    assert check_predictions(auroc, pred_TN, "trial 3") == []
    pred_TN[1, :2] = [np.nan, np.inf]
    for fitted in (khd, auroc):
        (fault,) = check_predictions(fitted, pred_TN, "trial 3")
        assert "trial 3: 2 of 120 predictions are NaN or infinite" in fault


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("khd", {"threshold": "best"}, "it must be 'fit' or a probability"),
        ("khd", {"threshold": 1.5}, "it must be 'fit' or a probability"),
        ("khd", {"threshold": True}, "it must be 'fit' or a probability"),
        ("khd", {"threshold": float("nan")}, "it must be 'fit' or a probability"),
        ("f1", {"multiclass": 1}, "true or false"),
        ("f1", {"multiclass": True, "threshold": 0.3}, "leave threshold out"),
        ("log_loss", {"eps": 0}, "small probability"),
        ("log_loss", {"eps": "1e-15"}, "small probability"),
        ("auroc", {"multiclass": True}, "it takes none"),
        ("log_los", {}, "near names: log_loss"),
    ],
)
def test_impossible_arguments_are_refused(name, args, message):
    with pytest.raises(UserError, match=message):
        get_metric(name, **args)
