"""The leaderboard: python -m search.leaderboard RUN.

One row per trial and per trivial baseline. `trials.parquet` holds the rows as they were given,
`leaderboard.csv` the same rows ranked, for people; the terminal table shows the columns that fit.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.download import opened
from search.memory_watch import peak_line
from search.run_folder import FORMAT, RunFolder, read_json, write_file
from search.trials import DIVERGED, FAILED, FINISHED, PRUNED, RUNNING, STOPPED, TOO_BIG
from spaces.errors import DONE, UserError, run_main

if TYPE_CHECKING:  # pandas and rich are imported where they are used, so that --help is quick
    import pandas as pd
    from rich.console import Console

# Columns of every row. Beside them stand fold_0 .. fold_K-1 (official score on that fold) and
# part_NAME (the parts of the official score, means over folds).
COLUMNS = (
    "trial",  # int, our number; -1 for a baseline
    "kind",  # "trial" or "baseline"
    "name",
    "state",  # a named state of search.trials
    "backbone",
    "image_size",  # pixels
    "score",  # unweighted mean over the folds done of the official score; NaN without a fold
    "sd",  # standard deviation over these folds
    "folds_done",
    "pooled",  # official score of all OOF rows at once; never ranks
    "rest",  # mean over the folds but the first visited one, on which survivors were selected
    "params",
    "seconds",
    "peak_memory",  # bytes
    "reason",  # why the state is what it is
    "recipe",  # JSON
)
MODEL = 20  # characters that a long model name keeps for sure; other columns come before the rest
SHOWN = 20  # rows of the terminal table, unless --top says otherwise
WRONG = (DIVERGED, FAILED, TOO_BIG)  # states whose reason is told below the table
STYLES = {PRUNED: "dim", STOPPED: "dim", RUNNING: "yellow"} | dict.fromkeys(WRONG, "red")


def rank(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows in order of merit, with a first column `rank`.

    What is finished comes first, by score, baselines among the trials; it is numbered from 1. The
    rest has no number, since a score over fewer folds cannot be compared with one over all: it
    follows by folds done, then score. Ties go to the lower trial number, then to the name.
    """
    frame = _complete(frame)
    done = frame["state"] == FINISHED
    keys = frame.assign(
        _done=done,
        _folds=frame["folds_done"].where(~done, 0),
        _score=frame["score"].fillna(-math.inf),
    )
    order = keys.sort_values(
        ["_done", "_folds", "_score", "trial", "name"], ascending=[False, False, False, True, True]
    ).index
    ranked = frame.loc[order].reset_index(drop=True)
    places: list[int | None] = [i + 1 if i < int(done.sum()) else None for i in range(len(ranked))]
    ranked = ranked.drop(columns="rank", errors="ignore")
    ranked.insert(0, "rank", places)
    return ranked.astype({"rank": "Int64"})


def write_leaderboard(run: RunFolder, frame: "pd.DataFrame") -> None:
    """Write trials.parquet and leaderboard.csv.

    The format version stands in the parquet's schema; the CSV is for people and is never read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = _complete(frame)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    version = {b"format": str(FORMAT).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **version})
    ranked = rank(frame)
    write_file(run.trials, lambda path: pq.write_table(table, path))
    write_file(run.leaderboard, lambda path: ranked.to_csv(path, index=False))


def read_trials(run: RunFolder) -> "pd.DataFrame":
    """What `write_leaderboard` was given.

    Raises UserError when there is nothing yet, and for a file that this version cannot read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not run.trials.is_file():
        raise UserError(
            f"{run.trials} does not exist; it is written when the first trial of the run is whole"
        )
    try:
        table = pq.read_table(run.trials)
    except (pa.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"{run.trials} is not readable as parquet ({text}); restore it") from None
    version = (table.schema.metadata or {}).get(b"format", b"none").decode(errors="replace")
    if version != str(FORMAT):
        raise UserError(f"{run.trials} has format {version}; this version reads format {FORMAT}")
    return table.to_pandas()


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the terminal table."""

    title: str
    cell: Callable[[Any], str]  # row -> text, "" for what is not known
    importance: int  # 1 is dropped last
    right: bool = True  # numbers are aligned to the right


def columns_of(frame: "pd.DataFrame") -> list[Column]:
    """All columns that the terminal table may have, from left to right."""

    def number(name: str, form: Callable[[float], str]) -> Callable[[Any], str]:
        return lambda row: form(float(row[name])) if _known(row[name]) else ""

    def of_model(name: str, form: Callable[[float], str]) -> Callable[[Any], str]:
        """A number that is 0 where there is no model."""
        return lambda row: form(float(row[name])) if _known(row[name]) and row[name] else ""

    def whole(name: str) -> Callable[[Any], str]:
        return number(name, lambda value: f"{value:.0f}")

    def score(name: str, digits: int = 4) -> Callable[[Any], str]:
        return number(name, lambda value: f"{value:.{digits}f}")

    def column(
        title: str, cell: Callable[[Any], str], importance: int, right: bool = True
    ) -> Column:
        return Column(title=title, cell=cell, importance=importance, right=right)

    folds = sorted((c for c in frame.columns if c.startswith("fold_")), key=lambda c: int(c[5:]))
    parts = [c for c in frame.columns if c.startswith("part_")]
    return [
        column("#", whole("rank"), 1),
        column("trial", lambda row: f"{row['trial']:04d}" if row["kind"] == "trial" else "", 1),
        column("model", _model, 1, right=False),
        column("px", of_model("image_size", lambda value: f"{value:.0f}"), 4),
        column("score", score("score"), 1),
        column("sd", score("sd"), 2),
        column("rest", score("rest"), 3),
        column("pooled", score("pooled"), 5),
        *(column(f"fold{c[5:]}", score(c, digits=3), 6) for c in folds),
        *(column(c[5:].replace("_", " "), score(c), 8) for c in parts),
        column("folds", whole("folds_done"), 2),
        column("params", of_model("params", _count), 7),
        column("time", number("seconds", _duration), 4),
        column("memory", of_model("peak_memory", _bytes), 7),
        column("state", _state, 1, right=False),
    ]


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


def show(frame: "pd.DataFrame", top: int, console: "Console") -> None:
    """Print the best `top` rows and all baselines as a table no wider than the console.

    Colours only on a terminal. What went wrong is told below the table, one line a trial.
    """
    from rich.table import Table
    from rich.text import Text

    rows = rank(frame).to_dict("records")
    if not rows:
        console.print("no trial has reported yet")
        return
    shown: list[dict[Any, Any]] = []
    hidden: list[dict[Any, Any]] = []
    for i, row in enumerate(rows):
        (shown if i < top or row["kind"] == "baseline" else hidden).append(row)
    columns = columns_of(frame)
    cells = [[column.cell(row) for column in columns] for row in shown]
    widths = [
        max(len(column.title), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)
    ]
    model = next(i for i, column in enumerate(columns) if column.title == "model")
    whole_name, widths[model] = widths[model], min(widths[model], MODEL)
    kept = fit(widths, [column.importance for column in columns], console.width)
    spare = console.width - (sum(widths[i] + 1 for i in kept) - 1)
    widths[model] = min(whole_name, max(widths[model] + spare, 8))

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for i in kept:
        table.add_column(
            columns[i].title,
            justify="right" if columns[i].right else "left",
            no_wrap=True,
            overflow="crop",
        )
    for row, texts in zip(shown, cells, strict=True):
        style = "cyan" if row["kind"] == "baseline" else STYLES.get(row["state"], "")
        table.add_row(*(Text(_cut(texts[i], widths[i])) for i in kept), style=style)
    console.print(table)

    if hidden:
        counts = Counter(row["state"] for row in hidden)
        console.print(f"and {', '.join(f'{count} {state}' for state, count in counts.items())}")
    for row in rows:
        if row["state"] in WRONG and _known(row["reason"]):
            console.print(Text(f"{row['trial']:04d} {row['state']}: {row['reason']}"))


def show_memory(run: RunFolder, console: "Console") -> None:
    """Print what the run took of this machine's memory at its peak, where that is known."""
    if run.data.is_file() and (line := peak_line(read_json(run.data))):
        console.print(line, markup=False)


def as_json(frame: "pd.DataFrame", top: int) -> str:
    """The ranked rows as JSON; what is not known is null, recipes are objects."""
    rows = []
    for row in rank(frame).head(top).to_dict("records"):
        plain = {str(name): value if _known(value) else None for name, value in row.items()}
        if plain["recipe"]:
            plain["recipe"] = json.loads(plain["recipe"])
        rows.append(plain)
    return json.dumps({"format": FORMAT, "rows": rows}, indent=1, default=_plain)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.leaderboard", description="Show the leaderboard of a run."
    )
    parser.add_argument("run", metavar="RUN", help="folder or URL that search.run wrote")
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help=f"rows to show (default: {SHOWN}, and all of them with --json)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--trial", type=int, metavar="N", help="one trial in detail: recipe, folds, confusion"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(argv)
    if asked.top is not None and asked.top < 1:
        raise UserError(f"--top is {asked.top}; it must be 1 or more")
    needed = ["trials.parquet", "data.json"]
    if asked.trial is not None:
        needed += ["folds.parquet", "targets.npy", f"oof/{asked.trial:04d}/"]
    with opened(asked.run, lambda name: name.startswith(tuple(needed))) as run:
        return _show(run, asked)


def _show(run: RunFolder, asked: argparse.Namespace) -> int:
    read_json(run.run)  # refuses a run of another format
    frame = read_trials(run)
    if asked.json:
        print(as_json(frame, asked.top or len(frame)))
        return DONE
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if asked.trial is not None:
        from search.detail import show_trial

        show_trial(run, frame, asked.trial, console)
        return DONE
    show(frame, asked.top or SHOWN, console)
    show_memory(run, console)
    return DONE


def _complete(frame: "pd.DataFrame") -> "pd.DataFrame":
    """`frame`, where one without rows may lack columns too.

    Raises ValueError when a column is missing beside rows.
    """
    if frame.empty:
        return frame.reindex(columns=list(COLUMNS))
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"a leaderboard needs the columns {', '.join(missing)}")
    return frame


def _known(value: Any) -> bool:
    """Whether a cell holds something: not None, NaN, NA or an empty text."""
    import pandas as pd

    return value is not None and not pd.isna(value) and value != ""


def _model(row: Any) -> str:
    return str(row["backbone"] if _known(row["backbone"]) else row["name"])


def _state(row: Any) -> str:
    return "baseline" if row["kind"] == "baseline" else str(row["state"])


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f}G" if value >= 2**30 else f"{value / 2**20:.0f}M"


def _duration(value: float) -> str:
    seconds = round(value)
    if seconds < 60:
        return f"{value:.1f}s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 2, 0)] + ".."


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item()


if __name__ == "__main__":
    run_main(main)
