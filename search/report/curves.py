"""Learning curves, a picture per fold: the best trials by name, all others faint."""

from collections.abc import Sequence
from typing import Any

from search.report import forms
from search.report.chart import GREY, SERIES, TEAL, Chart, axis, numbers, room, thin, words
from search.report.facts import Facts, Nothing
from search.report.markup import Html, el, join
from search.trials import FINISHED, RUNNING, Trial

NAMED = len(SERIES)  # finished trials with a line of their own
_OTHERS = 120  # lines of a faint kind
_FOLDS = 12
_EPOCHS = 60  # points of a line
PRUNED, REST, OPEN = "pruned", "finished", "open"
_KINDS = {
    REST: ("other finished trials", TEAL, 0.35),
    OPEN: ("unfinished trials", SERIES[1], 0.5),
    PRUNED: ("pruned, stopped and failed trials", GREY, 0.3),
}


def body(facts: Facts) -> Html:
    drawn = charts(facts)
    named = facts.finished[:NAMED]
    kinds = [kind for kind in _KINDS if any(t["meta"]["key"] == kind for c in drawn.values()
                                            for t in c.data)]  # fmt: skip
    boxes = [_box(f"t{t.number}", facts.name(t), SERIES[i], False) for i, t in enumerate(named)]
    boxes += [_box(kind, _KINDS[kind][0], _KINDS[kind][1], True) for kind in kinds]
    left_out = len(facts.fold_order) - len(drawn)
    return join([
        el("p", f"{facts.score_name} on the validation rows after each epoch. The last epoch "
           "counts, never the best one. Folds stand in the order in which they are visited: rungs "
           "in the first one stop most trials."),
        el("fieldset", el("legend", "Lines shown"), boxes, class_="switches", data_charts="curves"),
        el("div", [el("div", el("h3", title), chart.html()) for title, chart in
                   zip(_titles(facts), drawn.values(), strict=False)],
           class_="grid", id="curves-charts"),
        el("p", f"{left_out} more folds are not shown.", class_="note") if left_out > 0 else None,
    ])  # fmt: skip


def _box(key: str, words: str, colour: str, faint: bool) -> Html:
    swatch = el("span", class_="swatch faint" if faint else "swatch", style=f"background:{colour}")
    return el("label", el("input", type="checkbox", checked=True, data_key=key), swatch, words)


def _titles(facts: Facts) -> list[str]:
    return [f"Fold {k}{', visited first' if i == 0 else ''}"
            for i, k in enumerate(facts.fold_order)]  # fmt: skip


def charts(facts: Facts) -> dict[str, Chart]:
    trials = list(facts.trials.all.values())
    if not any(trial.curve for trial in trials):
        raise Nothing("No epoch has been trained yet.")
    found = {}
    for fold in facts.fold_order[:_FOLDS]:
        chart = _of_fold(facts, fold, [t for t in trials if t.newest.get(fold)])
        found[f"curves-fold-{fold}"] = chart
    return found


def _of_fold(facts: Facts, fold: int, trials: Sequence[Trial]) -> Chart:
    here = {trial.number for trial in trials}
    named = {t.number: SERIES[i] for i, t in enumerate(facts.finished[:NAMED]) if t.number in here}
    kinds: dict[str, list[Trial]] = {PRUNED: [], OPEN: [], REST: []}
    for trial in trials:
        if trial.number not in named:
            kinds[_kind(trial)].append(trial)
    lines = [_line(kind, some, fold) for kind, some in kinds.items() if some]
    lines += [_own(facts.trials.all[n], fold, colour) for n, colour in named.items()]
    ends = [_points(facts.trials.all[n], fold)[-1]["score"] for n in named]
    label = f"Learning curves of {forms.plural(len(trials), 'trial')} on fold {fold}"
    if ends:
        label += f"; named trials end between {min(ends):.4f} and {max(ends):.4f}"
    scores = [p["score"] for t in trials for p in _points(t, fold)]
    return Chart(
        data=lines,
        label=label + ".",
        layout={
            "xaxis": axis("epoch", rangemode="tozero"),
            "yaxis": axis(words(facts.score_name), range=room(scores)),
        },
        height=260,
    )


def _kind(trial: Trial) -> str:
    return {FINISHED: REST, RUNNING: OPEN}.get(trial.state, PRUNED)


def _points(trial: Trial, fold: int) -> list[dict[str, Any]]:
    """A fold's epochs, thinned, in order."""
    points = [trial.curve[key] for key in sorted(trial.curve) if key[0] == fold]
    return [points[i] for i in thin(len(points), _EPOCHS)]


def _line(kind: str, trials: Sequence[Trial], fold: int) -> dict[str, Any]:
    """Many trials as one trace with gaps: a trace for each would be slow to draw."""
    name, colour, opacity = _KINDS[kind]
    x: list[float | None] = []
    y: list[float | None] = []
    who: list[int | None] = []
    for trial in (trials[i] for i in thin(len(trials), _OTHERS)):
        points = _points(trial, fold)
        x += [*(p["epoch"] for p in points), None]
        y += [*(p["score"] for p in points), None]
        who += [trial.number] * (len(points) + 1)
    single = len(x) <= 2 * len(trials)  # an epoch each: lines would not show
    return {
        "type": "scatter", "mode": "markers" if single else "lines", "x": x, "y": numbers(y),
        "customdata": who, "name": name, "opacity": opacity, "meta": {"key": kind},
        "line": {"color": colour, "width": 1}, "marker": {"color": colour, "size": 5},
        "hovertemplate": "trial %{customdata}<br>epoch %{x}: %{y:.4f}<extra></extra>",
    }  # fmt: skip


def _own(trial: Trial, fold: int, colour: str) -> dict[str, Any]:
    points = _points(trial, fold)
    return {
        "type": "scatter", "mode": "lines+markers", "x": [p["epoch"] for p in points],
        "y": numbers(p["score"] for p in points), "name": f"trial {trial.number}",
        "line": {"color": colour, "width": 2}, "marker": {"color": colour, "size": 4},
        "meta": {"key": f"t{trial.number}"},
        "hovertemplate": f"trial {trial.number}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>",
    }  # fmt: skip
