"""Progress: a line per ended trial, a heartbeat between them, never wider than 80 columns."""

from pathlib import Path

import pytest

from search import progress
from search.progress import TrialLines
from search.watch import Watch
from tests.test_director import ORDER, director_of, plan_of, work


def lines_of(root: Path, trials: int) -> list[str]:
    """What is printed of a search."""
    plan = plan_of(trials)
    director, watch = director_of(root, plan), Watch(plan, ORDER)
    lines: list[str] = []
    director._journal.listen(watch.hear)
    director._journal.listen(TrialLines(watch, lines.append).hear, replay=False)
    work(director)
    return lines


@pytest.mark.parametrize("trials", [12, 1000])
def test_every_trial_is_told_in_80_columns(tmp_path: Path, trials: int) -> None:
    lines = lines_of(tmp_path, trials)
    told = [int(line.split()[2]) for line in lines]
    assert set(told) == set(range(trials)) and max(map(len, lines)) <= 80
    assert lines[-1].endswith(f"{trials}/{trials}")
    assert any(" finished " in line for line in lines) and any(" pruned " in line for line in lines)


def test_news_come_when_nothing_ends_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.0)
    monkeypatch.setattr(progress, "HEARTBEAT_SHARE", 0.0)
    beats = [line for line in lines_of(tmp_path, 4) if "running" in line]
    assert "no trial finished yet" in beats[0] and "best 0." in beats[-1]
    assert beats[0].endswith("ETA ?"), "nobody can know yet"
    assert "ETA" in beats[-1] and not beats[-1].endswith("?")
