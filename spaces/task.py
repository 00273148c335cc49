"""Task: data layout, targets, metric, folds and submission of one problem."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaces.errors import UserError, near
from spaces.space import Space

TASK_TYPES = ("regression", "binary", "multilabel", "multiclass")


@dataclass(frozen=True, kw_only=True)
class CsvLayout:
    """Names of files and columns of a task that comes as CSVs beside its images."""

    train: str = "train.csv"
    test: str = "test.csv"  # may be absent: then there is no submission
    sample_submission: str = "sample_submission.csv"  # may be absent
    id_column: str = "ID"
    path_column: str = "path"  # relative to the data folder


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the plan found to search with; a task's space is a function of it."""

    gpu: bool
    pretrained: bool  # whether pretrained weights can be had
    image_sizes: tuple[int, ...]  # pixels, that may be searched
    backbones: tuple[str, ...]  # timm names that may be searched
    epochs: int  # scheduled epochs per fold
    train_rows: int  # rows of the smallest training fold


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem. Everything that runs asks the task, and knows no task by name."""

    name: str
    task_type: str = "regression"  # one of TASK_TYPES
    layout: CsvLayout
    metric: str  # a name in search.metrics
    metric_args: Mapping[str, Any] = field(default_factory=dict)
    part: type  # frozen dataclass of the recipe's task part
    backbones: Callable[[bool], tuple[str, ...]]  # gpu -> timm names, best known first
    space: Callable[[Means], Space]
    write_sample: Callable[[Path, int], None]  # (folder, seed): the embedded sample
    truth: str = "truth/test.csv"  # where a generated sample keeps its test targets

    def __post_init__(self) -> None:
        if self.task_type not in TASK_TYPES:
            known = near(self.task_type, TASK_TYPES)
            raise UserError(f"task {self.name} has the unknown type {self.task_type!r}; {known}")
