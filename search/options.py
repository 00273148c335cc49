"""Options that several commands share, and what their values mean."""

import argparse
from collections.abc import Sequence
from typing import Any, Literal

from spaces.task import TASK_TYPES


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """What `task_options` reads."""
    group = parser.add_argument_group("the task csv")
    add = group.add_argument
    add("--targets", nargs="+", metavar="A,B", help="columns to predict")
    add("--task-type", choices=TASK_TYPES, metavar="TYPE", help=", ".join(TASK_TYPES))
    add("--metric", metavar="M", help="what to be good at, e.g. rmse, auroc, accuracy")
    add("--image-columns", nargs="+", metavar="A,B", help="columns of image paths, one per view")
    add("--id-column", metavar="NAME", help="the column that names rows (default: id)")


def task_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of a task that is made of it."""
    options: dict[str, Any] = {
        "targets": _names(args.targets),
        "task_type": args.task_type,
        "metric": args.metric,
        "image_columns": _names(args.image_columns),
        "id_column": args.id_column,
    }
    return {name: value for name, value in options.items() if value is not None}


def gpu_share(text: str) -> float | Literal["auto"]:
    """The value of --gpus-per-trial."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def _names(words: Sequence[str] | None) -> list[str] | None:
    """Names that were separated by commas, blanks or both."""
    if words is None:
        return None
    return [name for word in words for name in word.split(",") if name]
