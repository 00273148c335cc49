"""One trial in detail: its recipe, its folds, and where its out-of-fold predictions go wrong.

Shapes: T outputs, N rows.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search.metrics import FittedMetric, Metric, best_thresholds, get_metric, rate
from search.metrics.decisions import Counts, count
from search.run_folder import RunFolder, read_json
from search.selection import flat
from spaces.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

RATES = ("sensitivity", "specificity", "ppv", "npv", "f1")
SHOWN = 30  # outputs in the table


class Decisions(NamedTuple):
    """Out-of-fold decisions against the truth."""

    counts: Counts  # (T,) each
    confusion_TT: NDArray[np.int64] | None  # multiclass: true class by decided class


def decide(
    metric: FittedMetric,
    task_type: str,
    pred_TN: NDArray[np.float32],
    true_TN: NDArray[Any],
    fold_N: NDArray[np.int64],
) -> Decisions:
    """Decisions on every row: the highest class, or by thresholds that were chosen on the other
    folds (for the metric where it fits them, else for accuracy)."""
    if task_type == "multiclass":
        decided_N, true_N = pred_TN.argmax(axis=0), true_TN.argmax(axis=0)
        classes = np.arange(len(pred_TN))[:, None]
        confusion_TT = np.zeros((len(pred_TN), len(pred_TN)), dtype=np.int64)
        np.add.at(confusion_TT, (true_N, decided_N), 1)
        return Decisions(count(decided_N == classes, true_N == classes), confusion_TT)
    asked: Metric | FittedMetric = metric if metric.fits_thresholds else get_metric("accuracy")
    fitted = asked if isinstance(asked, FittedMetric) else asked.fit(true_TN)
    called_TN = np.zeros(pred_TN.shape, dtype=bool)
    for k in np.unique(fold_N):
        inside = fold_N == k
        thresholds_T = best_thresholds(
            fitted, pred_TN[:, ~inside], true_TN[:, ~inside], fold_N[~inside]
        )
        called_TN[:, inside] = pred_TN[:, inside] >= thresholds_T[:, None]
    return Decisions(count(called_TN, true_TN == 1), None)


def show_trial(run: RunFolder, frame: "pd.DataFrame", trial: int, console: "Console") -> None:
    """Print all that is known of a trial. Raises UserError when the run has none of that number."""
    import json

    from rich.table import Table
    from rich.text import Text

    rows = frame[(frame["kind"] == "trial") & (frame["trial"] == trial)].to_dict("records")
    if not rows:
        raise UserError(f"the run has no trial {trial}; its trials go up to {frame['trial'].max()}")
    row = rows[0]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    folds = sorted((n for n in row if str(n).startswith("fold_")), key=lambda n: int(str(n)[5:]))
    grid.add_row("trial", Text(f"{trial}, {row['state']}: {row['reason']}"))
    if note := row.get("note"):
        grid.add_row("note", Text(str(note)))
    if row["folds_done"]:
        spread = f" (sd {row['sd']:.4f} over folds)" if row["sd"] == row["sd"] else ""
        grid.add_row("score", f"{row['score']:.4f}{spread}")
        # A fold that was not trained has no score.
        grid.add_row("folds", " ".join(f"{row[n]:.4f}" if row[n] == row[n] else "-" for n in folds))
    for name in (n for n in row if str(n).startswith("part_") and row[n] == row[n]):
        grid.add_row(str(name)[5:].replace("_", " "), f"{row[name]:.4f}")
    recipe = json.loads(row["recipe"])
    for name, value in flat(recipe).items():
        grid.add_row(Text(name), Text(str(value)))
    console.print(grid)
    if not (run.oof(trial) / "meta.json").is_file():
        return
    facts = read_json(run.run)
    if facts["task_type"] != "regression":
        _show_decisions(run, facts, trial, console)


def _show_decisions(run: RunFolder, facts: dict[str, Any], trial: int, console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from search.data.folds import read_folds
    from search.oof import read_oof

    names, folds = facts["target_names"], read_folds(run.folds)
    pred_TN, _ = read_oof(run.oof(trial), folds, names)
    true_TN = np.load(run.targets, mmap_mode="r")
    metric = FittedMetric.from_dict(facts["metric"])
    found = decide(metric, facts["task_type"], pred_TN, true_TN, folds.fold)
    console.print(
        "\nout-of-fold decisions; thresholds of a fold come from the others"
        if found.confusion_TT is None
        else "\nout-of-fold decisions for the highest class"
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for title in ("target", "TP", "FP", "FN", "TN", "sens", "spec", "PPV", "NPV", "F1"):
        table.add_column(title, justify="left" if title == "target" else "right")
    rates = {name: rate(name, found.counts) for name in RATES}
    for t, name in list(enumerate(names))[:SHOWN]:
        c = found.counts
        table.add_row(
            Text(str(name)),
            *(str(int(x[t])) for x in (c.tp, c.fp, c.fn, c.tn)),
            *(f"{rates[r][t]:.3f}" if rates[r][t] == rates[r][t] else "-" for r in RATES),
        )
    console.print(table)
    if len(names) > SHOWN:
        console.print(f"the first {SHOWN} of {len(names)} targets")
    if found.confusion_TT is not None:
        # Numbers over the columns: names of classes are long, and a cut count would mislead.
        console.print(
            "\nconfusion: a row per true class, a column per decided class, in this order"
        )
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        grid.add_column("", justify="right")
        for number in range(1, len(names) + 1):
            grid.add_column(str(number), justify="right", no_wrap=True)
        for number, (name, counts_T) in enumerate(
            zip(names, found.confusion_TT.tolist(), strict=True), start=1
        ):
            grid.add_row(Text(f"{number} {name}"), *map(str, counts_T))
        console.print(grid)
