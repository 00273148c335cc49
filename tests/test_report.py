"""The report says what each number is, and why each member is in or out."""

import json

import numpy as np
import pytest

from ensemble.choose import choose
from ensemble.limits import Cost, Limits
from ensemble.show import show
from search.metrics import fold_scores
from spaces.errors import UserError
from tests.pools import METRICS, arrays, make_pool, metric_of, pool_for


@pytest.mark.parametrize("key", METRICS)
def test_every_metric_gets_a_whole_report_with_all_combiners(key, capsys):
    pool = pool_for(key)
    choice = choose(pool, compared=True)
    report = json.loads(json.dumps(choice.report, allow_nan=False))
    assert sum(report["weights"].values()) == pytest.approx(1)
    assert all(row["kind"] for row in report["scores"])
    kinds = {row["name"]: row for row in report["scores"]}
    assert kinds["OOF minus nested"]["score"] == pytest.approx(
        kinds["ensemble, OOF"]["score"] - kinds["ensemble, nested"]["score"]
    )
    used = [row["method"] for row in report["comparison"] if row.get("used")]
    assert used == ["greedy"]
    assert sum(r.get("simplest_within_one_standard_error", False)
               for r in report["comparison"]) == 1  # fmt: skip
    assert all(row.get("refused") or "nested" in row for row in report["comparison"])
    named = {m["name"] for m in report["members"]} | {d["name"] for d in report["discarded"]}
    assert named == {m.name for m in pool.members}
    show(choice)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80


def test_a_members_own_score_is_its_trial_score():
    pool = pool_for("f1")
    report = choose(pool).report
    for row in report["members"] + report["discarded"]:
        (member,) = (m for m in pool.members if m.name == row["name"])
        scores = fold_scores(pool.metric, member.pred_TN, pool.true_TN, pool.fold_N)
        assert row["score"] == pytest.approx(np.mean([s.value for s in scores]), abs=1e-6)


def test_the_gain_is_what_the_score_loses_without_the_member():
    pool = pool_for("pearson", members=6, noise=2.0)
    choice = choose(pool)
    for row in choice.report["members"]:
        rest = {n: w for n, w in choice.report["weights"].items() if n != row["name"]}
        named = {m.name: m.pred_TN for m in pool.members}
        mean_TN = sum(w * np.float64(named[n]) for n, w in rest.items())
        scores = fold_scores(pool.metric, mean_TN, pool.true_TN, pool.fold_N)
        without = np.mean([s.value for s in scores])
        assert row["gain"] == pytest.approx(choice.score - without, abs=1e-6)


def test_a_twin_and_a_member_that_brings_nothing_are_named_with_the_reason():
    preds, true_TN, fold_N = arrays("regression", members=2)
    noise_TN = np.float32(np.random.default_rng(9).normal(size=true_TN.shape))
    pool = make_pool([*preds, preds[0] + 1e-4 * noise_TN, noise_TN], true_TN, fold_N,
                     *metric_of("pearson"))  # fmt: skip
    reasons = {row["name"]: row["reason"] for row in choose(pool).report["discarded"]}
    twins = [reason for name, reason in reasons.items() if name in "ac"]
    assert len(twins) == 1 and "twin of" in twins[0]
    assert "changes the OOF score by -" in reasons["d"]


def test_what_the_limits_leave_out_is_said():
    costs = [Cost(family="x", mb=10.0 + 100 * (m == 0)) for m in range(5)]
    pool = pool_for("pearson", noise=2.0, costs=costs)
    choice = choose(pool, limits=Limits(max_mb=25))
    reasons = {row["name"]: row["reason"] for row in choice.report["discarded"]}
    assert reasons["a"] == "exceeds a limit alone"
    assert any("no room" in reason for reason in reasons.values())
    assert sum(m["mb"] for m in choice.report["members"]) <= 25


def test_the_curve_grows_with_members_and_ends_at_the_ensemble():
    choice = choose(pool_for("gene_expr", members=8, noise=2.0))
    curve = choice.report["curve"]
    assert [row["members"] for row in curve] == list(range(1, len(curve) + 1))
    optimistic = [row["optimistic"] for row in curve]
    assert optimistic == sorted(optimistic)
    ends = choice.report["scores"][1]["score"]
    assert curve[-1]["nested"] == pytest.approx(ends, abs=0.02)


def test_auto_says_which_combiner_it_took():
    report = choose(pool_for("auroc"), method="auto").report
    assert report["method"] == "auto"
    (simplest,) = (r for r in report["comparison"] if r.get("simplest_within_one_standard_error"))
    assert report["combiner"] == simplest["method"]


@pytest.mark.parametrize("key", ["pearson", "auroc", "log_loss", "khd", "mae"])
def test_a_single_member_is_the_ensemble(key):
    choice = choose(pool_for(key, members=1), compared=True)
    assert choice.report["weights"] == {"a": 1.0}
    assert choice.report["scores"][3]["score"] == pytest.approx(0, abs=1e-9)


def test_a_method_that_cannot_work_is_refused_with_the_reason():
    with pytest.raises(UserError, match="--method hard_vote cannot"):
        choose(pool_for("rmse"), method="hard_vote")
