"""python -m search.check TASK --data DIR: the data report; exit 1 with all faults."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.options import add_task_options, task_options
from spaces.errors import DONE, run_main

if TYPE_CHECKING:
    from rich.console import Console

    from search.data.report import DataReport


_LABELS = 25  # whose counts per fold are shown


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.check",
        description="Check a task's data folder and report what is in it. Changes nothing.",
    )
    parser.add_argument("task", metavar="TASK", help="a known task, or the path of a task file")
    parser.add_argument("--data", metavar="DIR|URL", help="data folder (default: embedded sample)")
    parser.add_argument(
        "--groups",
        metavar="COLUMN|FILE.csv|auto|none",
        default="auto",
        help="rows that belong together; FILE.csv:COLUMN chooses a column (default: auto)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out train rows with unreadable images"
    )
    parser.add_argument(
        "--group-duplicates",
        action="store_true",
        help="join groups that share near-duplicate images, instead of refusing them",
    )
    parser.add_argument("--folds", type=int, metavar="K", help="folds to count labels in")
    parser.add_argument("--pictures", metavar="DIR", help="write pictures of what was found")
    parser.add_argument("--cache", metavar="DIR", help="where samples and what was seen are kept")
    add_task_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from rich.console import Console

    from search.data.cache import default_cache
    from search.data.check import inspect
    from search.data.source import resolve_data, sample_notice
    from search.metrics import metric_of
    from search.pictures import draw
    from search.terminal import progress_bar
    from spaces.registry import load_task

    console = Console(highlight=False, markup=False)
    task = load_task(args.task, task_options(args))
    metric_of(task.metric, task.metric_args, task.task_type)
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    with progress_bar("fetching the data") as progress:
        root = resolve_data(task, args.data, cache, seed=0, progress=progress)
    if args.data is None:
        console.print(sample_notice(task, root), soft_wrap=True)
    with progress_bar("checking images") as progress:
        report = inspect(
            task, root, groups=args.groups, folds=args.folds, skip_bad=args.skip_bad,
            group_duplicates=args.group_duplicates, progress=progress, cache=cache,
        )  # fmt: skip
    print_report(console, report)
    if args.pictures:
        for name in draw(report, Path(args.pictures)):
            console.print(f"picture: {Path(args.pictures) / name}", soft_wrap=True)
    return DONE


def print_report(console: "Console", report: "DataReport") -> None:
    """The report as two columns, then the warnings."""
    from rich.table import Table
    from rich.text import Text

    data = report.to_dict()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(data):
        grid.add_row(Text(name), Text(value))
    console.print(grid)
    for warning in data["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow", overflow="fold"))
    if not data["warnings"]:
        console.print("no faults, no warnings")


def _lines(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows, targets, images = data["rows"], data["targets"], data["images"]
    yield "data", data["root"]
    yield "train rows", str(rows["train"])
    yield "test rows", str(rows["test"])
    if data["views"] > 1:
        yield "views", f"{data['views']} images per row"
    constant = f", {len(targets['constant'])} constant" if targets["constant"] else ""
    span = f"{targets['lowest']:.4g} to {targets['highest']:.4g}"
    yield "targets", f"{targets['count']}, values {span}{constant}"
    if data["other_columns"]:
        yield "other columns", _some(data["other_columns"])
    yield "images", f"{images['count']}: {_counts(images['formats'])}"
    yield "sizes", _counts(images["sizes"])
    yield "modes", _counts(images["modes"])
    yield "converted", _counts(images["converted"]) or "none"
    yield "borders", f"{len(images['borders'])} images"
    yield "captions", f"{len(images['captions'])} images"
    yield "same bytes", f"{len(data['duplicates']['files'])} groups of files"
    near = data["near_duplicates"]["counts"]
    yield (
        "near duplicates",
        f"{near['train']} pairs in train, {near['train_and_test']} across train and test, "
        f"{near['conflicting']} with different labels",
    )
    for name, apart in data["told_apart"].items():
        yield name.replace("_", " "), apart["meaning"]
    yield "left out", f"{len(data['quarantined'])} rows"
    for row in data["quarantined"]:
        yield "", f"{row['id']} {' '.join(row['files'])}: {row['reason']}"
    groups = data["groups"]
    if groups is not None:
        many = f"{groups}: rows that look alike are one"
        yield "groups", many if isinstance(groups, int) else _counts(groups)
    for cluster in data["clusters"]:
        yield "", ", ".join(f"{name} {value:.3g}" for name, value in cluster.items())
    yield "fold sizes", ", ".join(map(str, data["fold_sizes"]))
    for name, counts in list(data["labels_per_fold"].items())[:_LABELS]:
        yield f"  {name}", f"{', '.join(map(str, counts))} positive"


def _counts(counts: dict[str, int]) -> str:
    return _some([f"{name} ({count})" for name, count in counts.items()])


def _some(names: list[str], shown: int = 12) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f", and {more} more" if more > 0 else "")


if __name__ == "__main__":
    run_main(main)
