"""Targets of the rows: which columns they are, and classes that a column names.

Shapes: N rows, T targets or classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from search.data.columns import as_floats, as_text, mostly_numbers, natural, some
from spaces.layout import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    names: tuple[str, ...]  # T
    values_TN: np.ndarray  # float32
    faults: tuple[str, ...]  # of the values


def stated_targets(
    path: Path, layout: Layout, header: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The columns that the layout makes targets, among those of the table `path`, and the faults
    where it lacks some. Optional ones are there together or not at all."""
    columns = (layout.label_column,) if layout.label_column else layout.targets
    optional = tuple(name for name in layout.optional_targets if name in header)
    lost = [name for name in layout.optional_targets if name not in header]
    if not (lost and optional):
        return columns + optional, []
    fault = (
        f"{path} lacks {some(lost)} of the {len(layout.optional_targets)} optional targets; "
        "give all of them or none"
    )
    return columns + optional, [fault]


def listed_targets(
    path: Path,
    frame: pd.DataFrame,
    others: Sequence[str],
    not_targets: Sequence[str],
    sample: Path,
    listed: Sequence[str],
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Those of the columns `others` that the file `sample` lists; faults; warnings."""
    known = set(others)
    names = tuple(name for name in listed if name in known)
    lost = [name for name in listed if name not in known]
    surplus = known.difference(listed, not_targets)
    numeric = [name for name in others if name in surplus and mostly_numbers(frame[name])]
    faults = [f"{sample} has columns that {path} lacks: {some(lost)}; both must name the targets"]
    warnings = [f"{path} columns that {sample.name} lacks are no targets: {some(numeric)}"]
    return names, faults if lost else [], warnings if numeric else []


def found_targets(
    path: Path, frame: pd.DataFrame, others: Sequence[str], not_targets: Sequence[str]
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Those of the columns `others` that hold numbers; faults; warnings."""
    free = [name for name in others if name not in not_targets]
    numeric = {name: mostly_numbers(frame[name]) for name in free}
    names = tuple(name for name in free if numeric[name])
    words = [name for name in free if not numeric[name]]
    faults = [] if names else [f"{path} has no column of numbers; add at least one target"]
    warnings = [f"{path} columns of text are no targets: {some(words)}"] if words else []
    return names, faults, warnings


def numeric_targets(
    path: Path, frame: pd.DataFrame, names: Sequence[str], ids: Sequence[str], task_type: str
) -> Targets:
    """The columns `names` as targets: finite numbers, for classes 0 or 1 and, where classes
    exclude each other, a single 1 in each row."""
    binary = task_type != "regression"
    values_TN, faults = as_floats(path, frame, names, ids, binary)
    if task_type == "multiclass" and not faults:
        ones_N = values_TN.sum(axis=0)
        rows = np.flatnonzero(ones_N != 1).tolist()
        if wrong := [f"{ids[row]}: {ones_N[row]:g}" for row in rows]:
            faults.append(f"{path} must give each id one 1, but the sums are {some(wrong)}")
    return Targets(names=tuple(names), values_TN=values_TN, faults=tuple(faults))


def class_targets(
    path: Path, frame: pd.DataFrame, layout: Layout, ids: Sequence[str], task_type: str
) -> Targets:
    """The classes that the layout's label column names, as 0 and 1: one per row, or for multilabel
    several, "8|5|0"."""
    column = layout.label_column
    if task_type not in ("multilabel", "multiclass"):
        fault = (
            f"{path} names classes in column {column!r}, so the task must be multilabel or "
            f"multiclass, not {task_type}"
        )
        return Targets(
            names=layout.classes,
            values_TN=np.zeros((len(layout.classes), len(frame)), dtype=np.float32),
            faults=(fault,),
        )
    labels = [
        [part.strip() for part in (text.split("|") if task_type == "multilabel" else [text])]
        for text in as_text(frame[column].fillna(""))  # of a line that ends early
    ]
    found = {label for row in labels for label in row if label}
    classes = layout.classes or tuple(sorted(found, key=natural))
    place = {name: t for t, name in enumerate(classes)}
    values_TN = np.zeros((len(classes), len(labels)), dtype=np.float32)
    empty, unknown = [], []
    for n, (name, row) in enumerate(zip(ids, labels, strict=True)):
        for label in row:
            if not label:
                empty.append(name)
            elif label not in place:
                unknown.append(f"{name}: {label!r}")
            else:
                values_TN[place[label], n] = 1
    faults = []
    if empty:
        faults.append(f"{path} column {column!r} is empty for ids {some(empty)}; fill it in")
    if unknown:
        faults.append(
            f"{path} column {column!r} names unknown classes: {some(unknown)}; "
            f"known: {', '.join(classes)}"
        )
    if len(classes) < 2 and not faults:
        faults.append(f"{path} column {column!r} names {len(classes)} class; at least 2 are needed")
    return Targets(names=classes, values_TN=values_TN, faults=tuple(faults))
