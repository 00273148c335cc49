"""Task: data layout, targets, metric, folds and submission of one problem."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from spaces.errors import UserError, near
from spaces.layout import Layout
from spaces.means import Means
from spaces.parts import part_of
from spaces.space import Space
from spaces.usual import usual_backbones, usual_space

TASK_TYPES = ("regression", "binary", "multilabel", "multiclass")


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """What changes places when a patient is seen in a mirror, beside the pixels of every view."""

    views: tuple[int, ...]  # the view that takes the place of each
    targets: Mapping[str, str] = field(default_factory=dict)  # target -> its counterpart

    def places(self, target_names: Sequence[str]) -> tuple[int, ...]:
        """The target that takes the place of each: its counterpart, where that is there."""
        there = {name: place for place, name in enumerate(target_names)}
        return tuple(there.get(self.targets.get(n, n), there[n]) for n in target_names)


def _by_type(means: Means) -> Space:
    raise AssertionError("a task puts its type's usual space in place of this")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem. Everything that runs asks the task, and knows no task by name.

    A name, a type, a metric and a layout are enough: the rest has usual values.
    """

    name: str
    task_type: str = "regression"  # one of TASK_TYPES
    layout: Layout = field(default_factory=Layout)
    metric: str  # a name in search.metrics
    metric_args: Mapping[str, Any] = field(default_factory=dict)
    part: type = NoneType  # frozen dataclass of the recipe's task part; NoneType: the usual one
    backbones: Callable[[bool], tuple[str, ...]] = usual_backbones  # gpu -> timm names, best first
    space: Callable[[Means], Space] = _by_type  # the type's usual one
    mirror: Mirror | None = None  # None: left and right cannot change places
    # (folder, seed): writes the embedded sample; None: there is none, --data must be given
    write_sample: Callable[[Path, int], None] | None = None
    truth: str = "truth/test.csv"  # where a generated sample keeps its test targets

    def __post_init__(self) -> None:
        if self.task_type not in TASK_TYPES:
            known = near(self.task_type, TASK_TYPES)
            raise UserError(f"task {self.name} has the unknown type {self.task_type!r}; {known}")
        if self.part is NoneType:
            object.__setattr__(self, "part", part_of(self.task_type))
        if self.space is _by_type:
            object.__setattr__(self, "space", usual_space(self.task_type))
