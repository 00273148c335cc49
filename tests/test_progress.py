"""Progress: a line per ended trial, a heartbeat between them, never wider than 80 columns."""

from pathlib import Path

import pytest

from search import progress
from search.journal import Journal
from search.progress import TrialLines
from tests.test_director import director_of, plan_of, work


@pytest.mark.parametrize("trials", [12, 1000])
def test_every_trial_is_told_in_80_columns(tmp_path: Path, trials: int) -> None:
    director = director_of(tmp_path, plan_of(trials))
    lines: list[str] = []
    journal: Journal = director._journal
    journal.listen(TrialLines(director, lines.append).hear, replay=False)
    work(director)
    told = [int(line.split()[2]) for line in lines]
    assert set(told) == set(range(trials)) and max(map(len, lines)) <= 80
    assert lines[-1].endswith(f"{trials}/{trials}")
    assert any(" finished " in line for line in lines) and any(" pruned " in line for line in lines)


def test_news_come_when_nothing_ends_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.0)
    monkeypatch.setattr(progress, "HEARTBEAT_SHARE", 0.0)
    director = director_of(tmp_path, plan_of(4))
    lines: list[str] = []
    director._journal.listen(TrialLines(director, lines.append).hear, replay=False)
    work(director)
    beats = [line for line in lines if "running" in line]
    assert "no trial finished yet" in beats[0] and "best 0." in beats[-1]
    assert "ETA" in beats[-1]
