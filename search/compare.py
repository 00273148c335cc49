"""Two trials side by side: what differs in their recipes, and what it did in each fold."""

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.policy.ablation import Effect, effect
from search.selection import flat
from search.table import bytes_text, count_text, known, plain_text, seconds_text
from search.trials import FINISHED
from spaces.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

Row = Mapping[Hashable, Any]
THRESHOLDS = (
    "one has not finished,\nand only a finished trial's folds have thresholds, from its others"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What changes from trial `a` to trial `b`."""

    a: Row  # of the leaderboard
    b: Row
    recipe: tuple[tuple[str, Any, Any], ...]  # field, value in a, value in b: where they differ
    folds: tuple[tuple[int, float, float], ...]  # fold, score of a, score of b: where both have one
    gain: Effect | None  # b minus a over these folds; None: there is none
    why: str = ""  # the folds that both have cannot be compared


def compare(frame: "pd.DataFrame", a: int, b: int, lone: bool = False) -> Comparison:
    """Compare two trials of a leaderboard. `lone`: its scores are by thresholds, which come from a
    finished trial's other folds; folds of one that is not finished have had .5.

    Raises UserError when it does not have both, or they are the same.
    """
    rows: dict[int, Row] = {
        row["trial"]: row for row in frame.to_dict("records") if row["kind"] == "trial"
    }
    has = f"its trials go up to {max(rows)}" if rows else "it has none yet"
    faults = [
        f"the run has no trial {trial}; {has}"
        for trial in dict.fromkeys((a, b))
        if trial not in rows
    ]
    if a == b:
        faults.append(f"--compare names trial {a} twice; name two")
    if faults:
        raise UserError(faults)
    first, second = rows[a], rows[b]
    of_a, of_b = (flat(json.loads(row["recipe"])) for row in (first, second))
    names = [str(name) for name in frame.columns if str(name).startswith("fold_")]
    differ = lone and (first["state"] == FINISHED) != (second["state"] == FINISHED)
    folds = (
        ()
        if differ
        else tuple(
            (int(name.removeprefix("fold_")), float(first[name]), float(second[name]))
            for name in sorted(names, key=lambda name: int(name.removeprefix("fold_")))
            if known(first[name]) and known(second[name])
        )
    )
    return Comparison(
        a=first,
        b=second,
        recipe=tuple(
            (name, of_a.get(name), of_b.get(name))
            for name in {**of_a, **of_b}
            if of_a.get(name) != of_b.get(name)
        ),
        folds=folds,
        gain=effect([f[2] for f in folds], [f[1] for f in folds]) if folds else None,
        why=THRESHOLDS if differ else "",
    )


def show_comparison(found: Comparison, console: "Console") -> None:
    """Print it no wider than the console."""
    from rich.table import Table
    from rich.text import Text

    a, b = found.a, found.b
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("", f"trial {a['trial']}", f"trial {b['trial']}", "change"):
        table.add_column(title, justify="right" if title else "left", overflow="fold")

    def add(name: str, left: str, right: str, change: str = "") -> None:
        table.add_row(Text(name), Text(left), Text(right), Text(change))

    for name, left, right in found.recipe:
        add(name, _value(left), _value(right))
    if not found.recipe:
        add("recipe", "the same", "the same")
    table.add_row()
    add("state", str(a["state"]), str(b["state"]))
    for name, form in (("params", count_text), ("seconds", seconds_text),
                       ("peak_memory", bytes_text)):  # fmt: skip
        title = {"seconds": "time", "peak_memory": "memory"}.get(name, name)
        add(title, *(form(float(row[name])) if row[name] else "" for row in (a, b)))
    if known(a.get("note")) or known(b.get("note")):
        add("note", plain_text(a.get("note")), plain_text(b.get("note")))
    table.add_row()
    for fold, left_score, right_score in found.folds:
        change = right_score - left_score
        add(f"fold {fold}", f"{left_score:.4f}", f"{right_score:.4f}", f"{change:+.4f}")
    console.print(table)
    console.print(_verdict(found), markup=False, highlight=False)


def _verdict(found: Comparison) -> str:
    """The paired difference in words, and how sure it is."""
    a, b, gain, folds = found.a["trial"], found.b["trial"], found.gain, len(found.folds)
    if found.why:
        return f"\ntrials {a} and {b} cannot be compared: {found.why}"
    if gain is None:
        return f"\ntrials {a} and {b} have no fold in common: their scores cannot be compared"
    here = f"\ntrial {b} minus trial {a}, paired over {folds} fold{'s' if folds > 1 else ''}"
    if folds == 1:
        return f"{here}: {gain.difference:+.4f}; one fold has no interval"
    between = f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    sure = "leaves out 0" if gain.clear else "holds 0, so it may be chance"
    return f"{here}: {gain.difference:+.4f}\n{between}: {sure}"


def _value(value: Any) -> str:
    """A recipe's value; "-" where the other recipe alone has the field."""
    return "-" if value is None else plain_text(value) or '""'
