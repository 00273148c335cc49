"""The parts of a recipe that hang on the type of task: losses, and how classes are balanced."""

from dataclasses import dataclass

from spaces.errors import UserError

REGRESSION_LOSSES = ("mse", "huber", "mse_pearson_gene", "mse_pearson_cell", "mse_pearson_both")
TARGETS = ("zscore", "raw")
CLASSIFICATION_LOSSES = ("cross_entropy", "focal", "asymmetric")
CLASS_WEIGHTS = ("none", "balanced")
SAMPLERS = ("none", "over", "under")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """How values are learned."""

    loss: str = "mse"
    huber_delta: float = 1.0  # in standard deviations of a target
    pearson_weight: float = 0.5  # of the correlation term beside the squared error
    target: str = "zscore"  # "zscore": each target to sd 1; "raw": one scale for all

    def __post_init__(self) -> None:
        faults = []
        if self.loss not in REGRESSION_LOSSES:
            faults.append(f"task.loss is {self.loss!r}; known: {', '.join(REGRESSION_LOSSES)}")
        if self.target not in TARGETS:
            faults.append(f"task.target is {self.target!r}; known: {', '.join(TARGETS)}")
        if self.huber_delta <= 0:
            faults.append(f"task.huber_delta is {self.huber_delta}; it must be positive")
        if self.pearson_weight < 0:
            faults.append(f"task.pearson_weight is {self.pearson_weight}; it must not be negative")
        if faults:
            raise UserError(faults)


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How classes are learned: binary and multilabel by sigmoids, multiclass by a softmax."""

    loss: str = "cross_entropy"  # "focal" (Lin et al. 2017), "asymmetric" (Ridnik et al. 2021)
    gamma: float = 2.0  # of focal; of asymmetric for negatives, whose positives have 0
    label_smoothing: float = 0.0  # share of a label that is spread evenly
    class_weight: str = "none"  # "balanced": positives (classes) weigh by their rarity, at most 10
    sampler: str = "none"  # "over": rare classes are drawn more often; "under": common ones less
    rest_weight: float | None = None  # of all outputs but the first, together; None: all alike

    def __post_init__(self) -> None:
        faults = []
        for name, known in (
            ("loss", CLASSIFICATION_LOSSES), ("class_weight", CLASS_WEIGHTS), ("sampler", SAMPLERS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                value = getattr(self, name)
                faults.append(f"task.{name} is {value!r}; known: {', '.join(known)}")
        if not 0 <= self.gamma <= 10:
            faults.append(f"task.gamma is {self.gamma}; it must lie in [0, 10]")
        if not 0 <= self.label_smoothing < 0.5:
            faults.append(f"task.label_smoothing is {self.label_smoothing}; it must be below 0.5")
        if self.rest_weight is not None and self.rest_weight < 0:
            faults.append(f"task.rest_weight is {self.rest_weight}; it must not be negative")
        if faults:
            raise UserError(faults)


def part_of(task_type: str) -> type:
    """The part of a recipe that a task of this type has."""
    return Regression if task_type == "regression" else Classification
