"""All trials and baselines in order of merit, as a table that sorts."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from search.report import forms
from search.report.facts import Facts, Nothing
from search.report.markup import Column, Html, el, join, table
from search.table import WRONG, count_text

MOST = 200  # rows; the rest stands in leaderboard.csv
_FOLDS = 10  # columns of folds, at most


def body(facts: Facts) -> Html:
    rows: list[dict[Any, Any]] = facts.frame.to_dict("records")
    if not rows:
        raise Nothing(facts.why_unfinished)
    wrong = [row for row in rows[MOST:] if row["state"] in WRONG][:MOST]  # with their reasons
    shown = [row for i, row in enumerate(rows) if i < MOST or row["kind"] == "baseline"] + wrong
    columns, cells = _columns(facts, shown)
    hidden = Counter(row["state"] for row in rows) - Counter(row["state"] for row in shown)
    left_out = ", ".join(f"{count} {state}" for state, count in hidden.items())
    return join([
        el("p", "Finished trials have a rank; a score over fewer folds cannot be compared with one "
           "over all. A click on a head sorts."),
        el("p", el("label", "Show rows that contain ", el("input", type="search", class_="filter",
           autocomplete="off", data_for="leaderboard-table")), class_="screen"),
        table("Leaderboard", columns, cells, states=[_class(row) for row in shown],
              id="leaderboard-table"),
        el("p", f"Not shown: {left_out}; all rows are in leaderboard.csv.", class_="note")
        if left_out else None,
    ])  # fmt: skip


def _class(row: Mapping[Any, Any]) -> str:
    return "baseline" if row["kind"] == "baseline" else str(row["state"]).replace(" ", "-")


def _columns(facts: Facts, rows: list[dict[Any, Any]]) -> tuple[list[Column], list[list[Any]]]:
    names = [str(name) for name in facts.frame.columns]
    folds = [name for name in names if name.startswith("fold_")][:_FOLDS]
    parts = [name for name in names if name.startswith("part_")]

    def plain(name: str) -> Any:
        return lambda row: _value(row[name])

    def of_model(name: str) -> Any:
        """A number that is 0 where there is no model, or none is known."""
        return lambda row: _value(row[name]) or None

    spec: list[tuple[Column, Any]] = [
        (Column(title="rank", form=forms.whole), plain("rank")),
        (Column(title="trial", form=str), lambda r: None if r["trial"] < 0 else int(r["trial"])),
        (Column(title="model", right=False), lambda row: _model(facts, row)),
        (Column(title="px", form=forms.whole, meaning="side of the images in pixels"),
         of_model("image_size")),
        (Column(title="score", form=forms.score,
                meaning=f"{facts.score_name}, mean over the folds done"), plain("score")),
        (Column(title="sd", form=forms.score, meaning="standard deviation over folds"),
         plain("sd")),
        (Column(title="rest", form=forms.score,
                meaning="mean over the folds but the first, on which survivors were selected"),
         plain("rest")),
        (Column(title="pooled", form=forms.score, meaning="score of all rows at once"),
         plain("pooled")),
        *((Column(title=f"fold {name[5:]}", form=forms.score), plain(name)) for name in folds),
        *((Column(title=name[5:].replace("_", " "), form=forms.score), plain(name))
          for name in parts),
        (Column(title="folds", form=forms.whole, meaning="folds done"), plain("folds_done")),
        (Column(title="params", form=count_text), of_model("params")),
        (Column(title="time", form=forms.seconds, meaning="of training, all folds"),
         plain("seconds")),
        (Column(title="memory", form=forms.size, meaning="peak of the trial"),
         of_model("peak_memory")),
        (Column(title="state", right=False), _state),
        *([(Column(title="note", right=False, wide=True),
            lambda row: facts.notes.get(int(row["trial"])))]
          if facts.notes else []),
        (Column(title="reason", right=False, wide=True), lambda row: row["reason"] or None),
    ]  # fmt: skip
    return [column for column, _ in spec], [[of(row) for _, of in spec] for row in rows]


def _value(value: Any) -> float | None:
    """A number of the frame; None where it holds none."""
    try:
        number = float(value)
    except (TypeError, ValueError):  # pandas' own "not available"
        return None
    return None if math.isnan(number) else number


def _model(facts: Facts, row: Mapping[Any, Any]) -> str:
    if row["kind"] == "baseline":
        return f"baseline {row['name']}"
    return facts.trials.all[int(row["trial"])].model


def _state(row: Mapping[Any, Any]) -> str:
    return "baseline" if row["kind"] == "baseline" else str(row["state"])
