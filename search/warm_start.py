"""Warm start: what was learned in earlier runs, read from their folders and kept in the new one.

A run reads its earlier ones once, when it is made, and from then on its own warm_start.json: it can
be resumed when they are gone, and asks as it would have.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.data.remote import is_url
from search.download import opened
from search.journal import read_events
from search.policy.priors import PriorRun, PriorTrial, first_from, identity, ranked
from search.run_folder import RunFolder, read_json, write_json
from search.trials import DIVERGED, FINISHED, PRUNED, Trial, Trials
from spaces.errors import UserError
from spaces.space import Space

# Out of memory, failed, out of time, under way: these say nothing about a recipe's worth.
JUDGED = (FINISHED, PRUNED, DIVERGED)


def read_priors(paths: Sequence[str | Path], out: Path) -> list[PriorRun]:
    """The earlier runs in these folders or at these URLs, for a new run in the folder `out`.

    Raises UserError with all faults: a folder that is no run or cannot be read, one given twice,
    the new run's own.
    """
    priors: list[PriorRun] = []
    faults: list[str] = []
    seen: set[Path | str] = set()
    for path in map(str, paths):
        place: Path | str = path if is_url(path) else Path(path).expanduser().resolve()
        if place == out.expanduser().resolve():
            faults.append(f"--warm-start {path} is the run itself; give an earlier run")
        elif place in seen:
            faults.append(f"--warm-start has {path} twice; name each run once")
        else:
            try:
                priors.append(read_prior(place))
            except UserError as error:
                faults += [f"--warm-start: {fault}" for fault in error.faults]
        seen.add(place)
    if faults:
        raise UserError(faults)
    return priors


def read_prior(path: Path | str) -> PriorRun:
    """What the run at `path`, or at this URL, learned; it may still be under way.

    Raises UserError when it is no run, is damaged, or is of another format version.
    """
    with opened(path, lambda name: False, journal=True) as run:
        return _read_prior(run, str(path))


def _read_prior(run: RunFolder, name: str) -> PriorRun:
    facts = read_json(run.run)
    try:
        own = identity(facts["task"], facts["metric"], facts["target_names"])
        trials, order = Trials(), facts["fold_order"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.run} lacks {error}; it is damaged: restore it") from None
    for event in read_events(run.journal)[0]:
        try:
            trials.apply(event)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{run.journal} line {event.seq + 1} cannot be understood ({error!r}); "
                "restore it, or leave this run out"
            ) from None
    judged = [trial for trial in trials.all.values() if trial.state in JUDGED]
    return PriorRun(
        name=name,
        identity=own,
        trials=tuple(
            PriorTrial(
                params=judged[index].params,
                finished=judged[index].state == FINISHED,
                rank=rank,
            )
            for index, rank in ranked([standing(trial, order) for trial in judged])
        ),
    )


def standing(trial: Trial, fold_order: Sequence[int]) -> tuple[int, int, float]:
    """How far a judged trial came and how good it was there; the greater is the better.

    Within a run trials meet at the same rungs, so of two the one that was let further is the
    better, and of two that came equally far the one with the higher score. Diverged ones come last.
    """
    if trial.state == DIVERGED:
        return -1, 0, -math.inf
    if trial.folds:
        return len(trial.folds), 0, _finite(trial.score())
    points = {
        epoch: p["score"] for (fold, epoch), p in trial.curve.items() if fold == fold_order[0]
    }
    last = max(points, default=0)
    return 0, last, _finite(points.get(last))


def notes(priors: Sequence[PriorRun], space: Space, own: dict[str, Any]) -> list[str]:
    """A sentence about each earlier run: what of it can be used in this space."""
    said = []
    for run in priors:
        usable = len(first_from([run], space, len(run.trials)))
        inside = sum(space.contains(trial.params) for trial in run.trials)
        if not run.trials:
            said.append(f"warning: warm start from {run.name}: no trial of it was judged yet")
        elif run.identity == own:
            said.append(
                f"warm start from {run.name}: {usable} finished recipes may come first, "
                f"{inside} of {len(run.trials)} trials guide the search"
            )
        else:
            said.append(
                f"warm start from {run.name}: {usable} finished recipes may come first; its "
                f"task ({run.identity['task']}), metric or targets are others: its ranking is not "
                "used"
            )
    return said


def save(run: RunFolder, priors: Sequence[PriorRun]) -> None:
    """Keep in the new run what was read of the earlier ones."""
    write_json(run.warm_start, {"runs": [dataclasses.asdict(prior) for prior in priors]})


def load(run: RunFolder) -> list[PriorRun]:
    """What `save` kept; nothing for a run without a warm start.

    Raises UserError when the file is damaged.
    """
    if not run.warm_start.exists():
        return []
    try:
        return [
            PriorRun(**{**prior, "trials": tuple(PriorTrial(**t) for t in prior["trials"])})
            for prior in read_json(run.warm_start)["runs"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.warm_start} is damaged ({error!r}); restore it") from None


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else -math.inf
