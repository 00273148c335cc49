"""Faults are collected, so that a user hears those of all files at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from spaces.errors import UserError, near
from spaces.task import TASK_TYPES

_P = ParamSpec("_P")
_R = TypeVar("_R")


def attempt(
    faults: list[str], function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
) -> _R | None:
    """The function's result, or None with its faults added to `faults`."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        faults.extend(error.faults)
        return None


def given_faults(oof: Sequence[Path], target: Path, task_type: str) -> list[str]:
    """What is wrong before any file is opened."""
    faults = []
    if task_type not in TASK_TYPES:
        faults.append(f"task type {task_type!r} is unknown; {near(task_type, TASK_TYPES)}")
    if not oof:
        faults.append("no predictions were given; give a file for each member with --oof")
    faults += twice_faults(oof, "--oof")
    faults += [
        f"{path} is given as predictions and as the target; leave it out of --oof"
        for path in oof
        if path.resolve() == target.resolve()
    ]
    return faults


def twice_faults(paths: Sequence[Path], flag: str) -> list[str]:
    """A fault for each path that leads to a file that an earlier one leads to."""
    seen: set[Path] = set()
    faults = []
    for path in paths:
        if path.resolve() in seen:
            faults.append(f"{path} is given twice; give each file to {flag} once")
        seen.add(path.resolve())
    return faults
