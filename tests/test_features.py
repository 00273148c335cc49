"""Feature heads: a linear layer on the features of several members.

Shapes: T outputs, N rows, F features.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ensemble.derived.features import make_feature_heads
from ensemble.derived.linear import fit_layers
from ensemble.joint import JointLayer, predict_head
from ensemble.members import load_members
from search.model.infer import FoldModel
from spaces.errors import UserError
from tests.modelruns import ROWS, ModelRun, noisy, one_thread


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two noisy members that see unlike features, and a bad third. Not to be changed."""
    made = ModelRun(tmp_path_factory.mktemp("features"))
    made.add(noisy(1.0), weights="random")
    made.add(noisy(1.0), pooling="avgmax", tta=4)
    made.add(noisy(1.0), backbone="test_resnet")
    return made


@pytest.fixture
def own(made, tmp_path):
    """A copy of the run to write into."""
    shutil.copytree(made.run.root, tmp_path / "run")
    return type(made.run)(tmp_path / "run")


@pytest.fixture(scope="module")
def heads(made, tmp_path_factory):
    """The run with its feature head. Not to be changed."""
    root = tmp_path_factory.mktemp("heads") / "run"
    shutil.copytree(made.run.root, root)
    run = type(made.run)(root)
    pool = load_members(run)
    (head,), notes = make_feature_heads(pool, run)
    assert not notes
    return run, pool, head


@pytest.fixture
def calls(monkeypatch):
    """The number of rows of each inference."""
    found = []
    features = FoldModel.features

    def counted(self, images_NHWC, *args, **kwargs):
        found.append(len(images_NHWC))
        return features(self, images_NHWC, *args, **kwargs)

    monkeypatch.setattr(FoldModel, "features", counted)
    return found


def test_a_head_beats_its_members(heads):
    _, pool, head = heads
    errors = [float(np.square(m.pred_TN - pool.true_TN).mean()) for m in pool.members]
    assert float(np.square(head.pred_TN - pool.true_TN).mean()) < min(errors)
    assert head.name.startswith("features") and "fold 0" in head.note
    assert head.cost.ms is not None and head.cost.ms >= 4.0


def test_a_head_is_what_its_files_predict(heads, made):
    _, pool, head = heads
    tests = []
    for fold in range(pool.folds):
        layer = JointLayer.load(head.layer / f"fold-{fold}.safetensors")
        models = [FoldModel.load(p.folder / f"fold-{fold}.safetensors") for p in head.parts]
        used = [m if i in layer.parts else None for i, m in enumerate(models)]
        rows = np.flatnonzero(pool.fold_N == fold)
        pred_TN = predict_head(used, layer, made.images_NHWC[rows], batch_size=5).T
        np.testing.assert_allclose(head.pred_TN[:, rows], pred_TN, atol=1e-4)
        tests.append(predict_head(models, layer, made.images_NHWC[ROWS:]).T)
    np.testing.assert_allclose(
        np.load(head.oof_folder / "test.npy"), np.mean(tests, axis=0), atol=1e-4
    )
    assert all(p.decode_size == 32 and p.recipe["backbone"] for p in head.parts)


def test_the_layer_of_a_fold_never_saw_that_fold(heads, tmp_path):
    run, pool, head = heads
    shutil.copytree(run.root, tmp_path / "run")
    other = type(run)(tmp_path / "run")
    for fold in range(pool.folds):
        rows = np.flatnonzero(pool.fold_N == fold)
        true_TN = np.array(pool.true_TN)
        true_TN[:, rows] = 10 * np.random.default_rng(fold).normal(size=(len(true_TN), len(rows)))
        copy = dataclasses.replace(load_members(other), true_TN=true_TN)
        (scrambled,), _ = make_feature_heads(copy, other)
        before, after = (
            JointLayer.load(h.layer / f"fold-{fold}.safetensors") for h in (head, scrambled)
        )
        np.testing.assert_array_equal(before.weight_TF, after.weight_TF)
        np.testing.assert_array_equal(before.bias_T, after.bias_T)
        folders = [[h.parts[i].folder.name for i in layer.parts]
                   for h, layer in ((head, before), (scrambled, after))]  # fmt: skip
        assert folders[0] == folders[1]
        np.testing.assert_array_equal(head.pred_TN[:, rows], scrambled.pred_TN[:, rows])
        assert not np.array_equal(head.pred_TN, scrambled.pred_TN)


def test_nothing_is_inferred_twice(own, calls):
    pool = load_members(own)
    (first,), _ = make_feature_heads(pool, own)
    assert calls.count(ROWS) <= len(pool.members) * pool.folds
    calls.clear()
    (again,), _ = make_feature_heads(pool, own)
    assert (again.name, again.note, again.cost.mb) == (first.name, first.note, first.cost.mb)
    # Another truth needs another layer, but no inference.
    true_TN = np.array(pool.true_TN)
    true_TN[:, pool.fold_N == 0] += 1
    make_feature_heads(dataclasses.replace(pool, true_TN=true_TN), own)
    assert not [rows for rows in calls if rows == ROWS]
    path = own.checkpoints(0) / "fold-1.safetensors"
    path.write_bytes(path.read_bytes())  # a new time
    calls.clear()
    make_feature_heads(pool, own)
    assert calls.count(ROWS) == 1


def test_two_folds_leave_nothing_to_choose_on(tmp_path):
    made = ModelRun(tmp_path, folds=2)
    made.add(noisy(1.0))
    made.add(noisy(1.0), weights="random", pooling="max")
    (head,), _ = make_feature_heads(load_members(made.run), made.run)
    assert head.note.count("with 1") == 2


def test_one_member_or_twins_make_no_head(tmp_path):
    made = ModelRun(tmp_path)
    made.add(noisy(1.0))
    found, notes = make_feature_heads(load_members(made.run), made.run)
    assert not found and "joins 2 members and 1 have models" in notes[0]
    shutil.copytree(made.run.checkpoints(0), made.run.checkpoints(1))
    shutil.copytree(made.run.oof(0), made.run.oof(1))
    found, notes = make_feature_heads(load_members(made.run), made.run)
    assert not found and notes == ["no feature head: all members are twins of the best"]


@pytest.mark.parametrize(
    ("task_type", "metric", "arguments"),
    [("multilabel", "log_loss", {}), ("multiclass", "log_loss", {"multiclass": True})],
)
def test_classes_get_probabilities(tmp_path, task_type, metric, arguments):
    made = ModelRun(tmp_path, task_type, metric, **arguments)
    made.add(noisy(1.0))
    made.add(noisy(1.0), pooling="max")
    pool = load_members(made.run)
    (head,), _ = make_feature_heads(pool, made.run)
    assert head.pred_TN.min() >= 0 and head.pred_TN.max() <= 1
    if task_type == "multiclass":
        np.testing.assert_allclose(head.pred_TN.sum(axis=0), 1, atol=1e-6)
    score = pool.metric.score(head.pred_TN, pool.true_TN).value
    assert score > max(pool.metric.score(m.pred_TN, pool.true_TN).value for m in pool.members)


def reference_loss(parameters, x_NF, y_NT, strength, task_type):
    """What a layer minimises, written plainly."""
    outputs = y_NT.shape[1]
    weight_FT, bias_T = parameters[:-outputs].reshape(-1, outputs), parameters[-outputs:]
    out_NT = x_NF @ weight_FT + bias_T
    penalty = strength * np.square(weight_FT).sum()
    if task_type == "regression":
        return np.square(y_NT - out_NT).sum(axis=1).mean() + penalty
    if task_type == "multiclass":
        log_NT = out_NT - np.log(np.exp(out_NT).sum(axis=1, keepdims=True))
        return -(y_NT * log_NT).sum(axis=1).mean() + penalty / 2
    return (np.log1p(np.exp(out_NT)) - y_NT * out_NT).sum(axis=1).mean() + penalty / 2


@pytest.mark.parametrize("task_type", ["regression", "multilabel", "multiclass"])
def test_layers_minimise_the_penalised_loss(task_type):
    rng = np.random.default_rng(1)
    features_NF = np.float32(rng.normal(3, 2, (40, 4)))
    features_NF[:, 2] = 7  # constant
    signal_NT = features_NF[:, :3] @ rng.normal(size=(3, 3)) / 2 + rng.normal(size=(40, 3))
    y_NT = {
        "regression": signal_NT,
        "multilabel": signal_NT > np.median(signal_NT, axis=0),
        "multiclass": np.arange(3) == signal_NT.argmax(axis=1)[:, None],
    }[task_type].astype(np.float32)
    spread_F = features_NF.std(axis=0)
    x_NF = (features_NF - features_NF.mean(axis=0)) / np.where(spread_F > 0, spread_F, 1)
    layers = fit_layers(features_NF, y_NT.T, task_type, [0.5, 0.05], (1, 0))
    for layer, strength in zip(layers, [0.5, 0.05], strict=True):
        found = minimize(reference_loss, np.zeros(15), args=(x_NF, y_NT, strength, task_type))
        weight_FT, bias_T = found.x[:-3].reshape(4, 3), found.x[-3:]
        out_NT = x_NF @ weight_FT + bias_T
        if task_type == "multilabel":
            out_NT = 1 / (1 + np.exp(-out_NT))
        if task_type == "multiclass":
            out_NT = np.exp(out_NT) / np.exp(out_NT).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(layer.apply(features_NF), out_NT, atol=2e-4)
        assert layer.parts == (1, 0)


def test_a_layer_comes_back_from_its_file(tmp_path: Path):
    layer = fit_layers(np.float32(np.eye(6)), np.float32(np.eye(6))[:2], "binary", [1.0], (2, 0))[0]
    layer.save(tmp_path / "layer.safetensors")
    back = JointLayer.load(tmp_path / "layer.safetensors")
    np.testing.assert_array_equal(
        back.apply(np.float32(np.eye(6))), layer.apply(np.float32(np.eye(6)))
    )
    assert (back.link, back.parts) == ("sigmoid", (2, 0))
    (tmp_path / "layer.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is no layer"):
        JointLayer.load(tmp_path / "layer.safetensors")


def test_features_and_predictions_share_one_path(made):
    path = made.run.checkpoints(1) / "fold-0.safetensors"
    model = FoldModel.load(path)
    rows = np.array([7, 3, 11])
    features_NF = model.features(made.images_NHWC, rows=rows)
    np.testing.assert_array_equal(features_NF, model.features(made.images_NHWC[rows]))
    with torch.inference_mode():  # the head is linear: the mean over views may come first
        pred_NT = model.network.head(torch.from_numpy(features_NF)).numpy()
    np.testing.assert_allclose(model.predict(made.images_NHWC, rows=rows), pred_NT, atol=1e-4)


def test_a_head_of_views_predicts_rows(tmp_path):
    made = ModelRun(tmp_path, views=2)
    made.add(noisy(1.0), fusion="concat")
    made.add(noisy(1.0), fusion="attention", pooling="max")
    (head,), notes = make_feature_heads(load_members(made.run), made.run)
    assert not notes and head.pred_TN.shape == (3, ROWS)
    layer = JointLayer.load(head.layer / "fold-0.safetensors")
    models = [FoldModel.load(p.folder / "fold-0.safetensors") for p in head.parts]
    rows = np.flatnonzero(made.fold_N == 0)
    pred_NT = predict_head(models, layer, made.images_NHWC[: 2 * ROWS])
    np.testing.assert_allclose(head.pred_TN[:, rows], pred_NT[rows].T, atol=1e-4)
    assert np.load(head.oof_folder / "test.npy").shape == (3, len(made.images_NHWC) // 2 - ROWS)
