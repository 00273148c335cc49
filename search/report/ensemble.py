"""The ensemble: scores with their kind, weights, what members bring, how errors go together."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.report import forms
from search.report.chart import (
    BLUE,
    DIVERGING,
    GREEN,
    GREY,
    ORANGE,
    Chart,
    axis,
    names_axis,
    numbers,
    words,
)
from search.report.facts import Facts, Nothing
from search.report.markup import Column, Html, details, el, join, table
from search.report.summary import NESTED, OPTIMISTIC, SINGLE, scores_of

_MATRIX = 25  # members in the picture of error correlations
_LISTED = 60


def body(facts: Facts) -> Html:
    report = facts.ensemble
    drawn = charts(facts)
    titles = {"ensemble-folds": "Fold by fold", "ensemble-size": "What size brings",
              "error-correlation": "How errors go together"}  # fmt: skip
    method = report["method"]
    how = report["what"] if method == report["combiner"] else f"{report['combiner']}, by {method}"
    return join([
        el("p", f"{forms.plural(len(report['members']), 'member')}, combined by {how}. For nested "
           "scores everything is chosen without the fold that is scored; the OOF score of an "
           "ensemble was selected on its own rows, so it flatters."),
        drawn["ensemble-scores"].html(),
        _scores(report),
        el("h3", "Members"),
        _members(report),
        el("div", [el("div", el("h3", titles[name]), drawn[name].html()) for name in titles
                   if name in drawn], class_="grid"),
        _comparison(report),
        _discarded(report),
        _notes(report),
    ])  # fmt: skip


def charts(facts: Facts) -> dict[str, Chart]:
    report = facts.ensemble
    if not report:
        raise Nothing(
            "There is no ensemble: no trial has finished all its folds."
            if not facts.finished
            else "There is no ensemble in the run's folder; python -m ensemble.build makes one."
        )
    drawn = {"ensemble-scores": _score_chart(facts), "ensemble-folds": _folds(facts)}
    if len(report["curve"]) > 1:
        drawn["ensemble-size"] = _size(facts)
    if len(report["error_correlation"]["names"]) > 1:
        drawn["error-correlation"] = _correlation(report)
    return drawn


def _score_chart(facts: Facts) -> Chart:
    """Honest and optimistic scores on one axis, with their intervals."""
    scores = scores_of(facts)
    wanted = [
        (NESTED, "ensemble, nested", GREEN), (SINGLE, "best single, nested", BLUE),
        (OPTIMISTIC, "ensemble, optimistic", ORANGE),
    ]  # fmt: skip
    rows = [(scores[key], name, colour) for key, name, colour in wanted if key in scores]
    rows += [
        ({"score": row["score"]}, f"baseline {row['name']}", GREY)
        for row in facts.frame[facts.frame["kind"] == "baseline"].to_dict("records")
    ]
    below, above = [], []
    for row, _, _ in rows:
        between = row.get("interval")
        below.append(row["score"] - between["low"] if between else 0)
        above.append(between["high"] - row["score"] if between else 0)
    told = "; ".join(f"{name} {forms.score(row['score'])}" for row, name, _ in rows)
    return Chart(
        data=[{
            "type": "scatter", "mode": "markers", "x": numbers(row["score"] for row, _, _ in rows),
            "y": list(range(len(rows))), "text": [words(name) for _, name, _ in rows],
            "marker": {"size": 11, "color": [colour for _, _, colour in rows]},
            "error_x": {"type": "data", "symmetric": False, "array": numbers(above),
                        "arrayminus": numbers(below), "color": GREY, "thickness": 2},
            "hovertemplate": "%{text}: %{x:.4f}<extra></extra>",
        }],
        label=f"Scores: {told}.",
        layout={"xaxis": axis(words(facts.score_name)),
                "yaxis": names_axis([name for _, name, _ in rows])},
        caption="Lines: 95 % intervals, bootstrap of what is told in the table.",
        height=70 + 34 * len(rows),
    )  # fmt: skip


def _scores(report: Mapping[str, Any]) -> Html:
    columns = [
        Column(title="what", right=False),
        Column(title="score", form=forms.score),
        Column(title="standard error", form=forms.score),
        Column(title="from", form=forms.score), Column(title="to", form=forms.score),
        Column(title="kind", right=False, wide=True),
    ]  # fmt: skip
    rows = []
    for row in report["scores"]:
        between = row.get("interval", {})
        unit = f"; interval: bootstrap of {between['bootstrap_of']}" if between else ""
        rows.append([row["name"], row["score"], row.get("standard_error"), between.get("low"),
                     between.get("high"), row["kind"] + unit])  # fmt: skip
    return table("Scores of the ensemble", columns, rows)


def _members(report: Mapping[str, Any]) -> Html:
    columns = [
        Column(title="member", right=False),
        Column(title="weight", form=lambda v: f"{v:.3f}"),
        Column(title="family", right=False),
        Column(title="own score", form=forms.score, meaning="OOF, mean over folds"),
        Column(title="brings", form=forms.signed,
               meaning="what the OOF score loses without it, the other weights kept"),
        Column(title="MB", form=lambda v: f"{v:.1f}"),
        Column(title="ms", form=lambda v: f"{v:.1f}", meaning="to predict a row"),
    ]  # fmt: skip
    rows = [
        [forms.member(m["name"]), m["weight"], m.get("family"), m["score"], m["gain"], m.get("mb"),
         m.get("ms")]
        for m in report["members"][:_LISTED]
    ]  # fmt: skip
    return table("Members and their weights", columns, rows)


def _folds(facts: Facts) -> Chart:
    scores = scores_of(facts)
    traces = []
    for key, colour in ((NESTED, GREEN), (SINGLE, BLUE)):
        per_fold = scores[key]["per_fold"] if key in scores else []
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": list(range(len(per_fold))),
            "y": numbers(per_fold), "name": key.replace(", nested", ""),
            "line": {"color": colour, "width": 1}, "marker": {"size": 9},
            "hovertemplate": "fold %{x}: %{y:.4f}<extra></extra>",
        })  # fmt: skip
    return Chart(
        data=traces,
        label="Nested scores of the ensemble and of the best single model in each fold.",
        layout={"xaxis": axis("fold", dtick=1, showgrid=False),
                "yaxis": axis(words(facts.score_name)), "showlegend": True},
        height=300,
    )  # fmt: skip


def _size(facts: Facts) -> Chart:
    curve = facts.ensemble["curve"]
    x = [row["members"] for row in curve]
    text = [
        ", ".join(f"{row[key]:.0f} {unit}" for key, unit in (("mb", "MB"), ("ms", "ms"))
                  if row[key] is not None)
        for row in curve
    ]  # fmt: skip
    best = max(curve, key=lambda row: row["nested"])
    return Chart(
        data=[
            {"type": "scatter", "mode": "lines+markers", "x": x, "text": text,
             "y": numbers(row["nested"] for row in curve), "name": "nested",
             "error_y": {"type": "data", "color": GREY, "thickness": 1,
                         "array": numbers(row["standard_error"] for row in curve)},
             "line": {"color": GREEN, "width": 2},
             "hovertemplate": "%{x} members: %{y:.4f}<br>%{text}<extra>nested</extra>"},
            {"type": "scatter", "mode": "lines+markers", "x": x,
             "y": numbers(row["optimistic"] for row in curve), "name": "optimistic",
             "line": {"color": ORANGE, "width": 2, "dash": "dot"},
             "hovertemplate": "%{x} members: %{y:.4f}<extra>optimistic</extra>"},
        ],
        label=f"Score against the number of members: the nested score is highest with "
              f"{best['members']}, {forms.score(best['nested'])}.",
        layout={"xaxis": axis("members, by greedy selection", rangemode="tozero"),
                "yaxis": axis(words(facts.score_name)), "showlegend": True},
        height=300,
    )  # fmt: skip


def _correlation(report: Mapping[str, Any]) -> Chart:
    known: Sequence[str] = report["error_correlation"]["names"][:_MATRIX]
    names = [words(forms.member(name), 16) for name in known]
    matrix = [row[:_MATRIX] for row in report["error_correlation"]["matrix"][:_MATRIX]]
    others = [matrix[i][j] for i in range(len(names)) for j in range(i)]
    places = list(range(len(names)))
    return Chart(
        data=[{
            "type": "heatmap", "z": [numbers(row) for row in matrix], "colorscale": DIVERGING,
            "zmin": -1, "zmax": 1, "showscale": False, "xgap": 1, "ygap": 1,
            "texttemplate": "%{z:.2f}" if len(names) <= 12 else "",
            "hovertemplate": "%{z:.3f}<extra></extra>",
        }],
        label=f"Correlations of the errors of {len(names)} members, from {min(others):.2f} to "
              f"{max(others):.2f}.",
        layout={"xaxis": axis("", tickvals=places, ticktext=names, showgrid=False),
                "yaxis": axis("", tickvals=places, ticktext=names, showgrid=False,
                              autorange="reversed")},
        caption="Those in use first. The less two go together, the more their mean gains.",
        height=120 + 26 * len(names),
    )  # fmt: skip


def _comparison(report: Mapping[str, Any]) -> Html | None:
    rows = [row for row in report.get("comparison", ()) if "refused" not in row]
    if not rows:
        return None
    columns = [
        Column(title="method", right=False), Column(title="members", form=forms.whole),
        Column(title="nested", form=forms.score), Column(title="standard error", form=forms.score),
        Column(title="behind the best", form=forms.score),
        Column(title="OOF", form=forms.score, meaning="optimistic"),
        Column(title="", right=False),
    ]  # fmt: skip
    cells = [
        [row["method"], row["members"], row["nested"], row["standard_error"], row["behind_best"],
         row["optimistic"], _marks(row)]
        for row in rows
    ]  # fmt: skip
    return join([el("h3", "Ways to combine, the simplest first"),
                 table("Ways to combine", columns, cells)])  # fmt: skip


def _marks(row: Mapping[str, Any]) -> str:
    simplest = row["simplest_within_one_standard_error"]
    marks = ["used"] * row["used"] + ["simplest within one standard error"] * simplest
    return ", ".join(marks)


def _discarded(report: Mapping[str, Any]) -> Html | None:
    rows = report["discarded"]
    if not rows:
        return None
    columns = [Column(title="member", right=False), Column(title="own score", form=forms.score),
               Column(title="why not", right=False, wide=True)]  # fmt: skip
    cells = [[forms.member(r["name"]), r["score"], r["reason"]] for r in rows[:_LISTED]]
    shown = f", the best {_LISTED}" if len(rows) > _LISTED else ""
    title = f"{forms.plural(len(rows), 'member')} not in use{shown}"
    return details(title, table(title, columns, cells))


def _notes(report: Mapping[str, Any]) -> Html | None:
    notes = report.get("notes", ())
    return el("ul", [el("li", note) for note in notes]) if notes else None
