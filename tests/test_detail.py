"""One trial in detail: decisions by thresholds of other folds, and what is printed of them.

Shapes: T outputs, N rows.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as sk

from search import leaderboard
from search.data.folds import read_folds
from search.detail import RATES, SHOWN, decide, show_trial
from search.journal import Journal
from search.leaderboard import read_trials, write_leaderboard
from search.metrics import FittedMetric, best_thresholds, get_metric, rate
from search.oof import read_oof, write_oof
from search.results import results_frame
from search.run_folder import RunFolder, read_json, write_json
from search.trials import FAILED, FINISHED, Trials
from spaces.errors import UserError
from spaces.recipe import Recipe
from tests.modelruns import ModelRun, noisy, one_thread
from tests.pools import arrays

TYPES = {
    "binary": "khd",
    "multilabel": "auroc",
    "multiclass": "log_loss",
    "regression": "rmse",
}


def made(task_type: str, metric: str, seed: int = 0, rows: int = 90) -> tuple[Any, ...]:
    preds, true_TN, fold_N = arrays(task_type, seed=seed, members=1, rows=rows)
    arguments = {"multiclass": True} if task_type == "multiclass" else {}
    return get_metric(metric, **arguments).fit(true_TN), preds[0], true_TN, fold_N


# --- decisions


@pytest.mark.parametrize("metric", ["auroc", "khd", "f1", "average_precision"])
@pytest.mark.parametrize("task_type", ["binary", "multilabel"])
def test_rates_of_decisions_are_sklearns(task_type: str, metric: str) -> None:
    fitted, pred_TN, true_TN, fold_N = made(task_type, metric)
    found = decide(fitted, task_type, pred_TN, true_TN, fold_N)
    assert found.confusion_TT is None
    asked = fitted if metric in ("khd", "f1") else get_metric("accuracy").fit(true_TN)
    called_TN = np.zeros(pred_TN.shape, bool)
    for k in range(3):
        train = fold_N != k
        thresholds_T = best_thresholds(asked, pred_TN[:, train], true_TN[:, train], fold_N[train])
        called_TN[:, ~train] = pred_TN[:, ~train] >= thresholds_T[:, None]
    for t, (called_N, true_N) in enumerate(zip(called_TN, true_TN == 1, strict=True)):
        tn, fp, fn, tp = sk.confusion_matrix(true_N, called_N).ravel().tolist()
        counts = found.counts
        assert [int(c[t]) for c in (counts.tp, counts.fp, counts.fn, counts.tn)] == [tp, fp, fn, tn]
        wanted = {
            "sensitivity": sk.recall_score(true_N, called_N),
            "specificity": sk.recall_score(~true_N, ~called_N),
            "ppv": sk.precision_score(true_N, called_N, zero_division=0),
            "npv": sk.precision_score(~true_N, ~called_N, zero_division=0),
            "f1": sk.f1_score(true_N, called_N),
        }
        assert set(wanted) == set(RATES)
        for name, value in wanted.items():
            assert rate(name, counts)[t] == pytest.approx(value), name


@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_of_classes_is_sklearns(seed: int) -> None:
    fitted, pred_TN, true_TN, fold_N = made("multiclass", "log_loss", seed)
    found = decide(fitted, "multiclass", pred_TN, true_TN, fold_N)
    true_N, called_N = true_TN.argmax(axis=0), pred_TN.argmax(axis=0)
    np.testing.assert_array_equal(
        found.confusion_TT, sk.confusion_matrix(true_N, called_N, labels=range(4))
    )
    recall_T = sk.recall_score(true_N, called_N, average=None)
    np.testing.assert_allclose(rate("sensitivity", found.counts), recall_T)
    precision_T = sk.precision_score(true_N, called_N, average=None, zero_division=0)
    np.testing.assert_allclose(rate("ppv", found.counts), precision_T)


@pytest.mark.parametrize("task_type", ["binary", "multilabel"])
@pytest.mark.parametrize("metric", ["auroc", "f1"])
def test_a_folds_thresholds_do_not_know_its_rows(
    task_type: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, pred_TN, true_TN, fold_N = made(task_type, metric)
    found: list[np.ndarray] = []

    def watch(*given: Any) -> np.ndarray:
        found.append(best_thresholds(*given))
        return found[-1]

    monkeypatch.setattr("search.detail.best_thresholds", watch)
    decide(fitted, task_type, pred_TN, true_TN, fold_N)
    before = found.copy()
    for k in range(3):
        found.clear()
        inside = fold_N == k
        other_TN, turned_TN = pred_TN.copy(), true_TN.copy()
        other_TN[:, inside] = 1 - other_TN[:, inside]
        turned_TN[:, inside] = 1 - turned_TN[:, inside]
        decide(fitted, task_type, other_TN, turned_TN, fold_N)
        np.testing.assert_array_equal(found[k], before[k])
        assert any(not np.array_equal(found[j], before[j]) for j in range(3) if j != k)


# --- what is printed


def run_of(root: Path, task_type: str, metric: str) -> RunFolder:
    """A run with a finished trial, one that failed, and a leaderboard."""
    with one_thread():
        models = ModelRun(root, task_type=task_type, metric=metric)
        models.add(noisy(0.5))
    run = models.run
    trials, journal = Trials(), Journal(run.journal)
    journal.listen(trials.apply)
    recipe = Recipe(backbone="test_vit").to_dict()
    for number in range(2):
        journal.append("ask", number, params={}, recipe=recipe, source="random")
    for fold in range(3):
        journal.append("fold", 0, 1, fold=fold, score=0.5 + 0.1 * fold, params=9, seconds=1.0,
                       parts={"a_part": 0.25})  # fmt: skip
    journal.append("end", 0, 1, state=FINISHED, reason="all folds done", pooled=0.5)
    journal.append("end", 1, 1, state=FAILED, reason="[/dev/null] is no [bold]image[/bold]")
    journal.close()
    write_leaderboard(run, results_frame(trials, (), [0, 1, 2]))
    return run


def shown(run: RunFolder, trial: int) -> str:
    text = io.StringIO()
    show_trial(run, read_trials(run), trial, Console(file=text, width=80, highlight=False))
    return text.getvalue()


@pytest.mark.parametrize("task_type", TYPES)
def test_a_trial_is_shown_at_80_columns(task_type: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, task_type, TYPES[task_type])
    text = shown(run, 0)
    assert max(map(len, text.splitlines())) <= 80
    for words in (
        "0, finished: all folds done", "0.6000 (sd 0.1000 over folds)", "0.5000 0.6000 0.7000",
        "a part", "0.2500", "augment.flip", "test_vit",
    ):  # fmt: skip
        assert words in text, words
    assert ("out-of-fold decisions" in text) == (task_type != "regression")
    assert ("confusion" in text) == (task_type == "multiclass")


@pytest.mark.parametrize("task_type", ["binary", "multilabel", "multiclass"])
def test_the_decisions_that_are_shown_are_those_of_the_out_of_fold_rows(
    task_type: str, tmp_path: Path
) -> None:
    run = run_of(tmp_path, task_type, TYPES[task_type])

    folds, facts = read_folds(run.folds), read_json(run.run)
    pred_TN, _ = read_oof(run.oof(0), folds, facts["target_names"])
    true_TN = np.load(run.targets)
    metric = FittedMetric.from_dict(facts["metric"])
    found = decide(metric, task_type, pred_TN, true_TN, folds.fold)
    text = shown(run, 0)
    lines = [line.split() for line in text[text.index("out-of-fold") :].splitlines()]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in ("A", "B", "C")}
    c = found.counts
    for t, name in enumerate(("A", "B", "C")):
        assert list(map(int, rows[name][:4])) == [int(x[t]) for x in (c.tp, c.fp, c.fn, c.tn)]
        rates = [rate(r, c)[t] for r in RATES]
        assert rows[name][4:] == ["-" if np.isnan(r) else f"{r:.3f}" for r in rates]
    if found.confusion_TT is not None:
        matrix = [line[2:] for line in lines if line[:2] in (["1", "A"], ["2", "B"], ["3", "C"])]
        assert [list(map(int, row)) for row in matrix] == found.confusion_TT.tolist()


def test_many_long_classes_are_not_cut(tmp_path: Path) -> None:
    """Twelve of them: the counts stay whole, and the rows stay lines of their own."""
    run = run_of(tmp_path, "multiclass", "log_loss")

    names = [f"[class] of kind {k}" for k in range(12)]
    folds, facts = read_folds(run.folds), read_json(run.run)
    rng = np.random.default_rng(0)
    true_TN = np.float32(np.arange(12)[:, None] == np.arange(36) % 12)
    metric = get_metric("accuracy", multiclass=True).fit(true_TN).to_dict()
    write_json(run.run, {**facts, "target_names": names, "metric": metric})
    np.save(run.targets, true_TN)
    pred_TN = rng.dirichlet(np.ones(12), 36).T.astype(np.float32)
    write_oof(run.oof(0), pred_TN, folds=folds, target_names=names, recipe_digest="", extra={})
    text = shown(run, 0)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    confusion = text[text.index("confusion") :].splitlines()[2:]
    wanted = sk.confusion_matrix(np.arange(36) % 12, pred_TN.argmax(axis=0), labels=range(12))
    assert [list(map(int, line.split()[-12:])) for line in confusion] == wanted.tolist()
    assert all(f"[class] of kind {k}" in line for k, line in enumerate(confusion))


def test_only_so_many_outputs_are_listed(tmp_path: Path) -> None:
    run = run_of(tmp_path, "multilabel", "auroc")

    names = [f"target{k}" for k in range(SHOWN + 5)]
    rng = np.random.default_rng(0)
    true_TN = np.float32(rng.random((len(names), 36)) > 0.5)
    facts = read_json(run.run)
    metric = get_metric("auroc").fit(true_TN).to_dict()
    write_json(run.run, {**facts, "target_names": names, "metric": metric})
    np.save(run.targets, true_TN)
    pred_TN = rng.random(true_TN.shape).astype(np.float32)
    write_oof(run.oof(0), pred_TN, folds=read_folds(run.folds), target_names=names,
              recipe_digest="", extra={})  # fmt: skip
    text = shown(run, 0)
    assert f"target{SHOWN - 1} " in text and f"target{SHOWN} " not in text
    assert f"{SHOWN} of {len(names)}" in text


def test_a_trial_without_predictions_tells_why(tmp_path: Path) -> None:
    text = shown(run_of(tmp_path, "binary", "khd"), 1)
    assert "1, failed: [/dev/null] is no [bold]image[/bold]" in text
    assert "decisions" not in text and "test_vit" in text and "nan" not in text


def test_a_trial_that_the_run_does_not_have_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, "binary", "khd")
    with pytest.raises(UserError, match="no trial 2; its trials go up to 1"):
        leaderboard.main([str(run.root), "--trial", "2"])
    leaderboard.main([str(run.root), "--trial", "0"])
    assert "0, finished" in capsys.readouterr().out
