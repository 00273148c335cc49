"""The study: what a search that broke off tells, without Ray."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.director import Director
from search.study import broken_off, check_failures
from spaces.errors import RunFailed

RUN = Path("runs/one")
TRACE = "Traceback (most recent call last):\n  File ...\n"


def director(broken: str | None) -> Director:
    told: Any = SimpleNamespace(broken=lambda: broken, run=SimpleNamespace(root=RUN))
    return cast(Director, told)


class TuneError(Exception):
    """As Ray hands on what the director raises: with its traceback as text."""


def as_ray_raises(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as caught:
            raise TuneError(f"{TRACE}{type(caught).__name__}: {caught}\n")  # noqa: B904 (as Ray does)
    except TuneError as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    (
        OSError(errno.ENOSPC, "No space left on device", "runs/one/journal.jsonl"),
        OSError("1000000 requested and 131056 written"),
    ),
)
def test_a_full_disk_is_told_in_one_line_with_the_way_on(error: Exception) -> None:
    told = str(broken_off(as_ray_raises(error), RUN))
    assert told == f"the disk of runs/one is full ({error}); free space and --resume runs/one"


def test_any_other_error_is_told_with_its_traceback_once() -> None:
    told = str(broken_off(as_ray_raises(KeyError("bug")), RUN))
    assert "--resume runs/one" in told and told.count("Traceback") == told.count("'bug'") == 1
    told = str(broken_off(ValueError("not Ray's"), RUN))
    assert told.endswith("ValueError: not Ray's")


def test_failures_that_are_alike_end_the_run_with_the_first_traceback() -> None:
    with pytest.raises(RunFailed, match="others would too") as caught:
        check_failures(director(f"{TRACE}KeyError: 'x'\n"))
    told = str(caught.value)
    assert "--resume runs/one" in told and told.count("Traceback") == 1
    assert told.endswith("KeyError: 'x'")
    check_failures(director(None))
