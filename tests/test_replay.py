"""A driver that dies between any two events of its journal is resumed to the same end."""

import shutil
from pathlib import Path

import pytest

from search.director import Director
from search.journal import read_events
from tests.test_director import director_of, outcome, plan_of, reports


def work(director: Director) -> None:
    """One worker, until nothing is left."""
    for _ in range(100):
        config = director.next_config()
        if config is None:
            director.close()
            return
        for report in reports(director.run, config):
            if not director.on_result(report):
                break


def test_cut_after_any_event_the_search_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)  # a killed process loses nothing without it
    whole = tmp_path / "whole"
    whole.mkdir()
    work(director_of(whole, plan_of(12)))
    lines = (whole / "journal.jsonl").read_bytes().splitlines(keepends=True)
    wanted, wrong = outcome(whole), []
    for count in range(1, len(lines)):
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        # What was finished by then is on the disk.
        for event in read_events(broken / "journal.jsonl")[0]:
            if event.kind == "fold":
                folder = broken / f"oof/{event.trial:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"fold-{event.data['fold']}.npy").write_bytes(b"")
        work(director_of(broken, plan_of(12)))
        if outcome(broken) != wanted:
            last = read_events(whole / "journal.jsonl")[0][count - 1]
            wrong.append((count, last.kind, last.trial, last.data.get("verdict")))
        shutil.rmtree(broken)
    assert not wrong, f"these last events lead elsewhere: {wrong}"
