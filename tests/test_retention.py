"""Retention: what is deleted, what never is, and what a run without some models still does."""

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.build import build
from ensemble.derived.soup import make_soups
from ensemble.members import load_members
from search import finish
from search.finish import publish
from search.oof import read_oof
from search.policy.retention import to_delete
from search.run_folder import RunFolder, read_json
from spaces.errors import UserError
from tests.modelruns import ModelRun, noisy, one_thread

SIZES = st.dictionaries(st.integers(0, 30), st.integers(0, 100), max_size=20)


@given(SIZES, st.randoms(), st.sets(st.integers(0, 30)), st.integers(0, 900))
def test_only_unprotected_finished_trials_go_the_worst_first_and_no_more_than_needed(
    sizes: dict[int, int], random: Any, protected: set[int], keep: int
) -> None:
    ranking = [trial for trial in sizes if random.random() < 0.7]
    random.shuffle(ranking)
    doomed = to_delete(sizes, ranking, protected, keep)
    assert len(set(doomed)) == len(doomed) and set(doomed) <= set(ranking) - protected
    left = sum(size for trial, size in sizes.items() if trial not in doomed)
    free = [t for t in reversed(ranking) if t not in protected and sizes[t] > 0]
    assert doomed == free[: len(doomed)]
    assert left <= keep or len(doomed) == len(free)
    if doomed:
        assert left + sizes[doomed[-1]] > keep


@given(SIZES)
def test_what_fits_is_left_alone(sizes: dict[int, int]) -> None:
    assert to_delete(sizes, list(sizes), set(), sum(sizes.values())) == []


def frame_of(scores: dict[int, float], unfinished: tuple[int, ...] = ()) -> pd.DataFrame:
    """The leaderboard's rows of these trials, and of a baseline that is better than all."""
    rows = [
        {"trial": t, "kind": "trial", "name": f"trial {t}", "score": score,
         "state": "running" if t in unfinished else "finished"}
        for t, score in scores.items()
    ]  # fmt: skip
    rows.append({"trial": -1, "kind": "baseline", "name": "mean", "score": 9.0,
                 "state": "finished"})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def run(trained: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Three finished trials, and a fourth with a fold done and a checkpoint under way."""
    shutil.copytree(trained.run.root, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(finish, "write_leaderboard", lambda run, frame: None)
    for folder in (run.checkpoints(3), run.work(3, 2)):
        folder.mkdir(parents=True)
        shutil.copy(run.checkpoints(0) / "fold-0.safetensors", folder)
    return run


def chosen(run: RunFolder) -> set[int]:
    return {int(name) for name in read_json(run.ensemble / "ensemble.json")["weights"]}


@pytest.mark.parametrize("method", ["best_single", "greedy"])
@pytest.mark.parametrize("best", [0, 2])
def test_with_no_room_only_members_the_best_and_the_unfinished_stay(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    best: int, method: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("ensemble.build.build", partial(build, method=method))
    before = {t: read_oof_bytes(run, t) for t in (0, 1, 2)}
    scores = {t: 0.5 if t == best else 0.1 for t in (0, 1, 2)}
    assert publish(run, frame_of({**scores, 3: 0.9}, unfinished=(3,)), keep_gb=0) is not None
    kept = chosen(run) | {best}
    assert len(kept) < 3 or method == "greedy"
    assert run.members() == sorted(kept) and run.without_models() == sorted({0, 1, 2} - kept)
    assert (run.checkpoints(3) / "fold-0.safetensors").is_file()
    assert (run.work(3, 2) / "fold-0.safetensors").is_file()
    assert {t: read_oof_bytes(run, t) for t in (0, 1, 2)} == before
    said = capsys.readouterr().out
    assert ("--keep-gb 0" in said) == (len(kept) < 3)
    # The next ensemble is made of what is left, and deletes nothing more.
    build(run)
    assert chosen(run) <= kept


def read_oof_bytes(run: RunFolder, trial: int) -> bytes:
    return (run.oof(trial) / "pred.npy").read_bytes()


def test_without_a_limit_everything_stays(run: RunFolder) -> None:
    publish(run, frame_of({0: 0.1, 1: 0.2, 2: 0.3}))
    assert run.members() == [0, 1, 2] and run.without_models() == []


def test_sizes_count_fold_models_and_checkpoints_under_way(run: RunFolder) -> None:
    sizes = run.model_bytes()
    one = (run.checkpoints(0) / "fold-0.safetensors").stat().st_size
    assert sizes.keys() == {0, 1, 2, 3} and sizes[3] == 2 * one


def test_a_deletion_that_was_cut_short_is_no_member_and_is_ended_next_time(run: RunFolder) -> None:
    (run.checkpoints(1) / "recipe.json").unlink()
    (run.checkpoints(1) / "fold-0.safetensors").unlink()
    assert run.members() == [0, 2]
    assert [member.name for member in load_members(run).members] == ["0", "2"]
    publish(run, frame_of({0: 0.1, 1: 0.2, 2: 0.3}), keep_gb=100)
    assert not run.checkpoints(1).exists() and run.oof(1).exists()


def test_a_build_says_how_many_are_left_out_and_the_bundle_stays_whole(run: RunFolder) -> None:
    result = build(run)
    assert result.choice.report["notes"] == []
    (member, *_) = sorted(chosen(run))
    run.drop_models(member)
    for m in result.bundle.members:
        assert all((result.bundle.root / name).is_file() for name in m.parts[0].models.values())
    (note,) = build(run).choice.report["notes"]
    assert note.startswith("1 finished trials of") and "--keep-gb" in note


def test_a_run_whose_models_are_all_gone_says_so(run: RunFolder) -> None:
    for trial in run.members():
        run.drop_models(trial)
    with pytest.raises(UserError, match=r"3 trials have finished .* checkpoints in .* are gone"):
        build(run)


def test_a_soup_is_made_of_what_is_left(tmp_path: Path) -> None:
    with one_thread():
        made = ModelRun(tmp_path)
        for _ in range(3):
            made.add(noisy(0.5))
        first, _ = make_soups(load_members(made.run), made.run)
        gone = made.trials - 1
        assert any(str(gone) in soup.note for soup in first)
        made.run.drop_models(gone)
        again, _ = make_soups(load_members(made.run), made.run)
    assert all(str(gone) not in soup.name + soup.note.split(": ")[-1] for soup in again)
    read_oof(made.run.oof(gone), made.folds, ("A", "B", "C"))  # it stays on the leaderboard
