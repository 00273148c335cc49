"""Trials and baselines as rows of the leaderboard."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.journal import read_events
from search.run_folder import RunFolder, read_json
from search.trials import FINISHED, Trial, Trials

if TYPE_CHECKING:
    import pandas as pd


def frame_of(run: RunFolder) -> "pd.DataFrame":
    """The rows of a run as its journal tells them at this moment. Raises UserError when it, or
    run.json, is damaged."""
    about = read_json(run.run)
    baselines, order = about.get("baselines", ()), about.get("fold_order", ())
    return results_frame(Trials.of(read_events(run.journal)[0]), baselines, order)


def results_frame(
    trials: Trials, baselines: Sequence[Mapping[str, Any]], fold_order: Sequence[int]
) -> "pd.DataFrame":
    """One row per trial and baseline, in the columns of `search.leaderboard`."""
    import pandas as pd

    rows = [_row(trial, fold_order) for trial in trials.all.values()]
    rows += [_baseline_row(baseline, fold_order) for baseline in baselines]
    return pd.DataFrame(rows)


def _row(trial: Trial, fold_order: Sequence[int]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "kind": "trial",
        "name": f"trial {trial.number}",
        "state": trial.state,
        "backbone": trial.backbone,
        "image_size": trial.image_size,
        **_scores(trial.fold_scores(), trial.fold_parts(), fold_order),
        "pooled": trial.end.get("pooled", float("nan")),
        "params": trial.params_count,
        "seconds": trial.seconds,
        "peak_memory": trial.peak_memory,
        "reason": trial.reason,
        "recipe": json.dumps(trial.recipe),
    }


def _baseline_row(baseline: Mapping[str, Any], fold_order: Sequence[int]) -> dict[str, Any]:
    scores = dict(enumerate(baseline["fold_scores"]))
    return {
        "trial": -1,
        "kind": "baseline",
        "name": baseline["name"],
        "state": FINISHED,
        "backbone": "",
        "image_size": 0,
        **_scores(scores, dict(enumerate(baseline["fold_parts"])), fold_order),
        "pooled": baseline["pooled"],
        "params": 0,
        "seconds": baseline["seconds"],
        "peak_memory": 0,
        "reason": "trivial baseline",
        "recipe": "{}",
    }


def _scores(
    scores: Mapping[int, float], parts: Mapping[int, Mapping[str, float]], order: Sequence[int]
) -> dict[str, Any]:
    """Score columns: mean and spread over folds, and `rest`, the mean over the folds after the
    first visited one, on which the survivors were selected."""
    rest = [score for fold, score in scores.items() if fold != order[0]]
    names = dict.fromkeys(name for fold in parts.values() for name in fold)
    return {
        "score": _mean(list(scores.values())),
        "sd": statistics.stdev(scores.values()) if len(scores) > 1 else float("nan"),
        "folds_done": len(scores),
        "rest": _mean(rest),
        **{f"fold_{fold}": scores.get(fold, float("nan")) for fold in sorted(order)},
        **{f"part_{name}": _mean([p[name] for p in parts.values() if name in p]) for name in names},
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
