"""Priors: what earlier runs tell a new one, whose space may be another. Pure.

Scores of other folds or other data cannot be compared with this run's. What carries over is which
recipes were good, and where each trial stood among the others of its own run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from spaces.errors import UserError
from spaces.space import Space


@dataclass(frozen=True, kw_only=True)
class PriorTrial:
    """A trial of an earlier run that was judged to its end."""

    params: Mapping[str, Any]  # in the space of its own run
    finished: bool  # whether it passed all rungs
    rank: float  # share of its run's trials that it beat, in (0, 1)


@dataclass(frozen=True, kw_only=True)
class PriorRun:
    """What is known of an earlier run."""

    name: str  # its folder
    identity: Mapping[str, Any]  # what `identity` made of it
    trials: tuple[PriorTrial, ...]  # best first


def identity(task: str, metric: Mapping[str, Any], target_names: Sequence[str]) -> dict[str, Any]:
    """What two runs must agree in for a rank in one to mean something in the other, as plain JSON
    data. Of the metric its name and arguments, without what was fitted to the run's data."""
    facts = {
        "task": task,
        "metric": {"name": metric["name"], "args": metric["args"]},
        "targets": list(target_names),
    }
    return dict(json.loads(json.dumps(facts)))


@dataclass(frozen=True, kw_only=True)
class PriorObservation:
    """A recipe of this run's space, and where it stood in an earlier run."""

    params: Mapping[str, Any]
    rank: float  # in (0, 1), higher is better


def ranked(standings: Sequence[tuple[Any, ...]]) -> list[tuple[int, float]]:
    """(index, rank) of each standing, the highest first; of equals the earlier first.

    The ranks are the midpoints of as many equal parts of (0, 1): a trial alone gets 1/2, which
    says neither good nor bad.
    """
    count = len(standings)
    order = sorted(range(count), key=lambda i: standings[i], reverse=True)
    return [(index, (count - place - 0.5) / count) for place, index in enumerate(order)]


def first_from(priors: Sequence[PriorRun], space: Space, limit: int) -> list[dict[str, Any]]:
    """Parameters in this space of at most `limit` finished recipes of earlier runs.

    The best of each backbone come before the second best of any, and the runs take turns: one run's
    finished trials are often variations of a single recipe. Of those that are the same in this
    space only the first counts.
    """
    turns = zip_longest(*(_spread([t for t in run.trials if t.finished]) for run in priors))
    found: list[dict[str, Any]] = []
    for trial in chain.from_iterable(turns):
        if len(found) >= limit:
            break
        params = fit(space, trial.params) if trial is not None else None
        if params is not None and params not in found:
            found.append(params)
    return found


def observations_from(
    priors: Sequence[PriorRun], space: Space, own: Mapping[str, Any]
) -> list[PriorObservation]:
    """The trials of runs of the same identity as this run's `own` that lie in this space.

    A trial with a parameter changed to fit would be another recipe, of which nothing is known.
    """
    return [
        PriorObservation(params=trial.params, rank=trial.rank)
        for run in priors
        if run.identity == own
        for trial in run.trials
        if space.contains(trial.params)
    ]


def fit(space: Space, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Parameters in the space that keep of `params` what it has; its defaults for the rest.

    None when nothing can be kept, or when the space makes no recipe of what is kept.
    """
    choose = _Keep(params)
    try:
        space.define(choose)
    except UserError:
        return None
    return choose.params if choose.kept and space.contains(choose.params) else None


class _Keep:
    """Answers a space's questions with given values where they are among the options or in the
    range, else with the default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.params: dict[str, Any] = {}
        self.kept = 0

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        fallback = default if default in options else options[0]
        usable = name in self._values and self._values[name] in options
        return self._answer(name, usable, fallback)

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        value = self._values.get(name)
        inside = isinstance(value, int | float) and low <= value <= high  # NaN is not
        return float(self._answer(name, inside, min(max(default, low), high)))

    def _answer(self, name: str, usable: bool, fallback: Any) -> Any:
        self.params[name] = self._values[name] if usable else fallback
        self.kept += usable
        return self.params[name]


def _spread(trials: Sequence[PriorTrial]) -> list[PriorTrial]:
    """The best of each backbone, then the second best of each, and so on."""
    seen: dict[str, int] = {}
    turn = []
    for trial in trials:
        backbone = str(trial.params.get("backbone"))
        seen[backbone] = seen.get(backbone, 0) + 1
        turn.append(seen[backbone])
    return [trial for _, trial in sorted(zip(turn, trials, strict=True), key=lambda p: p[0])]
