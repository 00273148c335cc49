"""python -m search.check TASK --data DIR: the data report; exit 1 with all faults."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces.errors import DONE, run_main

if TYPE_CHECKING:
    from rich.console import Console

    from search.data.check import DataReport


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.check",
        description="Check a task's data folder and report what is in it. Changes nothing.",
    )
    parser.add_argument("task", metavar="TASK", help="a known task, or the path of a task file")
    parser.add_argument("--data", metavar="DIR", help="data folder (default: embedded sample)")
    parser.add_argument(
        "--groups",
        metavar="COLUMN|FILE.csv|auto|none",
        default="auto",
        help="rows that belong together; FILE.csv:COLUMN chooses a column (default: auto)",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out train rows with unreadable images"
    )
    parser.add_argument("--cache", metavar="DIR", help="where the embedded sample is kept")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from rich.console import Console

    from search.data.cache import default_cache
    from search.data.check import inspect
    from search.data.source import resolve_data, sample_notice
    from search.terminal import progress_bar
    from spaces.registry import load_task

    console = Console(highlight=False, markup=False)
    task = load_task(args.task)
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    root = resolve_data(task, args.data, cache, seed=0)
    if args.data is None:
        console.print(sample_notice(task, root), soft_wrap=True)
    with progress_bar("checking images") as progress:
        report = inspect(
            task.layout, root, groups=args.groups, skip_bad=args.skip_bad, progress=progress
        )
    print_report(console, report)
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
    constant = f", {len(targets['constant'])} constant" if targets["constant"] else ""
    span = f"{targets['lowest']:.4g} to {targets['highest']:.4g}"
    yield "targets", f"{targets['count']}, values {span}{constant}"
    if data["other_columns"]:
        yield "other columns", _some(data["other_columns"])
    yield "images", f"{images['count']}: {_counts(images['formats'])}"
    yield "sizes", _counts(images["sizes"])
    yield "modes", _counts(images["modes"])
    yield "converted", _counts(images["converted"]) or "none"
    yield "same bytes", f"{len(data['duplicates']['files'])} groups of files"
    yield "left out", f"{len(data['quarantined'])} rows"
    for row in data["quarantined"]:
        yield "", f"{row['id']} {row['path']}: {row['reason']}"
    if data["groups"] is not None:
        yield "groups", _counts(data["groups"])
    if data["fold_sizes"] is not None:
        yield "fold sizes", ", ".join(map(str, data["fold_sizes"]))
    else:
        yield "groups", "auto: decided from the tiles' colours when the search starts"


def _counts(counts: dict[str, int]) -> str:
    return _some([f"{name} ({count})" for name, count in counts.items()])


def _some(names: list[str], shown: int = 12) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f", and {more} more" if more > 0 else "")


if __name__ == "__main__":
    run_main(main)
