"""The leaderboard: python -m search.leaderboard RUN.

One row per trial and per trivial baseline. `trials.parquet` holds the rows as they were given,
`leaderboard.csv` the same rows ranked, for people; the terminal table shows the columns that fit.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.data.remote import is_url
from search.download import opened
from search.memory_watch import peak_line
from search.run_folder import FORMAT, RunFolder, read_json, write_file
from search.trials import FINISHED
from spaces.errors import DONE, UserError, run_main

if TYPE_CHECKING:  # pandas and rich are imported where they are used, so that --help is quick
    import pandas as pd
    from rich.console import Console

    from search.selection import Selection

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
SHOWN = 20  # rows of the terminal table, unless --top says otherwise


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


def show(frame: "pd.DataFrame", top: int, console: "Console") -> None:
    """Print the best `top` rows and all baselines as a table no wider than the console."""
    from search.table import show_table

    ranked = rank(frame)
    if ranked.empty:
        console.print("no trial has reported yet")
    else:
        show_table(ranked, top, console)


def show_memory(run: RunFolder, console: "Console") -> None:
    """Print what the run took of this machine's memory at its peak, where that is known."""
    if run.data.is_file() and (line := peak_line(read_json(run.data))):
        console.print(line, markup=False)


def parser() -> argparse.ArgumentParser:
    from search.selection import add_options

    parser = argparse.ArgumentParser(
        prog="python -m search.leaderboard", description="Show the leaderboard of a run."
    )
    parser.add_argument("run", metavar="RUN", help="folder or URL that search.run wrote")
    add_options(parser, SHOWN)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--trial", type=int, metavar="N", help="one trial in detail: recipe, folds, confusion")
    add("--compare", type=int, nargs=2, metavar=("A", "B"),
        help="two trials: what differs, and what it did in each fold")  # fmt: skip
    add("--note", nargs=2, metavar=("TRIAL", "TEXT"),
        help="keep a note on a trial; an empty text removes it")  # fmt: skip
    add("--follow", action="store_true",
        help="watch a run that is under way, here or on another host")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    from search.selection import joined, selection_of

    asked = parser().parse_args(joined(sys.argv[1:] if argv is None else argv))
    others = {"--trial": asked.trial, "--compare": asked.compare, "--note": asked.note,
              "--follow": asked.follow or None}  # fmt: skip
    selection = selection_of(asked, [name for name, got in others.items() if got is not None])
    if is_url(asked.run) and (asked.note is not None or asked.follow):
        raise UserError(
            f"{'--follow' if asked.follow else '--note'} works on a run's folder, not on its copy "
            f"at {asked.run}; give the folder"
        )
    needed = ["trials.parquet", "data.json", "notes.json"]
    if asked.trial is not None:
        needed += ["folds.parquet", "targets.npy", f"oof/{asked.trial:04d}/"]
    with opened(asked.run, lambda name: name.startswith(tuple(needed))) as run:
        return _show(run, asked, selection)


def _show(run: RunFolder, asked: argparse.Namespace, selection: "Selection") -> int:
    read_json(run.run)  # refuses a run of another format
    if asked.note is not None:
        return _note(run, *asked.note)

    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if asked.follow:
        from search.live import follow

        follow(run, console)
        return DONE
    frame = with_notes(run, _rows(run, asked.compare or [asked.trial]))
    if asked.trial is not None:
        from search.detail import show_trial

        show_trial(run, frame, asked.trial, console)
    elif asked.compare is not None:
        from search.compare import compare, show_comparison

        a, b = asked.compare
        show_comparison(compare(frame, a, b, _lone(run)), console)
    else:
        _show_selected(run, frame, selection, console)
    return DONE


def _rows(run: RunFolder, trials: Sequence[int | None]) -> "pd.DataFrame":
    """The rows as they were written last; where these trials, or all, came later, the journal's,
    which takes longer to read."""
    from search.journal import read_events
    from search.results import frame_of

    if not run.trials.is_file() and run.journal.is_file():
        return frame_of(run)
    frame = read_trials(run)
    missing = set(trials) - {None, *frame["trial"]}
    if missing and missing & {event.trial for event in read_events(run.journal)[0]}:
        return frame_of(run)
    return frame


def _lone(run: RunFolder) -> bool:
    """Whether a fold's score depends on whether the others are there: on their thresholds."""
    from search.metrics import FittedMetric

    metric = read_json(run.run).get("metric")
    return metric is not None and FittedMetric.from_dict(metric).fits_thresholds


def with_notes(run: RunFolder, frame: "pd.DataFrame") -> "pd.DataFrame":
    """`frame` with the column `note`, where the run has notes."""
    from search.notes import read_notes

    if not (notes := read_notes(run)):
        return frame
    return frame.assign(note=[notes.get(trial, "") for trial in frame["trial"]])


def _show_selected(
    run: RunFolder, frame: "pd.DataFrame", selection: "Selection", console: "Console"
) -> None:
    from search.selection import as_csv, as_json
    from search.table import show_table

    ordered = selection.apply(rank(frame))
    names = selection.names(ordered)
    if selection.form == "table":
        if ordered.empty:
            console.print("no trial has reported yet" if frame.empty else "no row passes --filter")
        else:
            show_table(ordered, selection.top or SHOWN, console, names)
        show_memory(run, console)
        return
    top = ordered.head(selection.top or len(ordered))
    print(as_json(top, names) if selection.form == "json" else as_csv(top, names))


def _note(run: RunFolder, trial: str, text: str) -> int:
    from search.notes import write_note

    if not trial.isdecimal():
        raise UserError(f"--note {trial!r} is no trial; give its number, then the text")
    kept = write_note(run, int(trial), text)
    print(f"trial {int(trial)}: {kept}" if kept else f"trial {int(trial)} has no note any more")
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


if __name__ == "__main__":
    run_main(main)
