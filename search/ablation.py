"""--ablate: one change at a time around the best recipe of a run, and a table of what each did."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.journal import Journal
from search.policy.ablation import Change, changes, effect
from search.run_folder import write_file
from search.trials import FINISHED, Trial, Trials
from spaces.errors import UserError
from spaces.space import Space

if TYPE_CHECKING:
    from rich.console import Console

ABLATE = "ablate"  # the event, and the source of its trials
HEAD = ("change", "trial", "state", "score", "difference", "low", "high")


def ask_for(journal: Journal, space: Space, names: Sequence[str]) -> int:
    """Journal the changes around the best finished trial; how many there are.

    Raises UserError when no trial has finished, or for a name that its recipe does not have.
    """
    trials = Trials.of(journal.events)
    finished = [t for t in trials.all.values() if t.state == FINISHED]
    if not finished:
        raise UserError("--ablate needs a finished trial to change; give the run more trials first")
    best = max(finished, key=lambda trial: (trial.score(), -trial.number))
    found = changes(space, best.params, int(best.recipe["seed"]), names)
    journal.append(
        ABLATE, trials=len(found), base=best.number, changes=[c.to_dict() for c in found]
    )
    return len(found)


def rows(journal: Journal, trials: Trials) -> list[dict[str, Any]]:
    """A row per change of all ablations of the run, the best first within each; intervals over
    folds. Trials of an ablation follow its event in the order of its changes."""
    found: list[dict[str, Any]] = []
    events = journal.events
    asked = [t for t in trials.all.values() if t.source == ABLATE]
    for event in (e for e in events if e.kind == ABLATE):
        base = trials.all[event.data["base"]]
        part, asked = asked[: event.data["trials"]], asked[event.data["trials"] :]
        asked_for = zip(event.data["changes"], part, strict=False)  # some may be still to come
        table = [_row(Change(**change), trial, base) for change, trial in asked_for]
        table.sort(key=lambda row: float("inf") if row["score"] is None else -row["score"])
        found += [_base_row(base), *table]
    return found


def write(path: Path, table: Sequence[dict[str, Any]]) -> None:
    def fill(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEAD, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)

    write_file(path, fill)


def show(table: Sequence[dict[str, Any]], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, right in (("change", False), ("trial", True), ("score", True), ("effect", True),
                        ("95 % over folds", True)):  # fmt: skip
        grid.add_column(name, justify="right" if right else "left")
    for row in table:
        cells = [Text(str(row["change"])), Text(f"{row['trial']:04d}")]
        if row["score"] is None:
            cells += [Text(str(row["state"])), Text(""), Text("")]
        elif row["difference"] is None:
            cells += [Text(f"{row['score']:.4f}"), Text(""), Text("")]
        else:
            clear = row["low"] > 0 or row["high"] < 0
            cells += [
                Text(f"{row['score']:.4f}"),
                Text(f"{row['difference']:+.4f}", style="bold" if clear else ""),
                Text(f"{row['low']:+.4f} to {row['high']:+.4f}"),
            ]
        grid.add_row(*cells)
    console.print("\none change at a time, against the recipe it changes")
    console.print(grid)


def _base_row(base: Trial) -> dict[str, Any]:
    return {
        "change": f"trial {base.number} as it is", "trial": base.number, "state": base.state,
        "score": base.score(), "difference": None, "low": None, "high": None,
    }  # fmt: skip


def _row(change: Change, trial: Trial, base: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {
        "change": change.words, "trial": trial.number, "state": trial.state,
        "score": None, "difference": None, "low": None, "high": None,
    }  # fmt: skip
    if trial.state == FINISHED:
        here, there = trial.fold_scores(), base.fold_scores()
        found = effect([here[k] for k in sorted(there)], [there[k] for k in sorted(there)])
        row |= {"score": trial.score(), "difference": found.difference, "low": found.low,
                "high": found.high}  # fmt: skip
    return row
