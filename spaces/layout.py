"""Where a task's rows, images and targets lie below its data folder, and what it hands in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spaces.errors import UserError

FORMS = ("table", "lines", "cells")
DECIDED = ("none", "all", "rest")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is handed in for the test rows."""

    # "table": a CSV with the id and one column per target; with a label column, the id and the
    # label. "lines": a line "id label" per row, without a head. "cells": Kaggle's HPA table, whose
    # PredictionString holds "class confidence mask" for each class.
    form: str = "table"
    file: str = "submission.csv"  # its name in a run's folder
    # Targets that are written as decisions, 0 or 1, rather than as probabilities: "rest" are all
    # but the first.
    decided: str = "none"

    def __post_init__(self) -> None:
        faults = []
        if self.form not in FORMS:
            faults.append(f"submission form is {self.form!r}; known: {', '.join(FORMS)}")
        if self.decided not in DECIDED:
            faults.append(f"submission decided is {self.decided!r}; known: {', '.join(DECIDED)}")
        if faults:
            raise UserError(faults)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files, columns and image names of a task. Paths are relative to the data folder.

    An image belongs to a row by its column `image_columns`, or by a pattern that holds `{id}` and,
    where there are any, `{view}` and `{channel}`. Of several patterns the first whose file exists
    counts, row by row.
    """

    train: str = "train.csv"
    test: str = "test.csv"  # may be absent: then there is no submission; a folder: its images
    sample_submission: str = "sample_submission.csv"  # may be absent; "": there never is one
    columns: tuple[str, ...] = ()  # of `train` without a header, separated by blanks
    id_column: str = "ID"
    id_width: int = 0  # ids are padded with zeros to this width, everywhere
    image_columns: tuple[str, ...] = ("path",)  # one per view; () with patterns
    train_images: tuple[str, ...] = ()
    test_images: tuple[str, ...] = ()
    views: tuple[str, ...] = ()  # what `{view}` stands for; (): one image per row
    channels: tuple[str, ...] = ()  # what `{channel}` stands for: grey files of one image
    targets: tuple[str, ...] = ()  # (): the sample submission's columns, else all of numbers
    optional_targets: tuple[str, ...] = ()  # follow `targets` where the table has all of them
    label_column: str = ""  # names each row's class, or several: "8|5|0"
    classes: tuple[str, ...] = ()  # of the label column, in the order of outputs; (): as found
    submission: Submission = field(default_factory=Submission)

    @property
    def view_count(self) -> int:
        """Images per row."""
        return len(self.views) or len(self.image_columns) or 1

    @property
    def channel_count(self) -> int:
        """Channels of a stored image."""
        return len(self.channels) if len(self.channels) > 1 else 3

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Layout":
        """From `dataclasses.asdict` or its JSON."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**{**fields, "submission": Submission(**data["submission"])})
