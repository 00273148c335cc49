"""What the sections are made of: a run's files, read once.

Shapes: T outputs, N rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.members import read_targets
from search.data.folds import Folds, read_folds
from search.journal import Event, read_events
from search.metrics import FittedMetric
from search.oof import read_oof
from search.run_folder import RunFolder, read_json
from search.trials import FINISHED, Trial, Trials
from spaces.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


_BLOCK = 256  # outputs held in float64 at a time


class Nothing(Exception):
    """A section has nothing to show; says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Out-of-fold predictions of one trial, beside the truth."""

    trial: Trial
    pred_TN: NDArray[np.float32]
    true_TN: NDArray[np.float32]
    folds: Folds
    names: tuple[str, ...]  # of the outputs

    @property
    def fold_N(self) -> NDArray[np.int64]:
        return np.asarray(self.folds.fold, dtype=np.int64)

    @cached_property
    def deviation_T(self) -> NDArray[np.float64]:
        """Standard deviations of the truth; in blocks, since thousands of targets are large."""
        return np.concatenate([
            np.asarray(self.true_TN[start : start + _BLOCK], dtype=np.float64).std(axis=1)
            for start in range(0, len(self.true_TN), _BLOCK)
        ])  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """A run as its files tell it, at any moment of its life."""

    run: RunFolder
    about: Mapping[str, Any]  # run.json
    data: Mapping[str, Any]  # data.json; empty when there is none
    ensemble: Mapping[str, Any]  # ensemble.json; empty when there is none
    events: tuple[Event, ...]
    trials: Trials
    frame: "pd.DataFrame"  # the leaderboard, ranked
    notes: Mapping[int, str]  # what people wrote about trials
    faults: tuple[str, ...] = ()  # of files that are taken for absent

    @classmethod
    def read(cls, run: RunFolder) -> Self:
        """Raises UserError when run.json or the journal cannot be read."""
        from search.leaderboard import rank
        from search.notes import read_notes
        from search.results import results_frame

        about = read_json(run.run)
        events, _ = read_events(run.journal)
        trials = Trials.of(events)
        frame = results_frame(trials, about.get("baselines", ()), about.get("fold_order", ()))
        faults: list[str] = []

        def kept(path: Path, read: Callable[[], Any]) -> Any:
            try:
                return read() if path.is_file() else {}
            except UserError as error:
                faults.extend(error.faults)
                return {}

        report = run.ensemble / "ensemble.json"
        data = kept(run.data, lambda: read_json(run.data))
        ensemble = kept(report, lambda: read_json(report))
        notes = kept(run.notes, lambda: read_notes(run))
        return cls(
            run=run,
            about=about,
            data=data,
            ensemble=ensemble,
            events=tuple(events),
            trials=trials,
            frame=rank(frame),
            notes=notes,
            faults=tuple(faults),
        )

    @property
    def task_type(self) -> str:
        return str(self.about.get("task_type", "regression"))

    @property
    def plan(self) -> Mapping[str, Any]:
        return dict(self.about.get("plan", {}))

    @property
    def fold_order(self) -> list[int]:
        """Folds in the order in which they are visited."""
        return [int(fold) for fold in self.about.get("fold_order", ())]

    @cached_property
    def metric(self) -> FittedMetric | None:
        kept = self.about.get("metric")
        return FittedMetric.from_dict(kept) if kept else None

    @property
    def score_name(self) -> str:
        return self.metric.label if self.metric else "score"

    @cached_property
    def finished(self) -> list[Trial]:
        """Trials with all folds, the best first."""
        found = [t for t in self.trials.all.values() if t.state == FINISHED]
        return sorted(found, key=lambda trial: (-trial.score(), trial.number))

    @property
    def best(self) -> Trial:
        """Raises Nothing when no trial has finished."""
        if not self.finished:
            raise Nothing(self.why_unfinished)
        return self.finished[0]

    @property
    def why_unfinished(self) -> str:
        count = len(self.trials.all)
        if not count:
            return "No trial has been started yet."
        return f"None of the {count} trials so far has finished all its folds."

    @cached_property
    def predictions(self) -> Predictions:
        """Of the best trial. Raises Nothing without one, UserError when its files are damaged."""
        best = self.best
        folds, names = read_folds(self.run.folds), tuple(self.about["target_names"])
        pred_TN, _ = read_oof(self.run.oof(best.number), folds, names)
        true_TN = read_targets(self.run.targets, pred_TN.shape)
        return Predictions(trial=best, pred_TN=pred_TN, true_TN=true_TN, folds=folds, names=names)

    def name(self, trial: Trial) -> str:
        return f"trial {trial.number}, {trial.model} at {trial.image_size} px"
