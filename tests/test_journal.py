"""The journal: whole lines come back, a torn last line is dropped, other damage is told."""

import json
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.journal import FORMAT, Event, Journal, read_events, seconds_used
from spaces.errors import UserError

DAY = 86400.0


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


def test_cut_at_any_byte_it_reads_the_whole_lines_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)  # a killed process loses nothing without it
    path = tmp_path / "j"
    events = filled(path)
    raw = path.read_bytes()
    for length in range(len(raw) + 1):
        path.write_bytes(raw[:length])
        whole = raw[:length].count(b"\n")
        journal = Journal(path)
        assert journal.events == events[:whole]
        journal.append("again")
        journal.close()
        assert [e.kind for e in read_events(path)[0]][whole:] == ["again"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), max_size=5))
def test_killed_again_and_again_it_keeps_every_whole_line(deaths: list[tuple[int, int]]) -> None:
    """Each death: so many events were appended, and then so many bytes did not reach the disk."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        path = Path(folder) / "j"
        for appended, lost in deaths:
            journal = Journal(path)
            for i in range(appended):
                journal.append("ask", i, name="ä" * i)
            journal.close()
            raw = path.read_bytes()
            path.write_bytes(raw[: max(0, len(raw) - lost)])
            whole = path.read_bytes().count(b"\n")
            assert read_events(path)[0] == journal.events[:whole]


@pytest.mark.parametrize("last", [b"\0" * 20, b"\0" * 21, b"\xff\xfe{", b"{}", b"3"])
def test_a_last_line_that_is_no_event_is_torn(tmp_path: Path, last: bytes) -> None:
    events = filled(tmp_path / "j")
    with open(tmp_path / "j", "ab") as file:
        file.write(last + b"\n")
    assert read_events(tmp_path / "j")[0] == events


def test_damage_in_the_middle_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"xx", b"\xff", b"\0"):
        path.write_bytes(lines[0] + damage + lines[1] + lines[2])
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


def in_format(path: Path, version: object) -> None:
    """A journal of another version, whose events have fields that this one does not know."""
    filled(path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps({**record, "format": version, "node": "a"}) for record in records]
    path.write_text("\n".join(lines) + "\n")


def test_a_newer_journal_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    in_format(path, FORMAT + 1)
    with pytest.raises(UserError, match=r"journal\.jsonl was written by a newer version") as caught:
        read_events(path)
    assert f"(format {FORMAT + 1}; this version reads {FORMAT}); update" in str(caught.value)


def test_an_older_journal_is_not_misread(tmp_path: Path) -> None:
    in_format(tmp_path / "j", FORMAT - 1)
    with pytest.raises(UserError, match=r"older version .* or start a new run"):
        read_events(tmp_path / "j")


@pytest.mark.parametrize("version", [None, "x"])
def test_any_other_format_is_told_as_it_is(tmp_path: Path, version: object) -> None:
    in_format(tmp_path / "j", version)
    with pytest.raises(
        UserError, match=f"has format {version!r}; this version reads format {FORMAT}"
    ):
        read_events(tmp_path / "j")


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_changes_neither_order_nor_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    real, off = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + off[0])
    started = real()
    for _ in range(2):
        journal = Journal(tmp_path / "j")
        journal.append("session")
        off[0] += jump  # within the session
        for i in range(3):
            journal.append("ask", i)
        times = [e.time for e in journal.events if e.kind == "ask"][-3:]
        assert times == sorted(times)
        journal.close()
        off[0] -= jump / 2  # and between two
    events = read_events(tmp_path / "j")[0]
    assert [e.kind for e in events] == ["session", "ask", "ask", "ask"] * 2
    assert 0 <= seconds_used(events) <= real() - started


def test_seconds_between_sessions_are_not_used() -> None:
    times = {"session": [100.0, 1000.0, 50.0], "ask": [130.0, 1005.0, 57.0]}
    pairs = zip(times["session"], times["ask"], strict=True)
    flat = [(kind, t) for pair in pairs for kind, t in zip(times, pair, strict=True)]
    events = [Event(seq=i, time=t, kind=kind, data={}) for i, (kind, t) in enumerate(flat)]
    assert seconds_used(events) == 30 + 5 + 7
    assert seconds_used([]) == 0


def test_what_the_disk_refused_is_gone_and_may_be_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    heard: list[Event] = []
    journal.listen(heard.append)
    journal.append("ask", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file of at most so many bytes: half of the line is written, then the disk is "full".
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "j").stat().st_size + 40, hard))
    try:
        with pytest.raises(OSError):
            journal.append("ask", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_events(tmp_path / "j")[0] == journal.events == heard and len(heard) == 1
    assert (tmp_path / "j").read_bytes().endswith(b"\n")
    journal.append("ask", 1)
    journal.close()
    assert read_events(tmp_path / "j")[0] == heard and [e.trial for e in heard] == [0, 1]
