"""Failures told apart: what is a bug, what is bad luck, and what never learns. Pure."""

import errno
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALIKE = 3  # failed trials with one signature are a bug, not bad luck
LOST_LIMIT = 3  # workers lost in a row, without an epoch in between, before a trial has failed
GRACE = 3  # epochs before a trial can be said not to learn
LOSS_GAIN = 1e-3  # share of the first epoch's loss that is learning
SCORE_GAIN = 1e-4  # share of the largest score that is learning
EXPLODED = 10.0  # a loss that is this many times its earlier size higher has exploded

# A full disk, where the error number is lost: safetensors, a traceback as text, numpy's short
# write, Ray's object store.
_DISK_WORDS = re.compile(
    r"no space left on device|disk quota exceeded|\d+ requested and \d+ written|local disk is full",
    re.IGNORECASE,
)
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<function>\S+)')
_LIBRARY = re.compile(r"site-packages|dist-packages|[/\\]lib[/\\]python\d|^<")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][\w.+-]+)+")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LIST = re.compile(r"-?#(?:[,x ]+-?#)+")


def not_learning(points: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a trial counts as diverged, from the epochs of one fold in their order; None when it
    learns, or when that cannot be said yet.

    A loss that exploded, with a score no better than after the first epoch; or neither loss nor
    score ever better than after the first epoch. Either sign of learning is enough: averaged
    weights lag, so early scores can stand still while the loss falls, and a loss near its floor
    (smoothed labels) falls by little while the score rises. A recipe that is good at once is safe
    as well: the first epoch's loss includes the steps in which the new head knew nothing. Losses
    may be negative, and all bounds are relative, since metrics and losses have any scale.
    """
    if len(points) < GRACE:
        return None
    losses = [float(point["loss"]) for point in points]
    scores = [_orderable(point["score"]) for point in points]
    enough = SCORE_GAIN * max((abs(score) for score in scores if math.isfinite(score)), default=0)
    went = f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {len(points)} epochs"
    rise = losses[-1] - losses[0]
    better_now = scores[-1] > scores[0] + enough
    if rise > EXPLODED * max(map(abs, losses[:-1])) and not better_now:
        return f"exploded: {went}"
    fell = min(losses[1:]) < losses[0] - LOSS_GAIN * abs(losses[0])
    if fell or max(scores[1:]) > scores[0] + enough:
        return None
    return f"no learning: {went}"


def _orderable(score: float) -> float:
    """An undefined score is below all others."""
    return -math.inf if math.isnan(score) else float(score)


def signature(reason: str) -> str:
    """What two failures of one cause have in common: type and message of the exception without
    numbers and paths, and the innermost function of ours or of the user's that raised it."""
    error, where, frames = "", "", False
    for line in reason.splitlines():
        if match := _FRAME.match(line):
            frames, error = True, ""
            if not _LIBRARY.search(match["file"]):
                file = match["file"].replace("\\", "/").rsplit("/", 1)[-1]
                where = f" in {file}: {match['function']}"
        elif line.startswith("Traceback "):  # the last of a chain is what counts
            error, where, frames = "", "", True
        elif line.strip() and not error and not (frames and line[0].isspace()):
            error = line.strip()
    error = _LIST.sub("#", _NUMBERS.sub("#", _PATH.sub("PATH", error)))
    return error + where


def alike(reasons: Sequence[str]) -> str | None:
    """The first of the failures that are alike, once there are enough of them; else None."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for reason in reasons:
        name = signature(reason)
        first.setdefault(name, reason)
        count[name] += 1
        if count[name] == ALIKE:
            return first[name]
    return None


def disk_full(error: BaseException) -> str | None:
    """The system's words when the error, or one that led to it, is that of a full disk."""
    links = list(_chain(error))
    for link in links:  # the original knows the file; what wraps it may not
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return str(link)
    found = (_DISK_WORDS.search(str(link)) for link in links)
    return next((match[0] for match in found if match), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it came from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
