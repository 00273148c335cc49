"""Score against time and against cost: how the best grew, and what more would cost."""

import math
from collections.abc import Sequence
from typing import Any

from search.journal import elapsed
from search.report import forms
from search.report.chart import BLUE, GREY, ORANGE, Chart, axis, numbers, words
from search.report.facts import Facts, Nothing
from search.report.markup import Html, el, join
from search.trials import FINISHED, Trial


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Positions of those that nothing beats in both, the cheapest first."""
    best, kept = -math.inf, []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if scores[i] > best:
            best = scores[i]
            kept.append(i)
    return kept


def body(facts: Facts) -> Html:
    drawn = charts(facts)
    titles = {"progress": "Score against time", "training-cost": "Score against training time",
              "prediction-cost": "Score against time to predict",
              "size-cost": "Score against size"}  # fmt: skip
    return join([
        el("p", "Finished trials alone: a score over fewer folds cannot be compared. Lines join "
           "those that nothing beats in both."),
        el("div", [el("div", el("h3", titles[name]), chart.html()) for name, chart in
                   drawn.items()], class_="grid"),
    ])  # fmt: skip


def charts(facts: Facts) -> dict[str, Chart]:
    trials = facts.finished
    if not trials:
        raise Nothing(facts.why_unfinished)
    found = {
        "progress": _progress(facts),
        "training-cost": _cost(facts, trials, [t.seconds for t in trials],
                               "seconds of training, all folds"),
    }  # fmt: skip
    timed = [(t, t.predict_ms) for t in trials if t.predict_ms]
    if timed:
        found["prediction-cost"] = _cost(
            facts, [t for t, _ in timed], [ms for _, ms in timed if ms],
            "milliseconds to predict a row, all folds",
        )  # fmt: skip
    found["size-cost"] = _cost(facts, trials, [t.params_count for t in trials], "parameters")
    return found


def _progress(facts: Facts) -> Chart:
    times = list(elapsed(facts.events))
    ends = [
        (time, event.trial)
        for time, event in zip(times, facts.events, strict=True)
        if event.kind == "end" and event.data["state"] == FINISHED
    ]
    scale, unit = _unit(times[-1])
    scores = [facts.trials.all[trial].score() for _, trial in ends]
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    x = numbers(time / scale for time, _ in ends)
    baselines = facts.frame[facts.frame["kind"] == "baseline"]["score"]
    strongest = float(baselines.max()) if len(baselines) else math.nan
    lines = [] if math.isnan(strongest) else [_level(strongest, "best baseline")]
    return Chart(
        data=[
            {"type": "scatter", "mode": "lines", "x": [*x, times[-1] / scale],
             "y": numbers([*best, best[-1]]), "line": {"color": ORANGE, "width": 2, "shape": "hv"},
             "name": "best so far", "hovertemplate": "%{y:.4f}<extra>best so far</extra>"},
            _dots([trial for _, trial in ends], x, scores),
        ],
        label=f"The best single model over time: {forms.score(best[0])} after "
              f"{forms.seconds(ends[0][0])}, {forms.score(best[-1])} after "
              f"{forms.seconds(times[-1])}.",
        layout={"xaxis": axis(f"{unit} since the start", rangemode="tozero"),
                "yaxis": axis(words(facts.score_name)), **_with(lines)},
        caption="Orange: the best single model so far." + (
            " Dotted: the best trivial baseline." if lines else ""),
        height=280,
    )  # fmt: skip


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _level(value: float, name: str) -> dict[str, Any]:
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
            "line": {"color": GREY, "width": 2, "dash": "dot"}, "name": name}  # fmt: skip


def _with(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"shapes": lines} if lines else {}


def _cost(facts: Facts, trials: Sequence[Trial], costs: Sequence[float], unit: str) -> Chart:
    scores = [trial.score() for trial in trials]
    kept = front(costs, scores)
    wide = min(costs) > 0 and max(costs) > 20 * min(costs)
    cheapest, dearest = kept[0], kept[-1]
    return Chart(
        data=[
            {"type": "scatter", "mode": "lines", "x": numbers(costs[i] for i in kept),
             "y": numbers(scores[i] for i in kept), "hoverinfo": "skip",
             "line": {"color": ORANGE, "width": 2, "shape": "hv"}},
            _dots([t.number for t in trials], numbers(costs), scores,
                  [words(facts.name(t)) for t in trials]),
        ],
        label=f"Score against {unit}: of {len(trials)} trials {len(kept)} are beaten by none in "
              f"both, from {forms.score(scores[cheapest])} at {forms.short(costs[cheapest])} to "
              f"{forms.score(scores[dearest])} at {forms.short(costs[dearest])}.",
        layout={"xaxis": axis(unit, **({"type": "log"} if wide else {"rangemode": "tozero"})),
                "yaxis": axis(words(facts.score_name))},
        height=280,
    )  # fmt: skip


def _dots(
    trials: Sequence[int], x: Sequence[Any], scores: Sequence[float], names: Sequence[str] = ()
) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": list(x), "y": numbers(scores),
        "text": list(names) or [f"trial {trial}" for trial in trials],
        "marker": {"color": BLUE, "size": 8, "opacity": 0.8},
        "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
    }  # fmt: skip
