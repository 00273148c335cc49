"""python -m ensemble.build on plain files: the whole way from files to weights."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ensemble.blend import Blend
from ensemble.build import main
from ensemble.choose import choose
from search.metrics import get_metric, known_metrics
from spaces.errors import UserError
from tests.pools import METRICS, arrays, make_pool, metric_of
from tests.runs import environment


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, task_type, suffix="npy", **options):
    """One file per member, target and folds; returns the arrays and the arguments."""
    preds, true_TN, fold_N = arrays(task_type, **options)
    for m, pred_TN in enumerate(preds):
        save(folder / f"m{m}.{suffix}", pred_TN)
    truth = np.argmax(true_TN, axis=0)[None] if task_type == "multiclass" else true_TN
    save(folder / f"y.{suffix}", truth)
    pd.DataFrame({"fold": fold_N}).to_csv(folder / "folds.csv", index=False)
    members = [f"m{m}.{suffix}" for m in range(len(preds))]
    arguments = ["--oof", *members, "--target", f"y.{suffix}", "--folds", "folds.csv"]
    return (preds, true_TN, fold_N), arguments


def save(path, values_TN):
    if path.suffix == ".npy":
        np.save(path, values_TN[0] if len(values_TN) == 1 else values_TN.T)
        return
    names = [f"t{t}" for t in range(len(values_TN))]
    frame = pd.DataFrame(np.float64(values_TN).T, columns=names)
    frame.insert(0, "id", [f"row{n}" for n in range(len(frame))])
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)


@pytest.mark.parametrize("key", ["rmse", "auroc", "khd", "log_loss-classes", "average_precision"])
def test_files_give_the_weights_of_their_arrays(key, folder, capsys):
    metric, task_type = metric_of(key)
    found, arguments = write(folder, task_type)
    assert main([*arguments, "--metric", metric.name, "--task-type", task_type]) == 0
    report = json.loads((folder / "ensemble" / "ensemble.json").read_text())
    wanted = choose(make_pool(*found, metric, task_type)).report["weights"]
    assert list(report["weights"].values()) == pytest.approx(list(wanted.values()))
    blend = Blend.load(folder / "ensemble" / "blend.safetensors")
    oof = np.load(folder / "ensemble" / "oof.npy")
    assert len(blend.members) == len(report["weights"])
    wanted_TN = choose(make_pool(*found, metric, task_type)).oof_TN
    assert np.array_equal(oof, wanted_TN[0] if task_type == "binary" else wanted_TN.T)
    output = capsys.readouterr().out
    assert "nested" in output and "optimistic" in output


@pytest.mark.parametrize("suffix", ["npy", "csv", "parquet"])
def test_test_predictions_are_blended_like_the_oof(suffix, folder):
    (preds, *_), arguments = write(folder, "multilabel", suffix)
    names = []
    for m, pred_TN in enumerate(preds):
        names.append(f"test{m}.{suffix}")
        save(folder / names[-1], pred_TN[:, :20])
    main([*arguments, "--metric", "auroc", "--task-type", "multilabel", "--test", *names])
    blend = Blend.load(folder / "ensemble" / "blend.safetensors")
    wanted_TN = blend.apply([preds[m][:, :20] for m in blend.members])
    if suffix == "npy":
        assert np.array_equal(np.load(folder / "ensemble" / "test.npy"), wanted_TN.T)
    else:
        table = pd.read_csv(folder / "ensemble" / "test.csv")
        assert table["id"].tolist() == [f"row{n}" for n in range(20)]
        assert table.iloc[:, 1:].to_numpy() == pytest.approx(wanted_TN.T, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--oof, --target, --metric, --task-type missing"),
        (["RUN", "--oof", "a.npy"], "--oof go with plain files"),
        (["--oof", "a.npy"], "--target, --metric, --task-type missing"),
    ],
)
def test_runs_and_files_are_not_mixed_and_files_come_complete(arguments, words, folder):
    with pytest.raises(UserError, match=words):
        main(arguments)


def test_what_the_metric_cannot_score_is_refused_member_by_member(folder):
    (preds, *_), arguments = write(folder, "binary")
    np.save(folder / "m1.npy", preds[1][0] * 3)
    np.save(folder / "m3.npy", np.where(np.arange(60) == 5, np.nan, preds[3][0]))
    with pytest.raises(UserError) as caught:
        main([*arguments, "--metric", "log_loss", "--task-type", "binary"])
    text = "\n".join(caught.value.faults)
    assert "m3" in text  # NaN is found on reading
    np.save(folder / "m3.npy", preds[3][0])
    with pytest.raises(UserError) as caught:
        main([*arguments, "--metric", "log_loss", "--task-type", "binary"])
    assert len(caught.value.faults) == 1 and "m1" in caught.value.faults[0]


def test_a_fold_with_one_class_is_refused_where_the_metric_needs_two(folder):
    (_, true_TN, fold_N), arguments = write(folder, "binary")
    np.save(folder / "y.npy", np.where(fold_N == 1, 0, true_TN[0]))
    with pytest.raises(UserError, match="fold 1"):
        main([*arguments, "--metric", "auroc", "--task-type", "binary"])


def test_a_metric_of_another_task_type_is_refused(folder):
    _, arguments = write(folder, "regression")
    with pytest.raises(UserError, match="the task type is regression"):
        main([*arguments, "--metric", "auroc", "--task-type", "regression"])


def test_another_folder_is_never_overwritten(folder):
    _, arguments = write(folder, "regression")
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not overwritten"):
        main([*arguments, "--metric", "rmse", "--task-type", "regression", "--out", "mine"])


def test_a_bundle_is_never_overwritten_by_plain_files(folder):
    _, arguments = write(folder, "regression")
    (folder / "b").mkdir()
    for name in ("ensemble.json", "manifest.json"):
        (folder / "b" / name).write_text("{}")
    with pytest.raises(UserError, match="not overwritten"):
        main([*arguments, "--metric", "rmse", "--task-type", "regression", "--out", "b"])


@pytest.mark.parametrize("out", ["m0.npy/x", "/proc/foo/x"])
def test_an_impossible_out_is_refused_before_any_work(out, folder):
    _, arguments = write(folder, "regression")
    with pytest.raises(UserError, match="give another --out"):
        main([*arguments, "--metric", "rmse", "--task-type", "regression", "--out", out])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "aut"], "auto"),
        (["--method", "stacking", "--bag", "rows"], "vary greedy"),
        (["--max-per-family", "1"], "plain files do not tell"),
        (["--add", "soup"], "leave it out"),
    ],
)
def test_options_that_cannot_work_are_refused(more, words, folder):
    _, arguments = write(folder, "binary")
    with pytest.raises(UserError, match=words):
        main([*arguments, "--metric", "auroc", "--task-type", "binary", *more])


def test_test_predictions_are_checked_like_the_oof(folder):
    (preds, *_), arguments = write(folder, "binary", members=2)
    np.save(folder / "t0.npy", preds[0][0] * 3 - 1)
    np.save(folder / "t1.npy", preds[1][0])
    with pytest.raises(UserError, match="t0"):
        main([*arguments, "--metric", "log_loss", "--task-type", "binary", "--test", "t0.npy",
              "t1.npy"])  # fmt: skip
    assert not (folder / "ensemble").exists()


def test_auto_needs_three_folds(folder):
    _, arguments = write(folder, "binary", folds=2)
    with pytest.raises(UserError, match="--method auto with 2 folds"):
        main([*arguments, "--metric", "auroc", "--task-type", "binary", "--method", "auto"])


def test_selection_loads_neither_torch_nor_ray(folder):
    """On a laptop: the command works where importing torch, timm, ray or optuna fails."""
    _, arguments = write(folder, "binary")
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'ray', 'optuna'): sys.modules[name] = None\n"
        "from ensemble.build import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--metric", "auroc", "--task-type", "binary"],
        env=environment(), cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "ensemble" / "ensemble.json").is_file()


def test_every_metric_is_known_to_the_tests():
    named = {get_metric(key.partition("-")[0]).name for key in METRICS}
    assert {"specificity", "ppv", "npv"} | named == set(known_metrics())
