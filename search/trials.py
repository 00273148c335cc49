"""What is known of every trial, as a function of the journal's events."""

import math
from dataclasses import dataclass, field
from typing import Any

from search.journal import Event

# Named end states. "finished" has a complete OOF and is a member.
FINISHED, PRUNED, DIVERGED, FAILED, OUT_OF_MEMORY, STOPPED = (
    "finished",
    "pruned",
    "diverged",
    "failed",
    "out of memory",
    "stopped",
)
RUNNING = "running"


@dataclass(kw_only=True)
class Trial:
    """One recipe on its way through the rungs."""

    number: int
    params: dict[str, Any]  # what the searcher sampled
    recipe: dict[str, Any]
    source: str  # "first" (known-good), "random", "neighbour" or "sampler"
    state: str = RUNNING
    reason: str = ""
    attempt: int = 0
    folds: dict[int, dict[str, Any]] = field(default_factory=dict)  # fold -> its "fold" event data
    curve: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)  # (fold, epoch)
    seconds: float = 0.0
    peak_memory: int = 0  # bytes
    micro_batch: int = 0
    params_count: int = 0
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> str:
        return str(self.recipe["backbone"])

    @property
    def image_size(self) -> int:
        return int(self.recipe["image_size"])

    def fold_scores(self) -> dict[int, float]:
        return {fold: data["score"] for fold, data in self.folds.items()}

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

    def seconds_per_epoch(self) -> float | None:
        """Mean wall seconds of an epoch with all that belongs to it; None before the first."""
        times = [point["seconds"] for point in self.curve.values()]
        rest = [data["seconds"] for data in self.folds.values()]
        return sum(times + rest) / len(times) if times else None


class Trials:
    """All trials of a run. `apply` is its only way to change."""

    def __init__(self) -> None:
        self.all: dict[int, Trial] = {}

    def apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "ask":
            self.all[event.trial] = Trial(
                number=event.trial,
                params=data["params"],
                recipe=data["recipe"],
                source=data["source"],
            )
            return
        trial = self.all.get(event.trial)
        if trial is None:
            return
        if event.kind == "attempt":
            trial.attempt = event.attempt
        elif event.kind == "epochs":
            for point in data["points"]:
                trial.curve[point["fold"], point["epoch"]] = point
                trial.seconds += point["seconds"]
                trial.peak_memory = max(trial.peak_memory, point["peak_memory"])
                trial.micro_batch = point["micro_batch"]
        elif event.kind == "fold":
            trial.folds[data["fold"]] = data
            trial.params_count = data["params"]
            trial.seconds += data["seconds"]
        elif event.kind == "end":
            trial.state, trial.reason, trial.end = data["state"], data["reason"], data

    def live(self) -> list[Trial]:
        """Trials without an end state, by number."""
        return [trial for trial in self.all.values() if trial.state == RUNNING]

    def members(self) -> list[Trial]:
        return [trial for trial in self.all.values() if trial.state == FINISHED]

    def best(self) -> Trial | None:
        """The member with the highest score; the earlier one on a tie."""
        return max(self.members(), key=lambda t: (t.score(), -t.number), default=None)
