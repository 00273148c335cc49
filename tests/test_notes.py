"""Notes on trials: kept beside the journal, never in it."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from search import leaderboard, notes
from search.journal import read_events
from search.leaderboard import write_leaderboard
from search.notes import read_notes, write_note
from search.results import results_frame
from search.run_folder import RunFolder
from search.trials import Trials
from spaces.errors import UserError
from tests.watched import folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return folder(tmp_path / "run", steps=20)


def test_notes_are_kept_replaced_and_removed(run: RunFolder) -> None:
    assert read_notes(run) == {}
    before = run.journal.read_bytes()
    assert write_note(run, 1, "  two\nlines ") == "two lines"
    write_note(run, 0, "first")
    write_note(run, 1, "later")
    assert read_notes(run) == {0: "first", 1: "later"}
    write_note(run, 0, " ")
    assert read_notes(run) == {1: "later"}
    assert run.journal.read_bytes() == before


def test_a_trial_that_was_not_asked_has_no_note(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"no trial 99; its trials go up to \d"):
        write_note(run, 99, "what?")
    run.journal.unlink()
    with pytest.raises(UserError, match="no trial 0; it has none yet"):
        write_note(run, 0, "what?")
    assert not run.notes.exists()


def test_two_who_write_at_once_do_not_lose_a_note(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "PATIENCE", 0.05)
    with FileLock(run.root / ".notes.lock"), pytest.raises(UserError, match="try again"):
        write_note(run, 0, "second")
    assert read_notes(run) == {}


@pytest.mark.parametrize("content", ["[]", '{"0": "x"}', '{"format": 2, "notes": {"a": "x"}}'])
def test_a_damaged_file_is_told(run: RunFolder, content: str) -> None:
    run.notes.write_text(content)
    with pytest.raises(UserError, match=r"notes\.json"):
        read_notes(run)


def test_the_leaderboard_shows_notes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    trials = Trials()
    for event in read_events(run.journal)[0]:
        trials.apply(event)
    write_leaderboard(run, results_frame(trials, (), [0, 1, 2]))
    path = str(run.root)
    leaderboard.main([path])
    assert "note" not in capsys.readouterr().out.splitlines()[0]
    assert leaderboard.main([path, "--note", "1", "[red]overfits[/red]"]) == 0
    assert capsys.readouterr().out == "trial 1: [red]overfits[/red]\n"
    leaderboard.main([path])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[-1] == "note"
    assert next(line for line in shown if "[red]overfits[/red]" in line).split()[0] == "0001"
    leaderboard.main([path, "--json", "--filter", "note=?*"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["trial"] for row in rows] == [1]
    leaderboard.main([path, "--note", "1", ""])
    assert "no note any more" in capsys.readouterr().out
    with pytest.raises(UserError, match="'one' is no trial"):
        leaderboard.main([path, "--note", "one", "text"])
