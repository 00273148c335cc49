"""The refresher: rows are made when they are published next, in the thread that hears."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from search import finish
from search.finish import Refresher
from search.journal import Event
from search.run_folder import RunFolder
from search.trials import FINISHED, PRUNED

PATIENCE = 20.0  # seconds, for what another thread does


def event(kind: str, **data: Any) -> Event:
    return Event(seq=0, time=0.0, kind=kind, data=data)


MEMBER, OTHER, NEWS = event("end", state=FINISHED), event("end", state=PRUNED), event("epochs")


class Printer:
    """In the place of `publish`: takes until `go` says so, and may fail."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.published: list[int] = []
        self.fails = False

    def publish(self, run: RunFolder, frame: pd.DataFrame, keep_gb: float | None) -> None:
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)
        if self.fails:
            raise OSError("no space left")
        self.published.append(int(frame["trial"].iloc[0]))


class Stage:
    """A refresher whose rows tell how often rows were made."""

    def __init__(self, root: Path) -> None:
        self.frames: list[int] = []
        self.refresher = Refresher(RunFolder(root), self._frame)

    def _frame(self) -> pd.DataFrame:
        self.frames.append(threading.get_ident())
        return pd.DataFrame({"trial": [len(self.frames)]})

    def until_free(self) -> None:
        """The thread has published and rested."""
        deadline = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            if self.refresher._free:
                return
            deadline.wait(0.01)
        raise AssertionError("it never came to rest")


@pytest.fixture
def printer(monkeypatch: pytest.MonkeyPatch) -> Printer:
    made = Printer()
    monkeypatch.setattr(finish, "publish", made.publish)
    monkeypatch.setattr(finish, "SHARE", float("inf"))  # no rest after publishing
    return made


@pytest.fixture
def stage(tmp_path: Path, printer: Printer) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    printer.go.release(9)
    made.refresher.close()


def hear(stage: Stage, *events: Event) -> None:
    for one in events:
        stage.refresher.hear(one)


def begun(printer: Printer) -> bool:
    return printer.begun.acquire(timeout=PATIENCE)


def test_only_members_are_news(stage: Stage) -> None:
    hear(stage, NEWS, OTHER, NEWS)
    assert not stage.frames


def test_members_that_finish_meanwhile_cost_one_more_frame_made_in_the_hearing_thread(
    stage: Stage, printer: Printer
) -> None:
    hear(stage, MEMBER)
    assert begun(printer)
    hear(stage, *[MEMBER, NEWS] * 5)
    assert len(stage.frames) == 1
    printer.go.release()
    stage.until_free()
    assert len(stage.frames) == 1  # nothing was heard since
    hear(stage, NEWS, NEWS)
    assert begun(printer)
    assert stage.frames == [threading.get_ident()] * 2
    printer.go.release()
    stage.until_free()
    hear(stage, NEWS, OTHER)
    assert printer.published == [1, 2] and len(stage.frames) == 2


def test_a_failure_is_followed_by_the_next_try(stage: Stage, printer: Printer) -> None:
    printer.fails = True
    hear(stage, MEMBER)
    printer.go.release()
    stage.until_free()
    printer.fails = False
    hear(stage, MEMBER)
    printer.go.release()
    stage.until_free()
    assert printer.published == [2]


def test_closing_waits_for_what_is_being_published_and_nothing_follows(
    stage: Stage, printer: Printer
) -> None:
    hear(stage, MEMBER)
    assert begun(printer)
    hear(stage, MEMBER)
    closing = threading.Thread(target=stage.refresher.close)
    closing.start()
    assert not printer.published and closing.is_alive()
    printer.go.release()
    closing.join(PATIENCE)
    assert printer.published == [1]
    hear(stage, MEMBER)
    assert len(stage.frames) == 1


def test_it_rests_after_publishing(
    stage: Stage, printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "SHARE", 1e-9)
    hear(stage, MEMBER)
    printer.go.release()
    assert begun(printer)
    hear(stage, *[MEMBER, NEWS] * 20)
    assert len(stage.frames) == 1
