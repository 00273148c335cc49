"""The journal: whole lines come back, a torn last line is dropped, other damage is told."""

import json
from pathlib import Path

import pytest

from search.journal import Event, Journal, read_events
from spaces.errors import UserError


def filled(path: Path) -> list[Event]:
    journal = Journal(path)
    journal.append("ask", 0, params={"lr": 0.1})
    journal.append("epochs", 0, 1, points=[{"epoch": 1, "score": 0.5}])
    journal.append("end", 0, 1, state="finished")
    journal.close()
    return journal.events


def test_what_is_appended_comes_back(tmp_path: Path) -> None:
    events = filled(tmp_path / "j")
    assert read_events(tmp_path / "j")[0] == events
    assert [e.seq for e in events] == [0, 1, 2]


def test_cut_at_any_byte_it_reads_the_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    events = filled(path)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        whole = raw[:length].count(b"\n")
        journal = Journal(path)
        assert journal.events == events[:whole]
        journal.append("again")
        journal.close()
        assert [e.kind for e in read_events(path)[0]][whole:] == ["again"]


def test_a_last_line_of_zeros_is_torn(tmp_path: Path) -> None:
    events = filled(tmp_path / "j")
    with open(tmp_path / "j", "ab") as file:
        file.write(b"\0" * 20 + b"\n")
    assert read_events(tmp_path / "j")[0] == events


def test_damage_in_the_middle_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"xx" + lines[1] + lines[2])
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_events(path)
    path.write_bytes(lines[0] + lines[2])
    with pytest.raises(UserError, match="line 2: sequence 2 is out of order"):
        read_events(path)


def test_listeners_hear_on_replay_what_they_heard_live(tmp_path: Path) -> None:
    live: list[Event] = []
    journal = Journal(tmp_path / "j")
    journal.listen(live.append)
    journal.append("ask", 0, value=float("nan"), names=("a", "b"), table={1: 2})
    journal.append("end", 0, state="pruned")
    journal.close()
    replayed: list[Event] = []
    Journal(tmp_path / "j").listen(replayed.append)
    assert json.dumps([e.__dict__ for e in live]) == json.dumps([e.__dict__ for e in replayed])
    assert live[0].data["names"] == ["a", "b"] and live[0].data["table"] == {"1": 2}
