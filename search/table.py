"""The leaderboard as a table on the terminal: the columns that fit, numbers never cut."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.trials import DIVERGED, FAILED, PRUNED, RUNNING, STOPPED, TOO_BIG

if TYPE_CHECKING:  # pandas and rich are imported where they are used, so that --help is quick
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

MODEL, NOTE = 20, 24  # characters that long names and notes keep before other columns come
SHORTEST = 8  # characters of a name, however narrow the terminal
WRONG = (DIVERGED, FAILED, TOO_BIG)  # states whose reason is told below the table
STYLES = {PRUNED: "dim", STOPPED: "dim", RUNNING: "yellow"} | dict.fromkeys(WRONG, "red")

Row = Mapping[Hashable, Any]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the terminal table."""

    name: str  # of the leaderboard's column
    title: str
    cell: Callable[[Row], str]  # "" for what is not known
    importance: int = 1  # 1 is dropped last
    right: bool = True  # numbers are aligned to the right
    least: int = 0  # characters to which longer text may be cut; 0: it is never cut


def columns_of(names: Sequence[str]) -> list[Column]:
    """All columns that the terminal table may have, from left to right, given the names of the
    leaderboard's columns."""

    def number(name: str, form: Callable[[float], str]) -> Callable[[Row], str]:
        return lambda row: form(float(row[name])) if known(row[name]) else ""

    def of_model(name: str, form: Callable[[float], str]) -> Callable[[Row], str]:
        """A number that is 0 where there is no model."""
        return lambda row: form(float(row[name])) if known(row[name]) and row[name] else ""

    def whole(name: str) -> Callable[[Row], str]:
        return number(name, lambda value: f"{value:.0f}")

    def score(name: str, digits: int = 4) -> Callable[[Row], str]:
        return number(name, lambda value: f"{value:.{digits}f}")

    def column(name: str, title: str, cell: Callable[[Row], str], importance: int) -> Column:
        return Column(name=name, title=title, cell=cell, importance=importance)

    folds = sorted((c for c in names if c.startswith("fold_")), key=lambda c: int(c[5:]))
    parts = [c for c in names if c.startswith("part_")]
    columns = [
        column("rank", "#", whole("rank"), 1),
        column("trial", "trial", _trial, 1),
        Column(name="model", title="model", cell=model, right=False, least=MODEL),
        column("image_size", "px", of_model("image_size", lambda value: f"{value:.0f}"), 4),
        column("score", "score", score("score"), 1),
        column("sd", "sd", score("sd"), 2),
        column("rest", "rest", score("rest"), 3),
        column("pooled", "pooled", score("pooled"), 5),
        *(column(c, f"fold{c[5:]}", score(c, digits=3), 6) for c in folds),
        *(column(c, c[5:].replace("_", " "), score(c), 8) for c in parts),
        column("folds_done", "folds", whole("folds_done"), 2),
        column("params", "params", of_model("params", count_text), 7),
        column("seconds", "time", number("seconds", seconds_text), 4),
        column("peak_memory", "memory", of_model("peak_memory", bytes_text), 7),
        Column(name="state", title="state", cell=_state, right=False),
    ]
    if "note" in names:
        columns.append(
            Column(name="note", title="note", cell=lambda row: plain_text(row["note"]),
                   importance=2, right=False, least=NOTE)
        )  # fmt: skip
    return columns


def fit(widths: Sequence[int], importance: Sequence[int], room: int) -> list[int]:
    """Positions of the columns that fit into `room` characters, one blank between two.

    Columns of importance 1 always stay. The others are taken as whole groups of the same
    importance: half of the folds' scores would mislead.
    """
    kept: list[int] = []
    for level in sorted(set(importance)):
        wanted = kept + [i for i, value in enumerate(importance) if value == level]
        if level > 1 and sum(widths[i] + 1 for i in wanted) - 1 > room:
            continue
        kept = wanted
    return sorted(kept)


def fitted(columns: Sequence[Column], rows: Sequence[Row], width: int) -> "Table":
    """The columns that fit into `width` characters. Names and notes are cut for the others' sake,
    but get what room is left in the end."""
    from rich.text import Text

    cells = [[column.cell(row) for column in columns] for row in rows]
    whole = [
        max(len(column.title), *(len(row[i]) for row in cells), 0)
        for i, column in enumerate(columns)
    ]
    widths = [min(w, c.least) if c.least else w for w, c in zip(whole, columns, strict=True)]
    kept = fit(widths, [column.importance for column in columns], width)
    spare = width - (sum(widths[i] + 1 for i in kept) - 1)
    for i in kept:
        if columns[i].least:
            given = min(whole[i], max(widths[i] + spare, SHORTEST))
            spare, widths[i] = spare - (given - widths[i]), given
    table = _grid()
    for i in kept:
        table.add_column(
            columns[i].title, justify="right" if columns[i].right else "left",
            no_wrap=True, overflow="crop",
        )  # fmt: skip
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(*(Text(_cut(texts[i], widths[i])) for i in kept), style=_style(row))
    return table


def chosen(columns: Sequence[Column], rows: Sequence[Row]) -> "Table":
    """The columns that somebody asked for: all of them, in lines of their own where they are too
    wide."""
    from rich.text import Text

    table = _grid()
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(column.cell(row)) for column in columns), style=_style(row))
    return table


def show_table(
    ordered: "pd.DataFrame", top: int, console: "Console", names: Sequence[str] = ()
) -> None:
    """Print the first `top` of ordered rows, and all baselines, as a table no wider than the
    console; `names` are the columns that were asked for, none of them: those that fit.

    Colours only on a terminal. What went wrong is told below the table, one line a trial.
    """
    from rich.text import Text

    rows = ordered.to_dict("records")
    shown: list[Row] = []
    hidden: list[Row] = []
    for i, row in enumerate(rows):
        (shown if i < top or row["kind"] == "baseline" else hidden).append(row)
    columns = columns_of(list(ordered.columns))
    if names:
        console.print(chosen(_named(columns, names, shown), shown))
    else:
        console.print(fitted(columns, shown, console.width))

    if hidden:
        counts = Counter(row["state"] for row in hidden)
        console.print(f"and {', '.join(f'{count} {state}' for state, count in counts.items())}")
    for row in rows:
        if row["state"] in WRONG and known(row["reason"]):
            console.print(Text(f"{row['trial']:04d} {row['state']}: {row['reason']}"))


def known(value: Any) -> bool:
    """Whether a cell holds something: not None, NaN, NA or an empty text."""
    import pandas as pd

    if isinstance(value, list | tuple | dict):
        return bool(value)
    return value is not None and not pd.isna(value) and value != ""


def plain_text(value: Any) -> str:
    """Any cell as text; "" for what is not known."""
    if not known(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def model(row: Row) -> str:
    """The backbone; of a baseline its name."""
    return str(row["backbone"] if known(row["backbone"]) else row["name"])


def count_text(value: float) -> str:
    """ "12.3M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def bytes_text(value: float) -> str:
    """ "1.25G", "300M": gibibytes and mebibytes."""
    return f"{value / 2**30:.2f}G" if value >= 2**30 else f"{value / 2**20:.0f}M"


def seconds_text(value: float) -> str:
    """ "4.5s", "1m05s", "2h03m"."""
    seconds = round(value)
    if seconds < 60:
        return f"{value:.1f}s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _named(columns: Sequence[Column], names: Sequence[str], rows: Sequence[Row]) -> list[Column]:
    """The columns of these names; one that has no form of its own is shown as it is."""
    by_name = {column.name: column for column in columns}

    def as_it_is(name: str) -> Column:
        numbers = all(_is_number(row[name]) for row in rows if known(row[name]))
        return Column(name=name, title=name, cell=lambda row: plain_text(row[name]), right=numbers)

    return [by_name.get(name) or as_it_is(name) for name in names]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _grid() -> "Table":
    from rich.table import Table

    return Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")


def _style(row: Row) -> str:
    return "cyan" if row["kind"] == "baseline" else STYLES.get(row["state"], "")


def _trial(row: Row) -> str:
    return f"{row['trial']:04d}" if row["kind"] == "trial" else ""


def _state(row: Row) -> str:
    return "baseline" if row["kind"] == "baseline" else str(row["state"])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 0)] + ".."
