"""Blends: what `apply` computes, against the formula written out, and what a file keeps.

Shapes: m members, T outputs, N rows, Q quantiles.
"""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ensemble import blend as blends
from ensemble.blend import Blend, Post
from ensemble.transforms import CLIP, linked, ranked, running_medians, temper
from spaces.errors import UserError

WEIGHTS = (0.5, 0.3, 0.2)


def probabilities(outputs=3, rows=40, seed=0, members=3, one=False):
    """Members' predictions; with `one` they sum to 1 over outputs."""
    rng = np.random.default_rng(seed)
    preds = rng.random((members, outputs, rows)) ** 2
    if one:
        preds /= preds.sum(axis=1, keepdims=True)
    return list(preds.astype(np.float32))


def make(task_type="multilabel", **how):
    return Blend(
        **{"method": "test", "task_type": task_type, "members": (4, 0, 7), "weights": WEIGHTS} | how
    )


def some_blends():
    """A blend of every transform, link and reduction, and with everything that may be fitted."""
    coef_mT = np.array([[0.5, 1.2, 0.1], [0.3, -0.4, 0.1], [0.2, 0.3, 0.8]])
    quantiles = np.sort(np.random.default_rng(1).random((3, 3, 11)), axis=2)
    return {
        "mean": make(),
        "geometric": make(transform="logit", link="sigmoid"),
        "geometric classes": make("multiclass", transform="log", link="softmax"),
        "rank": make(transform="rank", quantiles_mTQ=quantiles),
        "vote": make(transform="vote"),
        "vote classes": make("multiclass", transform="vote"),
        "median": make(reduce="median"),
        "median classes": make("multiclass", reduce="median", link="normalise"),
        "per output": make(coef_mT=coef_mT),
        "common coefficients": make(coef_mT=coef_mT[:, :1]),
        "ridge": make("regression", coef_mT=coef_mT, intercept_T=np.array([0.1, -2, 0])),
        "logistic": make(
            transform="logit", coef_mT=coef_mT, intercept_T=np.ones(3), link="sigmoid"
        ),
        "logistic classes": make(
            "multiclass",
            transform="logit",
            coef_mT=coef_mT,
            intercept_T=np.array([0.1, -2, 0]),
            link="sigmoid_normalise",
        ),
        "cooler": make(post=Post(temperature=0.7, thresholds_T=np.array([0.1, 0.5, 0.7]))),
        "warmer classes": make("multiclass", post=Post(temperature=1.8)),
        "shrunk": make("regression", post=Post(shrink=0.9, mean_T=np.array([1.0, 2.0, 3.0]))),
    }


ALL = list(some_blends())


def expected(name, preds):
    """The same from formulas, row by row and output by output."""
    blend = some_blends()[name]
    out = np.empty(preds[0].shape)
    for n in range(out.shape[1]):
        p = [np.array([float(v) for v in pred[:, n]]) for pred in preds]
        out[:, n] = _expected_row(blend, name, p)
    return out


def _expected_row(blend, name, p):
    logit = [np.log(np.clip(q, CLIP, 1 - CLIP) / (1 - np.clip(q, CLIP, 1 - CLIP))) for q in p]
    mean = sum(w * q for w, q in zip(WEIGHTS, p, strict=True))
    if name in ("mean", "cooler", "warmer classes", "shrunk"):
        row = mean
    elif name == "geometric":
        row = 1 / (1 + np.exp(-sum(w * z for w, z in zip(WEIGHTS, logit, strict=True))))
    elif name == "geometric classes":
        row = np.prod([np.maximum(q, CLIP) ** w for w, q in zip(WEIGHTS, p, strict=True)], axis=0)
        row = row / row.sum()
    elif name == "rank":
        shares = [_share(q, at) for q, at in zip(p, blend.quantiles_mTQ, strict=True)]
        row = sum(w * s for w, s in zip(WEIGHTS, shares, strict=True))
    elif name == "vote":
        row = sum(w * (q >= 0.5) for w, q in zip(WEIGHTS, p, strict=True))
    elif name == "vote classes":
        row = sum(w * np.eye(3)[int(np.argmax(q))] for w, q in zip(WEIGHTS, p, strict=True))
    elif name == "median":
        row = np.array([sorted(values)[1] for values in zip(*p, strict=True)])
    elif name == "median classes":
        row = np.array([sorted(values)[1] for values in zip(*p, strict=True)])
        row = row / row.sum()
    else:
        coef = np.broadcast_to(blend.coef_mT, (3, 3))
        of = p if blend.transform == "identity" else logit
        row = np.array([sum(coef[m, t] * of[m][t] for m in range(3)) for t in range(3)])
        row = row + (0 if blend.intercept_T is None else blend.intercept_T)
        if name.startswith("logistic"):
            row = 1 / (1 + np.exp(-row))
        if name == "logistic classes":
            row = row / row.sum()
    if name == "cooler":
        row = row ** (1 / 0.7) / (row ** (1 / 0.7) + (1 - row) ** (1 / 0.7))
    if name == "warmer classes":
        row = row ** (1 / 1.8) / (row ** (1 / 1.8)).sum()
    if name == "shrunk":
        row = np.array([1.0, 2.0, 3.0]) * 0.1 + 0.9 * row
    return row


def _share(values_T, at_TQ):
    """Where each value stands among quantiles at distances of a tenth."""
    shares = []
    for value, at in zip(values_T, at_TQ, strict=True):
        above = int((at <= value).sum())
        if above in (0, len(at)):
            shares.append(0.0 if above == 0 else 1.0)
        else:
            low, high = at[above - 1], at[above]
            shares.append((above - 1 + (value - low) / (high - low)) / (len(at) - 1))
    return np.array(shares)


class TestApply:
    @pytest.mark.parametrize("name", ALL)
    def test_it_is_the_formula(self, name):
        preds = probabilities(one="classes" in name)
        got = some_blends()[name].apply(preds)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected(name, preds), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ALL)
    def test_a_value_does_not_depend_on_the_rows_beside_it(self, name, monkeypatch):
        """To the last bit, whatever the blocks: what is predicted alone equals its OOF value."""
        preds = probabilities(one="classes" in name)
        blend = some_blends()[name]
        whole = blend.apply(preds)
        for n in (0, 7, 39):
            alone = blend.apply([np.ascontiguousarray(p[:, n : n + 1]) for p in preds])
            assert alone.tobytes() == whole[:, n : n + 1].tobytes()
        for values in (1, 30, 100):
            monkeypatch.setattr(blends, "_VALUES", values)
            assert blend.apply(preds).tobytes() == whole.tobytes()

    @pytest.mark.parametrize("name", ALL)
    def test_memory_mapped_and_strided_predictions_give_the_same(self, name, tmp_path):
        preds = probabilities(one="classes" in name)
        whole = some_blends()[name].apply(preds)
        for i, pred_TN in enumerate(preds):
            np.save(tmp_path / f"{i}.npy", pred_TN)
        mapped = [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(3)]
        assert some_blends()[name].apply(mapped).tobytes() == whole.tobytes()
        strided = [np.asfortranarray(p) for p in preds]
        assert some_blends()[name].apply(strided).tobytes() == whole.tobytes()

    @pytest.mark.parametrize("name", ALL)
    def test_no_row_is_fine(self, name):
        assert some_blends()[name].apply([p[:, :0] for p in probabilities()]).shape == (3, 0)

    def test_many_classes_sum_in_one_order(self):
        """numpy adds a single column pairwise, and many columns one after the other."""
        preds = probabilities(outputs=1000, rows=9, one=True)
        for how in ({"transform": "log", "link": "softmax"}, {"reduce": "median"},
                    {"post": Post(temperature=1.3)}):  # fmt: skip
            blend = make("multiclass", **{"link": "normalise"} | how)
            sums = [blend._block([p[:, at] for p in preds]) for at in (slice(0, 9), slice(4, 5))]
            assert sums[0][:, 4:5].tobytes() == sums[1].tobytes()

    @pytest.mark.parametrize("name", ["geometric", "geometric classes", "logistic", "cooler"])
    def test_probabilities_of_0_and_1_stay_finite(self, name):
        preds = [np.float32(np.tile([[0, 1], [1, 0], [0, 0]], 3)) for _ in range(3)]
        got = some_blends()[name].apply(preds)
        assert np.isfinite(got).all()
        assert (got.min(), got.max()) >= (0, 0)
        assert got.max() <= 1

    def test_an_unknown_transform_or_link_is_refused(self):
        with pytest.raises(ValueError, match="transform is 'cube'"):
            make(transform="cube").apply(probabilities())
        with pytest.raises(ValueError, match="link is 'probit'"):
            make(link="probit").apply(probabilities())


class TestParts:
    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
    def test_ranks_of_equals_count_half(self, values):
        """Against counts: the share below, and half of the share that is equal."""
        own = np.array([values], dtype=np.float64)
        at_TQ = np.sort(own)
        low = np.array([(own[0] < v).sum() for v in own[0]])
        equal = np.array([(own[0] == v).sum() - 1 for v in own[0]])
        share = (low + equal / 2) / (len(values) - 1)
        np.testing.assert_allclose(ranked(own, at_TQ)[0], share, atol=1e-9)

    def test_ranks_outside_the_quantiles_are_0_and_1(self):
        got = ranked(np.array([[-9.0, 9.0]]), np.array([[0.0, 1.0, 2.0]]))
        assert got.tolist() == [[0, 1]]

    def test_a_constant_member_ranks_all_rows_in_the_middle(self):
        assert ranked(np.full((1, 3), 0.2), np.full((1, 5), 0.2)).tolist() == [[0.5] * 3]

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=1))
    def test_running_medians_are_those_of_each_prefix(self, rows):
        values = np.float32(rows)[:, None]
        for k, median in enumerate(running_medians(values), 1):
            np.testing.assert_allclose(median, np.median(values[:k].astype(float), axis=0))

    def test_normalise_gives_equal_shares_where_nothing_is_left(self):
        got = linked(np.array([[-1.0, 1.0], [0.0, 3.0]]), "normalise")
        assert got.tolist() == [[0.5, 0.25], [0.5, 0.75]]

    def test_softmax_and_sigmoid_survive_large_numbers(self):
        big = np.array([[1e4, -1e4], [0.0, 0.0]])
        np.testing.assert_allclose(linked(big, "softmax"), [[1, 0], [0, 1]], atol=1e-300)
        np.testing.assert_allclose(linked(big, "sigmoid"), [[1, 0], [0.5, 0.5]], atol=1e-300)

    @pytest.mark.parametrize("task_type", ["binary", "multiclass"])
    def test_temper_keeps_0_1_and_the_order(self, task_type):
        pred = np.array([[0, 1, 1e-30, 0.3], [1, 0, 1 - 1e-9, 0.7]])
        for temperature in (0.05, 3.0):
            got = temper(pred, temperature, task_type)
            assert got[:, :2].tolist() == pred[:, :2].tolist()
            assert np.isfinite(got).all()
            assert (np.argsort(got, axis=0) == np.argsort(pred, axis=0)).all()


class TestMean:
    def test_a_plain_mean_is_one_even_with_thresholds(self):
        assert make().is_mean
        assert make(post=Post(thresholds_T=np.ones(3))).is_mean

    @pytest.mark.parametrize("name", [n for n in ALL if n != "mean"])
    def test_nothing_else_is(self, name):
        assert not some_blends()[name].is_mean

    def test_weights_of_all_members(self):
        assert make().weights_of(9).tolist() == [0.3, 0, 0, 0, 0.5, 0, 0, 0.2, 0]


class TestFile:
    @pytest.mark.parametrize("name", ALL)
    def test_a_blend_comes_back_whole(self, name, tmp_path):
        blend = some_blends()[name]
        blend.save(tmp_path / "blend.safetensors")
        again = Blend.load(tmp_path / "blend.safetensors")
        for part, other in ((blend, again), (blend.post, again.post)):
            for f in fields(part):
                value, got = getattr(part, f.name), getattr(other, f.name)
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(got, value)
                elif not isinstance(value, Post):
                    assert got == value
                    assert type(got) is type(value)
        preds = probabilities()
        assert again.apply(preds).tobytes() == blend.apply(preds).tobytes()
        assert [p.name for p in tmp_path.iterdir()] == ["blend.safetensors"]

    @given(weights=st.lists(st.floats(1e-9, 1), min_size=1, max_size=8))
    @settings(deadline=None, max_examples=30)
    def test_weights_come_back_to_the_last_bit(self, weights, tmp_path_factory):
        path = tmp_path_factory.mktemp("blend") / "b.safetensors"
        blend = make(members=tuple(range(len(weights))), weights=tuple(weights))
        blend.save(path)
        assert Blend.load(path).weights == tuple(weights)

    def test_what_is_no_blend_is_refused(self, tmp_path):
        path = tmp_path / "b.safetensors"
        with pytest.raises(UserError, match="is no blend"):
            Blend.load(path)
        path.write_bytes(b"nothing")
        with pytest.raises(UserError, match="is no blend"):
            Blend.load(path)
        save_file({"x": np.ones(2)}, path)
        with pytest.raises(UserError, match="has format None"):
            Blend.load(path)
        save_file({}, path, {"format": "1", "blend": "{}"})
        with pytest.raises(UserError, match="is no blend"):
            Blend.load(path)
