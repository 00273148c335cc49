"""presence_locations against scikit-learn's AUROC and the challenge's own accuracy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from search.metrics import check_truth, fold_scores, get_metric
from spaces.errors import UserError

NAME = "presence_locations"
NAMES = ("Aneurysm", "L_ICA", "R_ICA", "BA")


def data(seed, shares=(0.5, 0.3, 0.05, 0.02), rows=60, levels=20):
    """Probabilities with ties, and truth of a presence and its locations."""
    rng = np.random.default_rng(seed)
    true_TN = (rng.random((len(shares), rows)) < np.array(shares)[:, None]).astype(np.float32)
    true_TN[0, :2] = [0, 1]
    pred_TN = rng.integers(0, levels, true_TN.shape) / (levels - 1)
    return pred_TN.astype(np.float32), true_TN


def slow_value(pred_TN, true_TN, locations, weight):
    """The definition, output by output."""
    each = [
        roc_auc_score(true_TN[t], pred_TN[t])
        for t in locations
        if 0 < true_TN[t].sum() < true_TN.shape[1]
    ]
    presence = roc_auc_score(true_TN[0], pred_TN[0])
    return weight * presence + (1 - weight) * np.mean(each) if each else presence


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 100]), st.sampled_from([0.0, 0.7, 1.0]))
def test_the_value_is_a_weighted_mean_of_aurocs(seed, levels, weight):
    pred_TN, true_TN = data(seed, levels=levels)
    fitted = get_metric(NAME, presence_weight=weight, min_positives=3).fit(true_TN)
    locations = [t for t in (1, 2, 3) if true_TN[t].sum() >= 3]
    assert fitted.lists == {"locations": tuple(locations)}
    some = np.random.default_rng(seed).permutation(60)[:25]  # where a location may lack a class
    true_TN[0, some[:2]] = [0, 1]
    for rows in (slice(None), some):
        score = fitted.score(pred_TN[:, rows], true_TN[:, rows])
        expected = slow_value(pred_TN[:, rows], true_TN[:, rows], locations, weight)
        assert score.value == pytest.approx(expected, abs=1e-12)


def test_the_list_of_locations_is_frozen_on_the_rows_of_the_fit():
    _, true_TN = data(0, shares=(0.5, 0.4, 0.1, 0.9), rows=100)
    fitted = get_metric(NAME).fit(true_TN)
    assert fitted.args == {"presence_weight": 0.7, "min_positives": 10}
    assert fitted.lists["locations"] == tuple(t for t in (1, 2, 3) if true_TN[t].sum() >= 10)
    ten_TN = np.zeros((4, 30))
    ten_TN[1, :10] = ten_TN[2, :9] = ten_TN[0, :12] = 1
    assert get_metric(NAME).fit(ten_TN).lists == {"locations": (1,)}


@pytest.mark.parametrize("outputs", [1, 3])
def test_without_locations_that_count_the_value_is_the_auroc_of_the_presence(outputs):
    pred_TN, true_TN = data(1, shares=(0.5, 0.02, 0.02)[:outputs])
    score = get_metric(NAME).fit(true_TN).score(pred_TN, true_TN)
    assert score.value == get_metric("auroc").fit(true_TN[:1]).score(pred_TN[:1], true_TN[:1]).value
    assert score.parts["auroc"] == score.value
    assert "location_auroc" not in score.parts
    assert ("location_accuracy" in score.parts) is (outputs > 1)


def test_a_location_without_a_class_in_the_scored_rows_is_left_out_and_may_be_the_last():
    pred_TN, true_TN = data(2, shares=(0.5, 0.4, 0.4))
    fitted = get_metric(NAME).fit(true_TN)
    both = fitted.score(pred_TN, true_TN)
    true_TN[2] = 1
    one = fitted.score(pred_TN, true_TN)
    assert one.value == pytest.approx(slow_value(pred_TN, true_TN, [1], 0.7), abs=1e-12)
    assert both.value != one.value
    true_TN[1] = 0
    none = fitted.score(pred_TN, true_TN)
    assert none.value == none.parts["auroc"]
    assert "location_auroc" not in none.parts


def test_parts_are_those_of_the_organisers_script():
    """evaluate.py: 1 - sum(|gt - out|) / (rows * locations), over all locations."""
    pred_TN, true_TN = data(3)
    parts = get_metric(NAME, min_positives=3).fit(true_TN).score(pred_TN, true_TN).parts
    out_TN = (pred_TN[1:] >= 0.5).astype(float)
    wrong = sum(abs(g - o) for g, o in zip(true_TN[1:].ravel(), out_TN.ravel(), strict=True))
    assert parts["location_accuracy"] == pytest.approx(1 - wrong / (60 * 3))
    assert parts["all_zero_accuracy"] == pytest.approx(1 - true_TN[1:].sum() / (60 * 3))
    assert parts["auroc"] == pytest.approx(roc_auc_score(true_TN[0], pred_TN[0]))
    kept = [t for t in (1, 2, 3) if true_TN[t].sum() >= 3]
    each = [roc_auc_score(true_TN[t], pred_TN[t]) for t in kept]
    assert parts["location_auroc"] == pytest.approx(np.mean(each))
    zeros = get_metric(NAME).fit(true_TN).score(0 * pred_TN, true_TN).parts
    assert zeros["location_accuracy"] == zeros["all_zero_accuracy"]


def test_all_zeros_score_in_the_challenges_training_set_what_was_published_for_models():
    """681 positive locations of 1127 patients and 21 locations: 0.9712."""
    true_TN = np.zeros((22, 1127), dtype=np.float32)
    true_TN[1:].reshape(-1)[:681] = true_TN[0, :500] = 1
    parts = get_metric(NAME).fit(true_TN).score(0 * true_TN, true_TN).parts
    assert round(parts["all_zero_accuracy"], 4) == 0.9712


@pytest.mark.parametrize("presence", [0, 1])
def test_a_fold_whose_presence_lacks_a_class_is_named(presence):
    pred_TN, true_TN = data(4)
    fold_N = np.repeat([0, 1], 30)
    true_TN[0, 30:] = presence
    fitted = get_metric(NAME, min_positives=3).fit(true_TN)
    assert not fitted.defined(true_TN[:, 30:]).any()
    assert fitted.weights(true_TN[:, 30:]).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=f"fold 1: {NAME} is undefined: the first target lacks"):
        fold_scores(fitted, pred_TN, true_TN, fold_N)
    (fault,) = check_truth(fitted, true_TN, fold_N, NAMES)
    assert f"{NAME} is undefined in fold 1: there the first target lacks a positive" in fault


def test_weights_of_outputs_say_the_value_of_every_metric_of_ranking():
    pred_TN, true_TN = data(5, shares=(0.5, 0.4, 0.3, 0.2))
    true_TN[3] = 0
    each_T = [roc_auc_score(t, p) for t, p in zip(true_TN[:3], pred_TN[:3], strict=True)]
    for name in ("auroc", NAME):
        fitted = get_metric(name).fit(true_TN)
        weight_T = fitted.weights(true_TN)
        assert weight_T.sum() == pytest.approx(1)
        assert weight_T[3] == 0
        expected = weight_T[:3] @ each_T
        assert fitted.score(pred_TN, true_TN).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"presence_weight": 1.2}, "a share from 0 to 1"),
        ({"presence_weight": True}, "a share from 0 to 1"),
        ({"min_positives": 0}, "a whole number of rows"),
        ({"min_positives": 2.5}, "a whole number of rows"),
        ({"multiclass": True}, "no argument 'multiclass'"),
    ],
)
def test_impossible_arguments_are_refused(args, message):
    with pytest.raises(UserError, match=message):
        get_metric(NAME, **args)


def test_what_is_no_probability_is_refused():
    pred_TN, true_TN = data(6)
    with pytest.raises(ValueError, match=r"needs \[0, 1\]"):
        get_metric(NAME).fit(true_TN).score(pred_TN * 2, true_TN)
