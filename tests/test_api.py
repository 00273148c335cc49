"""A run in a notebook."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import search
from search import Run
from search.journal import read_events
from search.run_folder import RunFolder, read_json
from search.trials import Trials
from spaces.errors import UserError
from tests.runs import environment
from tests.watched import folder


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    return folder(tmp_path / "run", steps=200)


def test_the_leaderboard_is_ranked_and_has_notes(made: RunFolder) -> None:
    run = Run(made.root)
    run.note(1, "look at this one")
    frame = run.leaderboard()
    trials = Trials()
    for event in read_events(made.journal)[0]:
        trials.apply(event)
    assert set(frame["trial"]) == {*trials.all, -1}
    ranked = frame["rank"].dropna().tolist()
    assert ranked == sorted(ranked) and frame["score"][: len(ranked)].is_monotonic_decreasing
    assert frame.set_index("trial")["note"].to_dict() == {
        number: "look at this one" if number == 1 else "" for number in (*trials.all, -1)
    }
    assert str(made.root) in repr(run)


def test_curves_have_a_row_per_epoch(made: RunFolder) -> None:
    frame = Run(str(made.root)).curves()
    points = [
        (event.trial, p["fold"], p["epoch"], p["score"])
        for event in read_events(made.journal)[0] if event.kind == "epochs"
        for p in event.data["points"]
    ]  # fmt: skip
    found = frame[["trial", "fold", "epoch", "score"]].itertuples(index=False, name=None)
    assert list(found) == sorted(set(points))
    assert {"loss", "seconds", "images_per_second", "peak_memory"} <= set(frame.columns)


def test_a_run_that_has_just_begun_gives_empty_tables(tmp_path: Path) -> None:
    run = Run(folder(tmp_path / "run", steps=0).root)
    assert run.curves().empty and "epoch" in run.curves().columns
    frame = run.leaderboard()
    assert frame["kind"].tolist() == ["baseline", "trial", "trial"] and frame["score"].count() == 1


def test_what_happens_later_is_seen(tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    whole = made.journal.read_bytes()
    made.journal.write_bytes(whole[: len(whole) // 3])
    run = Run(made.root)
    before = len(run.curves())
    made.journal.write_bytes(whole)
    assert len(run.curves()) > before


def test_oof_predictions_stand_beside_ids_and_folds(trained: SimpleNamespace) -> None:
    run = Run(trained.run.root)
    trial = trained.run.members()[0]
    frame = run.oof(trial)
    pred_TN = np.load(trained.run.oof(trial) / "pred.npy")
    np.testing.assert_array_equal(frame.to_numpy(), pred_TN.T)
    assert list(frame.columns) == list(read_json(trained.run.run)["target_names"])
    folds = pd.read_parquet(trained.run.folds)
    assert frame.index.names == ["id", "fold"]
    assert frame.index.get_level_values("id").tolist() == folds["id"].astype(str).tolist()
    assert frame.index.get_level_values("fold").tolist() == folds["fold"].tolist()
    with pytest.raises(UserError, match="incomplete"):
        run.oof(999)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        Run(tmp_path)


def test_the_package_has_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Walk'"):
        search.Walk  # noqa: B018
    with pytest.raises(ImportError):
        from search import Walk  # noqa: F401


def test_importing_the_package_is_light(tmp_path: Path) -> None:
    code = "import sys, search; print(sorted(m for m in sys.modules if m.startswith('search')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "['search']"
