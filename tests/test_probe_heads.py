"""Heads on frozen features against brute force and scikit-learn; honesty; classes; tensors.

Shapes: N rows, F features, T outputs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from search.metrics import get_metric
from search.train import probe_knn, probe_mlp, probe_ridge
from search.train.probe_heads import FittedHead, fit_head
from search.train.probe_rows import ProbeRows, inner_folds, principal

ROWS, FEATURES, OUTPUTS = 60, 12, 4
KINDS = ("ridge", "knn", "mlp")
LINKS = ("identity", "sigmoid", "softmax")


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """One thread, so that bits can be compared, and few short networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_mlp, "HIDDEN", (16, 32))
        patch.setattr(probe_mlp, "STEPS", 80)
        yield
    torch.set_num_threads(threads)


def data(seed: int = 0, rows: int = ROWS, link: str = "identity") -> tuple[Any, Any]:
    """Features (N, F) of unlike scales and targets (T, N) that follow them; the columns of F are
    fewer than the rows, and correlated."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    mix_FF, weight_TF = truth.normal(size=(FEATURES, FEATURES)), truth.normal(size=(OUTPUTS, 5))
    x_NF = rng.normal(size=(rows, FEATURES)) @ mix_FF
    y_TN = weight_TF @ np.tanh(x_NF[:, :5].T / 3) + 0.3 * rng.normal(size=(OUTPUTS, rows))
    x_NF = x_NF * np.geomspace(0.01, 10, FEATURES) + 5
    if link == "sigmoid":
        y_TN = y_TN > 0
    if link == "softmax":
        y_TN = np.arange(OUTPUTS)[:, None] == y_TN.argmax(axis=0)
    return x_NF.astype(np.float32), y_TN.astype(np.float32)


def probe_rows(x_NF: Any, y_TN: Any, **changes: Any) -> ProbeRows:
    given: dict[str, Any] = {
        "link": "identity", "score": None, "groups_N": None, "pca": 0, "seed": 0, "device": "cpu",
    }  # fmt: skip
    return ProbeRows(x_NF, y_TN, **{**given, **changes})


def standard(x_NF: Any) -> Any:
    return StandardScaler().fit_transform(x_NF.astype(np.float64))


# --- ridge


@pytest.mark.parametrize("rows", [ROWS, 10])  # more rows than features, and fewer
def test_leave_one_out_is_that_of_brute_force(rows: int) -> None:
    x_NF, y_TN = data(rows=rows)
    fitted = probe_rows(x_NF, y_TN)
    basis, square_R = principal(fitted.x_NR)
    alphas = [0.05, 3.0, 400.0]
    found = probe_ridge.leave_one_out(fitted.x_NR @ basis, square_R, fitted.y_NT, alphas)
    z_NF, y_NT = standard(x_NF), y_TN.T.astype(np.float64)
    for alpha, pred_NT in zip(alphas, found, strict=True):
        for row in range(rows):
            others = np.arange(rows) != row
            model = Ridge(alpha, solver="svd").fit(z_NF[others], y_NT[others])
            expected = model.predict(z_NF[[row]])[0]
            assert pred_NT[row].numpy() == pytest.approx(expected, abs=1e-6)


def test_leaving_folds_out_is_that_of_brute_force() -> None:
    x_NF, y_TN = data()
    fitted = probe_rows(x_NF, y_TN)
    fold_N = np.random.default_rng(1).integers(0, 3, ROWS)
    alphas = [0.05, 3.0, 400.0]
    given = torch.from_numpy(fold_N)
    found = probe_ridge.leave_folds_out(fitted.x_NR, fitted.y_NT, given, alphas)
    z_NF, y_NT = standard(x_NF), y_TN.T.astype(np.float64)
    for alpha, pred_NT in zip(alphas, found, strict=True):
        for fold in range(3):
            model = Ridge(alpha, solver="svd").fit(z_NF[fold_N != fold], y_NT[fold_N != fold])
            expected = model.predict(z_NF[fold_N == fold])
            assert np.abs(pred_NT.numpy()[fold_N == fold] - expected).max() < 1e-6


@pytest.mark.parametrize("pca", [0, 3])
def test_ridge_is_that_of_scikit_learn_at_the_chosen_strength(pca: int) -> None:
    (x_NF, y_TN), (new_NF, _) = data(), data(1, 20)
    head = fit_head("ridge", x_NF, y_TN, pca=pca)
    scaler = StandardScaler().fit(x_NF.astype(np.float64))
    z_NF, new_z_NF = scaler.transform(x_NF.astype(np.float64)), scaler.transform(new_NF)
    if pca:
        turn = PCA(pca).fit(z_NF)
        z_NF, new_z_NF = turn.transform(z_NF), turn.transform(new_z_NF)
    expected_NT = Ridge(head.settings["alpha"]).fit(z_NF, y_TN.T).predict(new_z_NF)
    assert np.abs(head.predict(new_NF) - expected_NT.T).max() < 1e-4


def test_ridge_takes_the_strength_whose_leave_one_out_error_is_least() -> None:
    x_NF, y_TN = data()
    head = fit_head("ridge", x_NF, y_TN)
    z_NF, errors = standard(x_NF), []
    for settings, _ in head.table[::9]:
        hat_NN = z_NF @ np.linalg.solve(
            z_NF.T @ z_NF + settings["alpha"] * np.eye(FEATURES), z_NF.T
        )
        hat_NN += 1 / ROWS
        left_NT = (y_TN.T - hat_NN @ y_TN.T) / (1 - np.diag(hat_NN))[:, None]
        errors.append(-np.square(left_NT).mean())
    scores = [score for _, score in head.table]
    assert scores[::9] == pytest.approx(errors, rel=1e-5)
    assert dict(zip(scores, head.table, strict=True))[max(scores)][0] == head.settings
    assert head.heads_tried == 100


# --- neighbours


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("pca", [0, 3])
def test_neighbours_are_those_of_scikit_learn(
    distance: str, weights: str, pca: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x_NF, y_TN), (new_NF, _) = data(), data(1, 20)
    scaler = StandardScaler().fit(x_NF.astype(np.float64))
    z_NF, new_z_NF = scaler.transform(x_NF.astype(np.float64)), scaler.transform(new_NF)
    if pca:
        turn = PCA(pca).fit(z_NF)
        z_NF, new_z_NF = turn.transform(z_NF), turn.transform(new_z_NF)
    wanted = {"k": 7, "distance": distance, "weights": weights}

    def chosen(table: list[Any]) -> int:  # whatever scores best
        return [settings for settings, _ in table].index(wanted)

    monkeypatch.setattr(probe_knn, "best", chosen)
    head = fit_head("knn", x_NF, y_TN, pca=pca)
    model = KNeighborsRegressor(7, weights=weights, metric=distance).fit(z_NF, y_TN.T)
    assert np.abs(head.predict(new_NF) - model.predict(new_z_NF).T).max() < 1e-5
    left_NT = [
        KNeighborsRegressor(7, weights=weights, metric=distance)
        .fit(np.delete(z_NF, row, 0), np.delete(y_TN.T, row, 0))
        .predict(z_NF[[row]])[0]
        for row in range(ROWS)
    ]
    expected = -np.square(np.array(left_NT) - y_TN.T).mean()
    assert head.table[chosen(list(head.table))][1] == pytest.approx(expected, rel=1e-5)


def test_no_k_exceeds_the_rows_of_other_groups() -> None:
    x_NF, y_TN = data(rows=24)
    head = fit_head("knn", x_NF, y_TN, groups_N=np.repeat([0, 1], [14, 10]))
    assert max(settings["k"] for settings, _ in head.table) == 10
    assert max(s["k"] for s, _ in fit_head("knn", x_NF[:3], y_TN[:, :3]).table) == 2


# --- networks


def test_a_network_learns_what_is_not_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_mlp, "HIDDEN", (256,))
    monkeypatch.setattr(probe_mlp, "STEPS", 200)
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(300, 4)).astype(np.float32)
    y_TN = np.stack([np.abs(x_NF[:, 0]), x_NF[:, 1] ** 2]) + 3
    train, new = slice(200), slice(200, 300)
    explained = {}
    for kind in ("ridge", "mlp"):
        pred_TN = fit_head(kind, x_NF[train], y_TN[:, train]).predict(x_NF[new])
        explained[kind] = (
            1 - np.square(pred_TN - y_TN[:, new]).mean() / y_TN[:, new].var(axis=1).mean()
        )
    assert explained["mlp"] > 0.5 > 0.2 > explained["ridge"]


def test_heads_trained_together_learn_as_if_alone() -> None:
    fitted = probe_rows(*data())
    given = probe_mlp._data(fitted)[0]
    both = probe_mlp._Heads(given, 8, (0.0, 0.0))
    alone = probe_mlp._Heads(given, 8, (0.0,))
    for heads in (both, alone):
        assert list(probe_mlp._steps(heads, given, 2e-3, 0.3, 12)) == list(range(1, 13))
    with torch.no_grad():
        together, single = both(given.x_NR), alone(given.x_NR)
    assert torch.allclose(together[0], single[0], atol=1e-5)
    assert torch.allclose(together[1], single[0], atol=1e-5)


def test_the_chosen_network_is_trained_again_for_its_best_number_of_steps() -> None:
    x_NF, y_TN = data()
    head = fit_head("mlp", x_NF, y_TN)
    assert head.heads_tried == 12
    assert head.settings["steps"] % probe_mlp.JUDGED_EVERY == 0
    assert head.settings == max(head.table, key=lambda entry: entry[1])[0]


# --- all kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", LINKS)
def test_predictions_of_classes_are_probabilities_and_say_something(kind: str, link: str) -> None:
    (x_NF, y_TN), (new_NF, new_TN) = data(link=link, rows=120), data(1, 80, link)
    pred_TN = fit_head(kind, x_NF, y_TN, link=link).predict(new_NF)
    assert pred_TN.shape == new_TN.shape and pred_TN.dtype == np.float32
    if link != "identity":
        assert pred_TN.min() >= 0 and pred_TN.max() <= 1
    if link == "softmax":
        assert np.allclose(pred_TN.sum(axis=0), 1, atol=1e-5)
    blind = y_TN.mean(axis=1, keepdims=True)
    assert np.square(pred_TN - new_TN).mean() < 0.8 * np.square(blind - new_TN).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_the_same_each_time_and_after_a_file(kind: str, tmp_path: Path) -> None:
    (x_NF, y_TN), (new_NF, _) = data(), data(1, 20)
    first, second = (fit_head(kind, x_NF, y_TN, link="identity", seed=3) for _ in range(2))
    assert first.table == second.table and first.kind == kind
    save_file(first.tensors, tmp_path / "head.safetensors")
    again = FittedHead(tensors=load_file(tmp_path / "head.safetensors"))
    assert again.kind == kind
    assert {t.dtype for t in again.tensors.values()} <= {torch.float32, torch.int64}
    assert np.array_equal(again.predict(new_NF), first.predict(new_NF))
    assert np.array_equal(second.predict(new_NF), first.predict(new_NF))


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_chooses(kind: str) -> None:
    """A metric that likes what the squared error does not: predictions far from the truth."""
    x_NF, y_TN = data()

    def far(pred_TN: Any, true_TN: Any) -> float:
        assert pred_TN.flags.c_contiguous and pred_TN.shape == true_TN.shape
        return float(np.square(pred_TN - true_TN).mean())

    near, odd = fit_head(kind, x_NF, y_TN), fit_head(kind, x_NF, y_TN, score=far)
    assert near.settings != odd.settings
    assert odd.settings == max(odd.table, key=lambda entry: entry[1])[0]


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_metric_is_undefined_the_squared_error_chooses(kind: str) -> None:
    x_NF, y_TN = data(link="sigmoid")
    y_TN[:] = 0
    metric = get_metric("auroc").fit(y_TN)
    head = fit_head(kind, x_NF, y_TN, link="sigmoid", score=lambda p, t: metric.score(p, t).value)
    assert all(-1 <= score <= 0 for _, score in head.table)
    assert head.predict(x_NF).max() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_never_split_inside(kind: str) -> None:
    """Each row has a twin with the same targets. Who may look at the twin wants to look closely,
    who may not is careful, since there is nothing else to learn."""
    rng = np.random.default_rng(0)
    x_NF = np.repeat(rng.normal(size=(40, 60)), 2, axis=0) + 0.01 * rng.normal(size=(80, 60))
    y_TN = np.repeat(rng.normal(size=(2, 40)), 2, axis=1)
    group_N = np.repeat(np.arange(40), 2)
    order = rng.permutation(80)
    x_NF, y_TN, group_N = x_NF[order].astype(np.float32), y_TN[:, order], group_N[order]
    fooled = max(score for _, score in fit_head(kind, x_NF, y_TN).table)
    careful = max(score for _, score in fit_head(kind, x_NF, y_TN, groups_N=group_N).table)
    assert careful < -0.6 * y_TN.var()
    assert fooled > careful + 0.1


def test_inner_folds_keep_groups_whole_and_are_alike_in_size() -> None:
    group_N = np.random.default_rng(0).integers(0, 30, 200)
    fold_N = inner_folds(group_N, 5)
    assert all(len(set(fold_N[group_N == group])) == 1 for group in range(30))
    assert np.bincount(fold_N, minlength=5).min() > 30
    assert set(inner_folds(np.array([0, 1, 1]), 5)) == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_group_and_constant_columns_are_survived(kind: str) -> None:
    x_NF, y_TN = data(rows=30)
    x_NF[:, 3], y_TN[1] = 7.0, 2.5
    head = fit_head(kind, x_NF, y_TN, groups_N=np.zeros(30))
    pred_TN = head.predict(x_NF)
    assert np.isfinite(pred_TN).all()
    assert np.abs(pred_TN[1] - 2.5).max() < 0.5
    assert head.predict(x_NF[:0]).shape == (OUTPUTS, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ridge", "knn"])
def test_a_gpu_chooses_and_predicts_as_a_cpu_does(kind: str) -> None:
    (x_NF, y_TN), (new_NF, _) = data(), data(1, 20)
    here, there = (fit_head(kind, x_NF, y_TN, device=device) for device in ("cpu", "cuda"))
    assert there.settings == here.settings
    assert np.abs(there.predict(new_NF, "cuda") - here.predict(new_NF)).max() < 1e-4


@pytest.mark.gpu
def test_networks_are_trained_on_a_gpu() -> None:
    (x_NF, y_TN), (new_NF, _) = data(), data(1, 20)
    head = fit_head("mlp", x_NF, y_TN, device="cuda")
    assert np.abs(head.predict(new_NF, "cuda") - head.predict(new_NF)).max() < 1e-4
