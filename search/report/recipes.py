"""Recipes side by side: which of their fields differ, and what they scored at one rung."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from search.policy.rungs import Rung
from search.report.facts import Facts
from search.selection import flat
from search.trials import Trial

WIDE = 20.0  # a number that spans more than this factor is looked at by its logarithm
_OWN = ("seed", "weights", "channels", "epochs")  # fields that are no choice of the search
_TOP, _MANY, _EDGE = 5, 8, 0.1  # best trials; distinct values; share of a range that is its end


def fields(trial: Trial) -> dict[str, Any]:
    """What was chosen for a trial: its recipe's fields, nested ones as "augment.flip"."""
    return {name: value for name, value in flat(trial.recipe).items() if name not in _OWN}


def varied(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Fields that differ between trials: name -> the value of each trial, None where it has
    none."""
    rows = [fields(trial) for trial in trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: values for name, values in columns.items() if len(set(map(str, values))) > 1}


def numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def logarithmic(values: Sequence[Any]) -> bool:
    return numeric(values) and min(values) > 0 and max(values) >= WIDE * min(values)


def levels(facts: Facts) -> list[tuple[str, dict[int, float]]]:
    """Where trials can be compared, from the first rung to all folds: its name, and the finite
    value of each trial there."""
    found: dict[Rung, dict[int, float]] = {}
    for event in facts.events:
        if event.kind == "rung" and math.isfinite(event.data["value"]):
            rung = Rung.parse(event.data["rung"])
            found.setdefault(rung, {})[event.trial] = event.data["value"]
    rungs = [(f"at {rung.words}", values) for rung, values in sorted(found.items())]
    whole = {trial.number: trial.score() for trial in facts.finished}
    return [*rungs, ("over all folds", whole)] if whole else rungs


def crowded(
    finished: Sequence[Trial], all_trials: Sequence[Trial]
) -> Iterator[tuple[str, str, float]]:
    """Numbers of which all the best trials lie near one end of what was tried: name, end and its
    value. Only of those that are searched by their logarithm: shares end at 0 or 1."""
    best = [fields(trial) for trial in finished[:_TOP]]
    if len(best) < _TOP:
        return
    for name, values in varied(all_trials).items():
        if not logarithmic(values) or len(set(values)) < _MANY:
            continue
        if not all(name in recipe for recipe in best):
            continue
        low, high = math.log(min(values)), math.log(max(values))
        places = [(math.log(recipe[name]) - low) / (high - low) for recipe in best]
        if max(places) <= _EDGE:
            yield name, "lower", min(values)
        elif min(places) >= 1 - _EDGE:
            yield name, "upper", max(values)
