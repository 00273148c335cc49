"""What is known of every trial, as a function of the journal's events."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from search.journal import Event

# Named end states. "finished" has a complete OOF and is a member.
FINISHED, PRUNED, DIVERGED, FAILED, TOO_BIG, STOPPED = (
    "finished",
    "pruned",
    "diverged",
    "failed",
    "too big",
    "stopped",
)
RUNNING = "running"


@dataclass(kw_only=True)
class Trial:
    """One recipe on its way through the rungs."""

    number: int
    params: dict[str, Any]  # what the sampler drew
    recipe: dict[str, Any]
    source: str = ""  # who proposed it
    state: str = RUNNING
    reason: str = ""
    attempt: int = 0  # the newest lease's number
    leases: dict[int, list[int]] = field(default_factory=dict)  # attempt -> folds in its hands
    losses: int = 0  # times that workers were lost without an epoch or fold in between
    lost_upto: int = 0  # leases up to this one were begun before the last loss
    folds: dict[int, dict[str, Any]] = field(default_factory=dict)  # fold -> its "fold" event data
    curve: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)  # (fold, epoch)
    newest: dict[int, int] = field(default_factory=dict)  # fold -> newest epoch reported
    seconds: float = 0.0
    peak_memory: int = 0  # bytes
    machine: str = ""  # kind of the one that told of an epoch last
    params_count: int = 0
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> str:
        return str(self.recipe["backbone"])

    @property
    def model(self) -> str:
        """What its costs go by: the backbone, or the probe on it."""
        probe = self.recipe.get("probe", "none")
        return self.backbone if probe == "none" else f"{self.backbone} {probe}"

    @property
    def epochs(self) -> int:
        """Scheduled epochs of a fold."""
        return int(self.recipe["epochs"])

    @property
    def image_size(self) -> int:
        return int(self.recipe["image_size"])

    def held(self) -> set[int]:
        """Folds in workers' hands."""
        return {fold for folds in self.leases.values() for fold in folds}

    def fold_scores(self) -> dict[int, float]:
        """Of the folds done; a finished trial's with thresholds from its other folds."""
        if "fold_scores" in self.end:
            return dict(enumerate(self.end["fold_scores"]))
        return {fold: data["score"] for fold, data in self.folds.items()}

    def fold_parts(self) -> dict[int, dict[str, float]]:
        if "fold_parts" in self.end:
            return dict(enumerate(self.end["fold_parts"]))
        return {fold: data["parts"] for fold, data in self.folds.items()}

    def score(self) -> float:
        """Unweighted mean over the folds done; NaN when there is none."""
        scores = list(self.fold_scores().values())
        return sum(scores) / len(scores) if scores else math.nan

    @property
    def predict_ms(self) -> float | None:
        """Milliseconds to predict an image with all fold models; None when one was not timed."""
        times = [data.get("predict_ms") for data in self.folds.values()]
        known = [float(value) for value in times if value is not None]
        return sum(known) if known and len(known) == len(times) else None


class Trials:
    """All trials of a run. `apply` is its only way to change."""

    def __init__(self) -> None:
        self.all: dict[int, Trial] = {}
        self._open: dict[int, Trial] = {}
        self._members: dict[int, Trial] = {}

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """As these events, the first of a run and on, left them."""
        trials = cls()
        for event in events:
            trials.apply(event)
        return trials

    def apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "session":  # workers of an earlier driver died with it
            for trial in self._open.values():
                trial.leases.clear()
            return
        if event.kind == "ask":
            self.all[event.trial] = self._open[event.trial] = Trial(
                number=event.trial,
                params=data["params"],
                recipe=data["recipe"],
                source=data.get("source", ""),
            )
            return
        found = self.all.get(event.trial)
        if found is not None:
            self._change(found, event)

    def _change(self, trial: Trial, event: Event) -> None:
        data = event.data
        if event.kind == "attempt":
            trial.attempt = event.attempt
            for folds in trial.leases.values():
                # What one worker takes over, another gives up, and what it would have done next.
                taken = [i for i, fold in enumerate(folds) if fold in data["folds"]]
                del folds[min(taken, default=len(folds)) :]
            trial.leases[event.attempt] = list(data["folds"])
        elif event.kind == "pause":
            trial.leases.pop(event.attempt, None)
        elif event.kind == "lost":
            trial.leases.pop(event.attempt, None)
            if event.attempt > trial.lost_upto:  # one dead node may hold several leases
                trial.losses, trial.lost_upto = trial.losses + 1, trial.attempt
        elif event.kind == "epochs":
            trial.machine = data.get("machine", "")
            for point in data["points"]:
                key = point["fold"], point["epoch"]
                if key not in trial.curve:  # a resumed worker tells again what it is not sure of
                    trial.seconds += point["seconds"]
                    trial.losses = 0
                trial.curve[key] = point
                trial.newest[key[0]] = max(key[1], trial.newest.get(key[0], 0))
                trial.peak_memory = max(trial.peak_memory, point["peak_memory"])
        elif event.kind == "fold":
            trial.losses = 0
            trial.folds[data["fold"]] = data
            trial.params_count = data["params"]
            trial.seconds += data["seconds"]
            for folds in trial.leases.values():
                folds[:] = [fold for fold in folds if fold != data["fold"]]
        elif event.kind == "end":
            trial.state, trial.reason, trial.end = data["state"], data["reason"], data
            trial.leases.clear()
            self._open.pop(trial.number, None)
            if trial.state == FINISHED:
                self._members[trial.number] = trial

    def open(self) -> list[Trial]:
        """Trials without an end state, by number."""
        return list(self._open.values())

    def running(self) -> list[Trial]:
        """Trials that are in a worker's hands."""
        return [trial for trial in self._open.values() if trial.leases]

    def ended(self) -> int:
        return len(self.all) - len(self._open)

    def members(self) -> list[Trial]:
        """Finished trials, in the order in which they ended."""
        return list(self._members.values())

    def best(self) -> Trial | None:
        """The member with the highest score; the earlier one on a tie."""
        return max(self.members(), key=lambda t: (t.score(), -t.number), default=None)
