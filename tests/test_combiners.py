"""Combiners: the contract that all of them keep, and the right answers of each.

Shapes: M members, m members of a blend, T outputs, N rows, K folds.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners import COMBINERS, get_combiner, simplex
from ensemble.combiners.convex import convex_weights
from ensemble.combiners.logistic import LogisticStack
from ensemble.combiners.moments import output_moments
from ensemble.combiners.prefix import first_best, sizes
from ensemble.combiners.simplex import simplex_weights
from ensemble.combiners.strength import best_strength
from ensemble.limits import Cost, Limits
from search.metrics import get_metric
from spaces.errors import UserError
from tests.pools import arrays, make_pool, metric_of, pool_for

ORDER = (
    "best_single", "top_k", "mean_all", "weighted", "rank_mean", "geometric", "median",
    "hard_vote", "greedy", "convex", "per_output", "stacking",
)  # fmt: skip
KEYS = (
    "gene_expr", "rmse", "log_loss", "log_loss-classes", "auroc-labels", "auroc-classes", "khd",
    "average_precision",
)  # fmt: skip
REFUSED = {  # by the metric's key
    "gene_expr": {"rank_mean", "geometric", "hard_vote"},
    "rmse": {"rank_mean", "geometric", "hard_vote"},
    "log_loss": {"rank_mean", "per_output"},
    "log_loss-classes": {"rank_mean", "per_output"},
    "auroc-labels": set(),
    "auroc-classes": {"per_output"},
    "khd": {"rank_mean", "per_output"},
    "average_precision": set(),
}
CASES = [
    (combiner.name, key)
    for combiner in COMBINERS
    for key in KEYS
    if combiner.name not in REFUSED[key]
]


def choose(name, pool, folds=None, limits=None):
    bench = Bench(pool, limits)
    return get_combiner(name).choose(bench, bench.folds if folds is None else folds)


def applied(blend, pool):
    """Its predictions for all rows."""
    return blend.apply([pool.members[m].pred_TN for m in blend.members])


def same_blend(a, b):
    assert (a.method, a.members, a.weights) == (b.method, b.members, b.weights)
    for name in ("coef_mT", "intercept_T", "quantiles_mTQ"):
        first, second = getattr(a, name), getattr(b, name)
        assert (first is None) == (second is None)
        if first is not None:
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("name", "key"), CASES)
class TestContract:
    """What every combiner keeps, for every task type that it takes."""

    def test_a_blend_names_its_method_and_its_shares_sum_to_one(self, name, key):
        pool = pool_for(key)
        blend = choose(name, pool)
        assert (blend.method, blend.task_type) == (name, pool.task_type)
        assert min(blend.weights) >= 0
        assert sum(blend.weights) == pytest.approx(1)
        assert len(set(blend.members)) == len(blend.members) == len(blend.weights)
        assert list(blend.weights) == sorted(blend.weights, reverse=True)

    def test_it_chooses_the_same_every_time(self, name, key):
        same_blend(choose(name, pool_for(key)), choose(name, pool_for(key)))

    def test_predictions_are_finite_and_fit_the_metric(self, name, key):
        pool = pool_for(key)
        pred_TN = applied(choose(name, pool), pool)
        assert pred_TN.dtype == np.float32
        assert np.isfinite(pred_TN).all()
        if pool.metric.probabilities:
            assert pred_TN.min() >= 0
            assert pred_TN.max() <= 1
        if key == "log_loss-classes":
            np.testing.assert_allclose(pred_TN.sum(axis=0), 1, atol=1e-5)

    def test_rows_of_other_folds_change_nothing(self, name, key):
        pool, (preds, true_TN, fold_N) = pool_for(key, folds=4), arrays(metric_of(key)[1], folds=4)
        other = np.flatnonzero(fold_N == 3)
        moved = np.random.default_rng(1).permutation(other)
        true_TN[:, other] = true_TN[:, moved]  # the spread of all truth is the unit of errors
        for pred_TN in preds:
            pred_TN[:, other] = pred_TN[:, other][:, ::-1] ** 2
        scrambled = replace(
            pool,
            true_TN=true_TN,
            members=tuple(replace(m, pred_TN=p) for m, p in zip(pool.members, preds, strict=True)),
        )
        same_blend(choose(name, pool, (0, 1, 2)), choose(name, scrambled, (0, 1, 2)))

    def test_limits_hold(self, name, key):
        costs = [Cost(family="xxyyy"[m], mb=10.0 + m, ms=1.0) for m in range(5)]
        pool = pool_for(key, costs=costs)
        blend = choose(name, pool, limits=Limits(max_members=2, max_per_family=1, max_mb=24))
        assert len(blend.members) <= 2
        assert len({costs[m].family for m in blend.members}) == len(blend.members)
        assert sum(costs[m].mb for m in blend.members) <= 24

    def test_a_saved_blend_predicts_the_same_bytes(self, name, key, tmp_path):
        pool = pool_for(key)
        blend = choose(name, pool)
        blend.save(tmp_path / "blend.safetensors")
        loaded = Blend.load(tmp_path / "blend.safetensors")
        same_blend(blend, loaded)
        assert applied(loaded, pool).tobytes() == applied(blend, pool).tobytes()

    def test_one_member_stays_that_member(self, name, key):
        pool = pool_for(key, members=1)
        blend = choose(name, pool)
        assert (blend.members, blend.weights) == ((0,), (1.0,))
        own_TN, pred_TN = pool.members[0].pred_TN, applied(blend, pool)
        if name == "hard_vote":
            top_N = own_TN.argmax(axis=0)
            votes_TN = np.arange(len(own_TN))[:, None] == top_N
            expected = votes_TN if pool.task_type == "multiclass" else own_TN >= 0.5
            np.testing.assert_array_equal(pred_TN, expected)
        elif name in ("rank_mean", "stacking"):  # another scale, the same order
            if blend.link == "sigmoid_normalise":
                assert (blend.coef_mT > 0).all()
                return
            for own_N, new_N in zip(own_TN, pred_TN, strict=True):
                assert (np.diff(new_N[np.argsort(own_N)]) >= 0).all()
        else:
            np.testing.assert_allclose(pred_TN, own_TN, rtol=1e-5, atol=2e-6)

    def test_one_fold_is_enough(self, name, key):
        pool = pool_for(key)
        for folds in ((1,), (2,)):
            assert np.isfinite(applied(choose(name, pool, folds), pool)).all()

    def test_it_is_no_worse_than_the_worst_member(self, name, key):
        pool = pool_for(key, rows=150)
        bench = Bench(pool)
        blend = get_combiner(name).choose(bench, bench.folds)
        if name == "hard_vote":  # all or nothing: a probability it is not
            return
        singles = bench.engine.step(np.zeros(5, dtype=np.int64), bench.folds)
        assert bench.score(blend, bench.folds) >= singles.min()

    def test_twins_constants_and_perfect_members_do_no_harm(self, name, key):
        preds, true_TN, fold_N = arrays(metric_of(key)[1], members=2)
        metric, task_type = metric_of(key)
        constant_TN = np.full_like(true_TN, 1 / len(true_TN))
        preds = [*preds, preds[0], constant_TN, true_TN]
        pool = make_pool(preds, true_TN, fold_N, metric, task_type)
        assert np.isfinite(applied(choose(name, pool), pool)).all()
        alone = make_pool([constant_TN, constant_TN], true_TN, fold_N, metric, task_type)
        assert np.isfinite(applied(choose(name, alone), alone)).all()


class TestRegistry:
    def test_the_order_is_that_of_simplicity(self):
        assert tuple(combiner.name for combiner in COMBINERS) == ORDER

    def test_each_says_in_few_words_what_it_does(self):
        for combiner in COMBINERS:
            assert 0 < len(combiner.what) <= 45
            assert not combiner.what.endswith(".")

    def test_an_unknown_name_is_refused_with_near_ones(self):
        with pytest.raises(UserError, match="unknown; near names: greedy"):
            get_combiner("gredy")

    @pytest.mark.parametrize("key", KEYS)
    def test_what_cannot_work_is_left_out_with_its_reason(self, key):
        pool = pool_for(key)
        names = [combiner.name for combiner in COMBINERS if combiner.refuses(pool) is None]
        assert names == [name for name in ORDER if name not in REFUSED[key]]
        for name in REFUSED[key]:
            reason = get_combiner(name).refuses(pool)
            assert reason
            assert not reason.endswith(".")

    def test_predictions_outside_0_and_1_are_refused_where_logits_are_taken(self):
        preds, true_TN, fold_N = arrays("binary")
        preds[1] = preds[1] * 3 - 1
        pool = make_pool(preds, true_TN, fold_N, get_metric("auroc"), "binary")
        for name in ("geometric", "hard_vote", "stacking"):
            assert "member b go from -" in get_combiner(name).refuses(pool)
        assert get_combiner("rank_mean").refuses(pool) is None


class TestPrefix:
    @given(st.integers(1, 500))
    def test_sizes_ascend_from_one_to_all_and_are_few(self, members):
        tried = sizes(members)
        assert tried == sorted(set(tried))
        assert (tried[0], tried[-1]) == (1, members)
        assert len(tried) <= 35

    def test_the_first_of_equals_is_taken(self):
        assert first_best([0.1, 0.5, 0.5 + 1e-12, 0.2]) == 1

    @pytest.mark.parametrize("name", ["rank_mean", "geometric", "median", "hard_vote"])
    @pytest.mark.parametrize("key", ["auroc-labels", "auroc-classes", "khd"])
    def test_k_is_the_one_whose_blend_scores_best(self, name, key):
        """Against blends of each length, applied and scored by the metric."""
        if name in REFUSED[key]:
            return
        pool = pool_for(key, members=6, rows=90)
        bench = Bench(pool)
        blend = get_combiner(name).choose(bench, bench.folds)
        order = bench.budget.fill(bench.candidates(bench.folds))
        if name == "rank_mean":  # quantiles of members left out are not in the blend
            all_pool = choose("mean_all", pool).members
            assert set(blend.members) <= set(all_pool)
            at_mTQ = np.stack([_quantiles(pool.members[m].pred_TN) for m in order])
        scores = []
        for k in range(1, len(order) + 1):
            shorter = replace(blend, members=order[:k], weights=(1 / k,) * k)
            if name == "rank_mean":
                shorter = replace(shorter, quantiles_mTQ=at_mTQ[:k])
            scores.append(_score(pool, applied(shorter, pool)))
        assert len(blend.members) == first_best(scores) + 1


def _quantiles(pred_TN):
    return np.sort(pred_TN.astype(float), axis=1)


def _score(pool, pred_TN):
    from search.metrics import best_thresholds

    thresholds = None
    if pool.metric.fits_thresholds:
        thresholds = best_thresholds(pool.metric, pred_TN, pool.true_TN, pool.fold_N)
    return np.mean([
        pool.metric.score(pred_TN[:, at], pool.true_TN[:, at], thresholds).value
        for at in (pool.fold_N == fold for fold in range(pool.folds))
    ])  # fmt: skip


class TestRankMean:
    def test_it_mends_members_on_different_scales(self):
        """A member whose probabilities are squeezed next to 0 counts as much as the others."""
        preds, true_TN, fold_N = arrays("binary", members=2, rows=600, noise=0.8)
        preds[1] = preds[1] ** 9
        pool = make_pool(preds, true_TN, fold_N, get_metric("auroc"), "binary")
        bench = Bench(pool)
        scores = {name: bench.score(get_combiner(name).choose(bench, bench.folds), bench.folds)
                  for name in ("best_single", "mean_all", "rank_mean")}  # fmt: skip
        assert scores["rank_mean"] > max(scores["best_single"], scores["mean_all"]) + 0.005

    def test_a_monotone_change_of_a_member_changes_nothing(self):
        preds, true_TN, fold_N = arrays("binary", members=3)
        changed = [preds[0], np.sqrt(preds[1]), preds[2] ** 2]
        before, after = (
            make_pool(p, true_TN, fold_N, get_metric("auroc"), "binary") for p in (preds, changed)
        )
        pred_TN, changed_TN = (applied(choose("rank_mean", pool), pool) for pool in (before, after))
        np.testing.assert_allclose(pred_TN, changed_TN, atol=1e-5)

    def test_it_needs_no_more_than_1001_quantiles(self):
        pool = pool_for("auroc", rows=1500)
        assert choose("rank_mean", pool).quantiles_mTQ.shape[1:] == (1, 1001)


class TestVotes:
    def test_the_median_ignores_a_broken_member(self):
        preds, true_TN, fold_N = arrays("regression", members=5, rows=200)
        # Broken in different rows, so that each alone looks best by turns.
        rng = np.random.default_rng(0)
        for pred_TN in preds:
            pred_TN[:, rng.random(200) < 0.1] += 100
        pool = make_pool(preds, true_TN, fold_N, get_metric("rmse"), "regression")
        bench = Bench(pool)
        mean, median = (get_combiner(n).choose(bench, bench.folds) for n in ("mean_all", "median"))
        assert len(median.members) >= 3
        assert -bench.score(median, bench.folds) < -bench.score(mean, bench.folds) / 2

    def test_medians_of_classes_are_made_to_sum_to_one(self):
        pool = pool_for("log_loss-classes", members=5, noise=0.3, rows=200)
        blend = choose("median", pool)
        assert len(blend.members) >= 3
        np.testing.assert_allclose(applied(blend, pool).sum(axis=0), 1, atol=1e-5)

    def test_a_vote_counts_heads(self):
        true_TN = np.array([[0, 1, 0, 1, 0, 1]], dtype=np.float32)
        right = np.where(true_TN == 1, 0.6, 0.4).astype(np.float32)
        preds = [right.copy() for _ in range(3)]
        for member, row in enumerate((0, 1, 2)):  # each surely wrong once
            preds[member][0, row] = 1 - true_TN[0, row]
        fold_N = np.array([0, 0, 0, 1, 1, 1])
        metric = get_metric("accuracy", threshold=0.5)
        pool = make_pool(preds, true_TN, fold_N, metric, "binary")
        blend = choose("hard_vote", pool)
        expected = [[1 / 3, 2 / 3, 1 / 3, 1, 0, 1]]
        np.testing.assert_allclose(applied(blend, pool), expected, atol=1e-6)
        assert Bench(pool).score(blend, (0, 1)) == 1


class TestGeometric:
    def test_it_is_exact_where_members_see_different_evidence(self):
        """Two halves of the evidence with a fair prior: their odds multiply. The mean of logits
        orders rows as their product does; the mean of probabilities does not."""
        rng = np.random.default_rng(0)
        true_N = rng.integers(0, 2, 4000)
        logit_2N = 2 * (true_N - 0.5) * 1.5 + np.sqrt(1.5 * 2) * rng.normal(size=(2, 4000))
        preds = [(1 / (1 + np.exp(-z)))[None].astype(np.float32) for z in logit_2N]
        true_TN, fold_N = true_N[None].astype(np.float32), np.arange(4000) % 3
        pool = make_pool(preds, true_TN, fold_N, get_metric("auroc"), "binary")
        bench = Bench(pool)
        geometric, mean = (get_combiner(n).choose(bench, bench.folds)
                           for n in ("geometric", "mean_all"))  # fmt: skip
        assert len(geometric.members) == 2
        assert bench.score(geometric, bench.folds) > bench.score(mean, bench.folds)
        expected = 1 / (1 + np.exp(-logit_2N.mean(axis=0)))
        np.testing.assert_allclose(applied(geometric, pool)[0], expected, atol=1e-5)


class TestSimplex:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31), st.floats(1e-3, 3))
    def test_without_a_pull_it_is_non_negative_least_squares(self, members, outputs, seed, ridge):
        rng = np.random.default_rng(seed)
        errors = rng.normal(size=(outputs, 40, 1)) + rng.normal(size=(outputs, 40, members))
        quad = errors.transpose(0, 2, 1) @ errors / 40 + ridge * np.eye(members)
        w_Tm = simplex_weights(quad, np.zeros((outputs, members)))
        for quad_mm, w_m in zip(quad, w_Tm, strict=True):
            factor = np.linalg.cholesky(quad_mm)
            u_m, _ = nnls(factor.T, np.linalg.solve(factor, np.ones(members)))
            np.testing.assert_allclose(w_m, u_m / u_m.sum(), atol=1e-7)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 6), st.integers(0, 2**31))
    def test_no_support_does_better(self, members, seed):
        """Against the best of all subsets, each solved with sum 1; from any start."""
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(members, members))
        quad, pull = root @ root.T + 0.01 * np.eye(members), rng.normal(size=members)
        start = rng.dirichlet(np.ones(members) * 0.3)
        w_m = simplex_weights(quad[None], pull[None], start[None])[0]
        assert w_m.min() >= 0
        assert w_m.sum() == pytest.approx(1)
        best = np.inf
        for size in range(1, members + 1):
            for inside in map(list, combinations(range(members), size)):
                lhs = np.block([[quad[np.ix_(inside, inside)], np.ones((size, 1))],
                                [np.ones((1, size)), np.zeros((1, 1))]])  # fmt: skip
                solved = np.linalg.solve(lhs, np.append(pull[inside], 1))[:size]
                if (solved >= 0).all():
                    full = np.zeros(members)
                    full[inside] = solved
                    best = min(best, full @ quad @ full / 2 - pull @ full)
        assert w_m @ quad @ w_m / 2 - pull @ w_m == pytest.approx(best, abs=1e-7)

    def test_careful_steps_alone_find_the_same(self, monkeypatch):
        rng = np.random.default_rng(1)
        root = rng.normal(size=(30, 8, 8))
        quad, pull = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(8), rng.normal(size=(30, 8))
        bold = simplex_weights(quad, pull)
        monkeypatch.setattr(simplex, "_BOLD", 0)
        np.testing.assert_allclose(simplex_weights(quad, pull), bold, atol=1e-9)

    def test_many_outputs_are_what_each_is_alone(self):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(50, 6, 6))
        quad, pull = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(6), rng.normal(size=(50, 6))
        together = simplex_weights(quad, pull)
        alone = [simplex_weights(q[None], p[None])[0] for q, p in zip(quad, pull, strict=True)]
        np.testing.assert_allclose(together, alone, atol=1e-12)


class TestStrength:
    def test_the_strongest_of_equals_is_taken(self):
        assert best_strength((3, 2, 1), (0, 1), lambda others, fold: np.array([1, 0.5, 0.5])) == 2

    def test_one_fold_takes_the_strongest(self):
        assert best_strength((3, 2, 1), (4,), lambda others, fold: np.array([1, 0, 0])) == 3

    def test_each_fold_is_left_out_once(self):
        seen = []

        def losses(others, fold):
            seen.append((tuple(others), fold))
            return np.zeros(2)

        best_strength((2, 1), (0, 2, 5), losses)
        assert seen == [((2, 5), 0), ((0, 5), 2), ((0, 2), 5)]


class TestConvex:
    def pool(self, rows=3000, weights=(0.5, 0.3, 0.2, 0), outputs=3, per_output=False):
        """The truth is a weighted mean of members' predictions, and a little noise."""
        rng = np.random.default_rng(0)
        preds = [rng.normal(size=(outputs, rows)).astype(np.float32) for _ in weights]
        weight_MT = np.array(weights, dtype=float)
        weight_MT = weight_MT if per_output else np.tile(weight_MT[:, None], outputs)
        true_TN = sum(w[:, None] * p for w, p in zip(weight_MT, preds, strict=True))
        true_TN = (true_TN + 0.01 * rng.normal(size=(outputs, rows))).astype(np.float32)
        return make_pool(preds, true_TN, np.arange(rows) % 3, get_metric("rmse"), "regression")

    def test_known_weights_are_recovered(self):
        blend = choose("convex", self.pool())
        assert blend.members == (0, 1, 2)
        np.testing.assert_allclose(blend.weights, (0.5, 0.3, 0.2), atol=0.02)

    def test_it_is_the_least_squared_error_but_for_the_pull(self):
        bench = Bench(self.pool(weights=(0.6, 0.4, 0.0, 0.0)))
        gram_MM = bench.errors.gram(bench.folds)
        weight_m = convex_weights(bench, range(4), bench.folds)
        least = minimize(lambda w: w @ gram_MM @ w, np.full(4, 0.25), bounds=[(0, 1)] * 4,
                         constraints={"type": "eq", "fun": lambda w: w.sum() - 1})  # fmt: skip
        assert weight_m @ gram_MM @ weight_m <= least.fun * 1.02 + 1e-4

    def test_one_fold_alone_pulls_towards_equal_weights(self):
        pool = self.pool()
        bench = Bench(pool)
        spread = [np.ptp(convex_weights(bench, range(4), folds)) for folds in ((0,), (0, 1, 2))]
        assert spread[0] < spread[1]

    def test_within_the_limits_the_heaviest_are_weighed_again(self):
        pool = self.pool()
        blend = choose("convex", pool, limits=Limits(max_members=2))
        assert blend.members == (0, 1)
        bench = Bench(pool)
        expected = convex_weights(bench, (0, 1), bench.folds)
        np.testing.assert_allclose(blend.weights, expected, atol=1e-12)

    def test_tiny_weights_are_dropped(self):
        blend = choose("convex", self.pool(weights=(0.6, 0.396, 0.004)))
        assert blend.members == (0, 1)


class TestPerOutput:
    weights = ((0.9, 0.1, 0.5), (0.1, 0.9, 0.5))

    def test_each_output_gets_its_own_weights(self):
        pool = TestConvex().pool(weights=self.weights, per_output=True)
        blend = choose("per_output", pool)
        coef_MT = np.zeros((2, 3))
        coef_MT[list(blend.members)] = blend.coef_mT
        np.testing.assert_allclose(coef_MT, self.weights, atol=0.05)
        np.testing.assert_allclose(blend.coef_mT.sum(axis=0), 1)
        bench = Bench(pool)
        convex = get_combiner("convex").choose(bench, bench.folds)
        assert -bench.score(blend, bench.folds) < -bench.score(convex, bench.folds) / 3

    def test_outputs_alike_keep_the_common_weights(self):
        """Noise differs between outputs, not what is best: the pull is strong."""
        pool = TestConvex().pool(rows=60, weights=(0.8, 0.2), outputs=8)
        blend = choose("per_output", pool)
        bench = Bench(pool)
        common_m = convex_weights(bench, blend.members, bench.folds)
        assert common_m[0] > 0.7
        assert np.abs(blend.coef_mT - common_m[:, None]).max() < 0.05

    def test_it_solves_its_own_equation(self):
        """Against scipy's minimiser of squared error + pull, for one output and one fold."""
        pool = pool_for("rmse", members=3, noise=0.5)
        bench = Bench(pool)
        blend = get_combiner("per_output").choose(bench, (1,))
        common_m = convex_weights(bench, blend.members, (1,))
        at, t = pool.fold_N == 1, 2
        error_mn = np.stack([np.float64(bench.preds[m][t, at]) - pool.true_TN[t, at]
                             for m in blend.members])  # fmt: skip
        gram_mm = error_mn @ error_mn.T / at.sum()
        pull = 10 * np.trace(gram_mm) / 3  # one fold: the strongest
        least = minimize(lambda w: w @ gram_mm @ w + pull * ((w - common_m) ** 2).sum(),
                         common_m, bounds=[(0, 1)] * 3, tol=1e-12,
                         constraints={"type": "eq", "fun": lambda w: w.sum() - 1})  # fmt: skip
        np.testing.assert_allclose(blend.coef_mT[:, t], least.x, atol=1e-4)

    def test_products_of_errors_are_those_of_the_predictions(self):
        pool = pool_for("pearson", members=3)
        pool = replace(pool, fold_N=np.repeat([0, 1, 2], (12, 10, 38)))
        bench = Bench(pool)
        moments = output_moments(bench, (2, 0), (0, 2))
        for folds in ((0,), (2,), (0, 2)):
            expected = []
            for fold in folds:
                at = pool.fold_N == fold
                error_mTn = np.stack([np.float64(bench.preds[m][:, at]) - pool.true_TN[:, at]
                                      for m in (2, 0)])  # fmt: skip
                expected.append(np.einsum("mtn,ltn->tml", error_mTn, error_mTn) / at.sum())
            np.testing.assert_allclose(moments.error_gram(folds), np.mean(expected, axis=0))


class TestStacking:
    def test_it_undoes_a_bias_that_all_members_share(self):
        preds, true_TN, fold_N = arrays("regression", members=3, rows=300)
        preds = [np.float32(0.4 * p + 7) for p in preds]
        pool = make_pool(preds, true_TN, fold_N, get_metric("rmse"), "regression")
        bench = Bench(pool)
        stacked, single = (get_combiner(n).choose(bench, bench.folds)
                           for n in ("stacking", "best_single"))  # fmt: skip
        assert -bench.score(stacked, bench.folds) < 1
        assert -bench.score(single, bench.folds) > 3

    def test_ridge_solves_its_own_equation(self):
        """Against scipy's minimiser of squared error + pull, for one output and one fold."""
        pool = pool_for("rmse", members=3, rows=40, folds=2)
        bench = Bench(pool)
        blend = get_combiner("stacking").choose(bench, (1,))
        at = pool.fold_N == 1
        x_mn = np.stack([np.float64(bench.preds[m][2, at]) for m in blend.members])
        y_n = np.float64(pool.true_TN[2, at])
        order = bench.budget.fill(bench.candidates((1,)))
        common = dict(zip(order, convex_weights(bench, order, (1,)), strict=True))
        goal_m = np.array([common[m] for m in blend.members])
        pull = 10 * x_mn.var(axis=1).mean()  # one fold: the strongest

        def cost(v):
            return (
                np.mean((y_n - v[:-1] @ x_mn - v[-1]) ** 2) + pull * ((v[:-1] - goal_m) ** 2).sum()
            )

        found = minimize(cost, np.append(goal_m, 0.0), tol=1e-14).x
        np.testing.assert_allclose(blend.coef_mT[:, 2], found[:-1], atol=1e-4)
        assert blend.intercept_T[2] == pytest.approx(found[-1], abs=1e-3)

    def test_logistic_solves_its_own_equation(self):
        preds, true_TN, _ = arrays("multilabel", members=3)
        fold_N = np.repeat([0, 1, 2], (12, 10, 38))  # folds count alike, whatever their size
        pool = make_pool(preds, true_TN, fold_N, get_metric("log_loss"), "multilabel")
        bench = Bench(pool)
        goal_m, strength = np.array([0.5, 0.3, 0.2]), 0.1
        theta_e = LogisticStack(bench, (0, 1, 2)).path((0, 2), goal_m, [3.0, strength])[1][1]
        at = pool.fold_N != 1
        share_n = 1 / (2 * np.bincount(pool.fold_N)[pool.fold_N[at]])
        p_mn = np.stack([np.float64(p[1, at]) for p in bench.preds])
        x_mn, y_n = np.log(p_mn / (1 - p_mn)), pool.true_TN[1, at]
        prior, spread = y_n @ share_n, np.mean(x_mn**2 @ share_n - (x_mn @ share_n) ** 2)
        pull = strength * prior * (1 - prior) * spread

        def cost(v):
            z = v[:-1] @ x_mn + v[-1]
            return (np.logaddexp(0, z) - y_n * z) @ share_n + pull * (
                (v[:-1] - goal_m) ** 2
            ).sum() / 2

        found = minimize(cost, np.append(goal_m, 0.0), tol=1e-12).x
        np.testing.assert_allclose(theta_e, found, atol=1e-3)

    @pytest.mark.parametrize("key", ["log_loss", "log_loss-labels", "log_loss-classes"])
    def test_it_calibrates_members_that_are_too_sure(self, key):
        metric, task_type = metric_of(key)
        preds, true_TN, fold_N = arrays(task_type, members=2, rows=400)
        sure = []
        for p in preds:
            odds = (p / (1 - p)) ** 3
            sure.append(np.float32(odds / (1 + odds)))
            if task_type == "multiclass":
                sure[-1] = np.float32(p**3 / (p**3).sum(axis=0))
        pool = make_pool(sure, true_TN, fold_N, metric, task_type)
        bench = Bench(pool)
        stacked, mean, single = (get_combiner(n).choose(bench, bench.folds)
                                 for n in ("stacking", "mean_all", "best_single"))  # fmt: skip
        best = max(bench.score(mean, bench.folds), bench.score(single, bench.folds))
        assert bench.score(stacked, bench.folds) > best

    def test_a_member_that_points_the_wrong_way_counts_negative(self):
        preds, true_TN, fold_N = arrays("binary", members=2, rows=400, noise=0.7)
        preds[1] = 1 - preds[1]
        pool = make_pool(preds, true_TN, fold_N, get_metric("log_loss"), "binary")
        blend = choose("stacking", pool)
        assert blend.coef_mT[blend.members.index(1), 0] < 0

    def test_a_class_that_is_absent_keeps_the_common_weights(self):
        preds, true_TN, fold_N = arrays("multilabel", members=2)
        true_TN[1] = 0
        pool = make_pool(preds, true_TN, fold_N, get_metric("log_loss"), "multilabel")
        blend = choose("stacking", pool)
        assert blend.intercept_T[1] == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(blend.coef_mT[:, 1].sum(), 1, atol=1e-6)


class TestMemory:
    def test_blocks_change_nothing(self, monkeypatch):
        from ensemble.combiners import logistic, moments, prefix

        names = {"rmse": ("median", "per_output", "stacking"),
                 "auroc-labels": ("rank_mean", "geometric", "hard_vote", "stacking")}  # fmt: skip
        whole = {(key, n): choose(n, pool_for(key)) for key in names for n in names[key]}
        for module in (logistic, moments, prefix):
            monkeypatch.setattr(module, "_VALUES", 50)
        for (key, n), blend in whole.items():
            blocked = choose(n, pool_for(key))
            assert blocked.members == blend.members
            np.testing.assert_allclose(
                applied(blocked, pool_for(key)), applied(blend, pool_for(key)), rtol=1e-5, atol=1e-6
            )
