"""--quiet: the result and warnings; and what a run is shown to while it is under way."""

import sys
from pathlib import Path

import pytest

from search.quiet import quiet
from search.run import SHOWING, check_resume, given, main, parser
from search.terminal import alert
from spaces.errors import UserError
from tests.onehand import alone
from tests.runs import SMALL, events_of


def test_what_is_printed_goes_nowhere_and_warnings_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with quiet(True) as say:
        print("noise")
        say("plan: much to do")
        say("warning: images are odd")
        kept = sys.stdout
    print("result")
    kept.write("late noise")
    out, err = capsys.readouterr()
    assert out == "result\n" and err.startswith("warning: images are odd")


def test_without_it_everything_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(False) as say:
        print("noise")
        say("plan")
    alert("the disk is full")
    out, err = capsys.readouterr()
    assert out == "noise\nplan\n" and err == "the disk is full\n"


def test_it_goes_with_resume() -> None:
    words = ["--resume", "RUN", "--quiet", "--tensorboard", "--mlflow", "sqlite:///x.db"]
    assert set(SHOWING) <= set(given(words))
    check_resume(parser().parse_args(words), given(words))


def test_a_quiet_run_prints_its_result_alone_and_shows_itself_to_tensorboard(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gene_expr", "--data", tiles, "--out", tmp_path / "run", "--trials", 3, *SMALL]
    with alone():
        assert main([*map(str, words), "--quiet", "--tensorboard"]) == 0
    out, _ = capsys.readouterr()
    assert "plan:" not in out and "checking the data" not in out and "/3\n" not in out
    assert "leaderboard: python -m search.leaderboard" in out and "nested" in out
    events = events_of(tmp_path / "run")
    began = next(event for event in events if event.kind == "session")
    assert 0 < began.data["after"] < 600
    assert len(list(tmp_path.glob("run/tensorboard/trial-*/*.tfevents.*"))) == 3


def test_a_missing_package_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.export.feed.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        main(["gene_expr", "--mlflow", "sqlite:///x.db"])
    assert not list(tmp_path.iterdir())
