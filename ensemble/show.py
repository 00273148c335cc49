"""An ensemble on the terminal: members, scores with their kind, ways to combine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ensemble.bootstrap import LEVEL
from ensemble.explain import after, score_text

if TYPE_CHECKING:
    from ensemble.choose import Choice
    from ensemble.meter import Tell

_DISCARDED = 5  # lines


def say(text: str) -> None:
    Console().print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def progress() -> "Iterator[Tell]":
    """A bar with the time left, on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task("combining", total=None)

        def tell(done: int, steps: int, what: str) -> None:
            bar.update(task, completed=done, total=steps, description=what)

        yield tell


def show(choice: "Choice") -> None:
    """Print members, ways to combine when they were compared, and scores with their kind."""
    report, console = choice.report, Console()
    console.print(_members(report, len(choice.pool.members)))
    _show_discarded(report, console)
    if "comparison" in report:
        console.print(_comparison(report))
    console.print(_scores(report))
    for step in after(choice.blend, choice.pool.target_names):
        console.print(f"after blending: {step}", highlight=False, markup=False)


def _members(report: dict[str, Any], known: int) -> Table:
    members = report["members"]
    name = report["combiner"] if report["method"] == report["combiner"] else (
        f"{report['combiner']} (by {report['method']})")  # fmt: skip
    title = f"ensemble of {len(members)} from {known} members: {name}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("member", overflow="fold")
    columns = [
        ("weight", "weight", "{:.3f}"),
        ("own score", "score", "{:.4f}"),
        ("brings", "gain", "{:+.4f}"),
        ("MB", "mb", "{:.1f}"),
        ("ms", "ms", "{:.1f}"),
    ]
    shown = [column for column in columns if any(m[column[1]] is not None for m in members)]
    for title, *_ in shown:
        table.add_column(title, justify="right")
    for m in members:
        cells = ["-" if m[key] is None else form.format(m[key]) for _, key, form in shown]
        table.add_row(m["name"], *cells)
    return table


def _show_discarded(report: dict[str, Any], console: Console) -> None:
    discarded = report["discarded"]
    for row in discarded[:_DISCARDED]:
        text = f"not used: {row['name']} ({row['score']:.4f}): {row['reason']}"
        console.print(text, highlight=False, markup=False)
    if len(discarded) > _DISCARDED:
        console.print(
            f"and {len(discarded) - _DISCARDED} more; reasons in ensemble.json", highlight=False
        )


def _comparison(report: dict[str, Any]) -> Table:
    table = Table(title="ways to combine, the simplest first", box=SIMPLE_HEAD)
    table.add_column("method")
    for title in ("members", "nested", "behind the best", "OOF"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report["comparison"]:
        if "refused" in row:
            continue
        behind = f"{row['behind_best']:.4f} ± {row['behind_best_standard_error']:.4f}"
        marks = "*" * row["used"] + "°" * row["simplest_within_one_standard_error"]
        table.add_row(
            row["method"] + marks,
            str(row["members"]),
            f"{row['nested']:.4f} ± {row['standard_error']:.4f}",
            "best" if row["behind_best"] == 0 else behind,
            f"{row['optimistic']:.4f}",
        )
    table.caption = "* used  ° simplest within one standard error of the best  OOF: optimistic"
    table.caption_justify = "left"
    return table


def _scores(report: dict[str, Any]) -> Table:
    table = Table(title=f"scores ({report['metric']}, higher is better)", box=SIMPLE_HEAD)
    table.add_column("what")
    for title in ("score", f"{100 * LEVEL:.0f} % interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("kind")
    notes: dict[str, str] = {}
    for row in report["scores"]:
        name = row["name"].removesuffix(", OOF").removesuffix(", nested")
        kind, _, meaning = row["kind"].partition(": ")
        notes[kind] = meaning
        between = row.get("interval")
        cell = f"{between['low']:.4f} to {between['high']:.4f}" if between else ""
        if between:
            notes["interval"] = f"bootstrap of {between['bootstrap_of']}"
        table.add_row(name, score_text(row), cell, kind)
    table.caption = "\n".join(f"{kind}: {meaning}" for kind, meaning in notes.items())
    table.caption_justify = "left"
    return table
