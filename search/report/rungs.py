"""Rungs: who arrived where, who went on, who waited, who was cut, and why."""

import math
from collections import Counter
from dataclasses import dataclass, field

from search.policy.rungs import CUT, GOES_ON, WAITS, Rung
from search.report import forms
from search.report.chart import BLUE, GREEN, GREY, ORANGE, Chart, axis, numbers, room, thin, words
from search.report.facts import Facts, Nothing
from search.report.markup import Column, Html, details, el, join, table

_DECISIONS = 60  # of the newest, told one by one
_DOTS = 500  # of a rung and verdict
_WORDS = {GOES_ON: "went on", WAITS: "waited", CUT: "cut", "": "not judged"}
_COLOURS = {GOES_ON: GREEN, WAITS: GREY, CUT: ORANGE, "": BLUE}


@dataclass
class _Level:
    """What happened at one rung."""

    values: dict[int, float] = field(default_factory=dict)  # trial -> its score there
    verdicts: dict[int, str] = field(default_factory=dict)  # the last one about each
    reasons: dict[int, str] = field(default_factory=dict)
    line: float | None = None  # lowest value of the share that goes on, as last told


def read(facts: Facts) -> dict[Rung, _Level]:
    """The planned rungs in order, and what the journal tells of each."""
    found = {Rung(**rung): _Level() for rung in facts.plan.get("rungs", ())}
    for event in facts.events:
        if event.kind not in ("rung", "decision"):
            continue
        level = found.setdefault(Rung.parse(event.data["rung"]), _Level())
        if event.kind == "rung":
            level.values[event.trial] = event.data["value"]
        else:
            level.verdicts[event.trial] = event.data["verdict"]
            level.reasons[event.trial] = event.data["reason"]
            if event.data["cut"] is not None:
                level.line = event.data["cut"]
    return dict(sorted(found.items()))


def body(facts: Facts) -> Html:
    found = read(facts)
    drawn = charts(facts)["rungs"]
    keep = facts.plan.get("keep", [])
    columns = [
        Column(title="rung", right=False),
        Column(title="share that goes on", form=forms.share),
        Column(title="arrived", form=forms.whole),
        Column(title="went on", form=forms.whole),
        Column(title="waited", form=forms.whole),
        Column(title="cut", form=forms.whole),
        Column(title="line", form=forms.score,
               meaning="lowest score of the share that goes on, at the last decision"),
    ]  # fmt: skip
    rows = []
    for i, (rung, level) in enumerate(found.items()):
        verdicts = Counter(level.verdicts.values())
        rows.append([
            rung.words, keep[i] if i < len(keep) else None, len(level.values), verdicts[GOES_ON],
            verdicts[WAITS], verdicts[CUT], level.line,
        ])  # fmt: skip
    return join([
        el("p", "Trials are compared at the same rung only: the same folds after as many epochs. "
           "Who waits may still be let through; only who is worse by more than the noise is cut. "
           f"\u201cFold 1\u201d of a rung is the one that is visited first: {_first(facts)}."),
        drawn.html(),
        table("Rungs", columns, rows),
        _decisions(facts),
    ])  # fmt: skip


def _first(facts: Facts) -> str:
    return f"fold {facts.fold_order[0]}" if facts.fold_order else "not known"


def _decisions(facts: Facts) -> Html:
    made = [event for event in facts.events if event.kind == "decision"]
    shown = made[-_DECISIONS:][::-1]
    title = f"The last {len(shown)} decisions" if len(made) > len(shown) else "All decisions"
    columns = [Column(title="trial"), Column(title="decision", right=False, wide=True)]
    return details(
        title, table(title, columns, [[event.trial, event.data["reason"]] for event in shown])
    )


def charts(facts: Facts) -> dict[str, Chart]:
    """Raises Nothing before the first trial has reached a rung."""
    found = {rung: level for rung, level in read(facts).items() if level.values}
    if not found:
        raise Nothing("No trial has reached a rung yet.")
    traces = []
    for verdict, name in _WORDS.items():
        x, y, who, why = [], [], [], []
        for place, level in enumerate(found.values()):
            trials = [t for t in level.values if level.verdicts.get(t, "") == verdict]
            trials = [t for t in trials if math.isfinite(level.values[t])]
            for trial in (trials[i] for i in thin(len(trials), _DOTS)):
                # Beside each other by the golden ratio, so that neighbours in time lie apart.
                x.append(round(place + 0.7 * ((trial * 0.618034) % 1 - 0.5), 3))
                y.append(level.values[trial])
                who.append(trial)
                why.append(words(level.reasons.get(trial, name), 120))
        if x:
            traces.append({
                "type": "scatter", "mode": "markers", "x": x, "y": numbers(y), "customdata": who,
                "text": why, "name": name,
                "marker": {"color": _COLOURS[verdict], "size": 8, "opacity": 0.75},
                "hovertemplate": "trial %{customdata}<br>%{text}<extra></extra>",
            })  # fmt: skip
    lines = [
        {"type": "line", "x0": i - 0.42, "x1": i + 0.42, "y0": level.line, "y1": level.line,
         "line": {"color": ORANGE, "width": 2, "dash": "dot"}}
        for i, level in enumerate(found.values()) if level.line is not None
    ]  # fmt: skip
    told = "; ".join(f"{rung.words}: {len(level.values)} arrived" for rung, level in found.items())
    every = [value for level in found.values() for value in level.values.values()]
    return {
        "rungs": Chart(
            data=traces,
            label=f"Scores of trials at each rung, by what was decided. {told}.",
            layout={
                "xaxis": axis("", tickvals=list(range(len(found))), showgrid=False,
                              ticktext=[rung.words for rung in found]),
                "yaxis": axis(words(facts.score_name), range=room(every)),
                "shapes": lines, "showlegend": True,
            },
            caption="A dot is a trial; the dotted line is the lowest score of the share that goes "
                    "on, as it was at the last decision there.",
            height=360,
        )
    }  # fmt: skip
