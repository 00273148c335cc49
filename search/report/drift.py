"""Whether test rows are like train rows: told apart by a small model, by brightness, by what is
predicted for them.

Shapes: T outputs, N train rows, S test rows, X images.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.submission import SubmissionForm
from search.oof import read_test
from search.report import forms
from search.report.chart import BLUE, GREY, ORANGE, Chart, axis, names_axis, numbers, thin, words
from search.report.facts import Facts, Nothing
from search.report.markup import Column, Html, el, join, table
from search.report.pictures import Pictures

_ROWS = 1500  # of each side whose images are looked at
_BYTES = 10**9  # of images of each side that are read
_SHOWN = 15  # targets whose predictions have moved most
_BINS = 30
_BLOCK = 256  # outputs at a time

Floats = NDArray[np.float64]


def body(facts: Facts) -> Html:
    apart = facts.data.get("told_apart", {})
    if not facts.data:
        raise Nothing("There is no data report (data.json) in the run's folder.")
    parts: list[object] = []
    if apart:
        columns = [
            Column(title="what", right=False),
            Column(title="AUC", form=lambda v: f"{v:.2f}"),
            Column(title="meaning", right=False, wide=True),
        ]
        names = {"train_or_test": "train against test", "folds": "a fold against the others"}
        rows = [[names.get(k, k), v["auc"], v["meaning"]] for k, v in apart.items()]
        parts += [
            el("p", "A small model tries to tell images apart by coarse colours and edges; 0.5 is "
               "chance."),
            table("Told apart", columns, rows),
        ]  # fmt: skip
    if not facts.data["rows"]["test"]:
        parts.append(el("p", "There are no test rows, so nothing can have drifted."))
        return join(parts)
    drawn = charts(facts)
    parts.append(el("div", [chart.html() for chart in drawn.values()], class_="grid"))
    if "brightness" not in drawn:
        parts.append(el("p", "The decoded images are gone: no brightness to compare."))
    return join(parts)


def charts(facts: Facts) -> dict[str, Chart]:
    if not facts.data:
        raise Nothing("There is no data report (data.json) in the run's folder.")
    return _brightness(facts) | _predictions(facts)


def _brightness(facts: Facts) -> dict[str, Chart]:
    """Histograms of the mean and the spread of pixels, train beside test."""
    try:
        pictures = Pictures.open(facts)
    except Nothing:
        return {}
    train = int(facts.data["rows"]["train"])
    sides = {"train": range(train), "test": range(train, len(pictures))}
    if not all(len(rows) for rows in sides.values()):
        return {}
    found = {name: _pixels(pictures, rows) for name, rows in sides.items()}
    return {
        name: _histograms({side: values[i] for side, values in found.items()}, words_, name)
        for i, (name, words_) in enumerate(
            (("brightness", "mean of its pixels"), ("contrast", "standard deviation of its pixels"))
        )
    }


def _pixels(pictures: Pictures, rows: range) -> tuple[Floats, Floats]:
    """Mean and deviation, 0 to 255, of the first view of some of the rows."""
    most = min(_ROWS, max(2, _BYTES // pictures.row(0).nbytes))
    shown = [rows[i] for i in thin(len(rows), most)]
    step = max(1, pictures.images_XHWC.shape[1] // 64)  # more pixels tell no more
    stats = [pictures.row(row)[::step, ::step].astype(np.float32) for row in shown]
    return np.array([s.mean() for s in stats]), np.array([s.std() for s in stats])


def _histograms(sides: Mapping[str, Floats], what: str, name: str) -> Chart:
    both = np.concatenate(list(sides.values()))
    edges = np.linspace(float(both.min()), float(both.max()) + 1e-6, _BINS + 1)
    colours = {"train": GREY, "test": ORANGE}
    traces = []
    for side, values in sides.items():
        counts, _ = np.histogram(values, bins=edges)
        traces.append({
            "type": "scatter", "mode": "lines", "fill": "tozeroy", "name": side,
            "x": numbers(((edges[1:] + edges[:-1]) / 2).tolist()),
            "y": numbers((counts / len(values)).tolist()),
            "line": {"color": colours[side], "width": 2, "shape": "hvh"},
            "hovertemplate": "%{x:.0f}: %{y:.1%}<extra>" + side + "</extra>",
        })  # fmt: skip
    means = ", ".join(f"{side} {values.mean():.0f}" for side, values in sides.items())
    return Chart(
        data=traces,
        label=f"{name.capitalize()} of images, train and test; means: {means}.",
        layout={"xaxis": axis(f"{name}: {what}"), "yaxis": axis("share", tickformat=".0%"),
                "showlegend": True},
        height=280,
    )  # fmt: skip


def _predictions(facts: Facts) -> dict[str, Chart]:
    """How far the mean prediction for test rows lies from that for train rows, per target."""
    if not facts.finished or not facts.run.form.is_file():
        return {}
    found = facts.predictions
    form = SubmissionForm.load(facts.run.form)
    folder = facts.run.oof(found.trial.number)
    test_TS = read_test(folder, len(found.names), len(form.test_ids))
    if test_TS is None:
        return {}
    shift_T = shifts(found.pred_TN, test_TS)
    order = [int(t) for t in np.argsort(-np.abs(shift_T), kind="stable")[:_SHOWN]]
    strongest = order[0]
    return {
        "prediction-drift": Chart(
            data=[{
                "type": "bar", "orientation": "h", "x": numbers(shift_T[order].tolist()),
                "y": list(range(len(order))), "marker": {"color": BLUE},
                "customdata": [words(found.names[t]) for t in order],
                "hovertemplate": "%{customdata}: %{x:+.2f} sd<extra></extra>",
            }],
            label=f"Shift of the mean prediction from train to test, in standard deviations of the "
                  f"predictions; the largest is {found.names[strongest]} "
                  f"{shift_T[strongest]:+.2f}.",
            layout={"xaxis": axis("shift of the mean prediction, sd"),
                    "yaxis": names_axis([found.names[t] for t in order])},
            caption=f"Test rows against out-of-fold rows, by {facts.name(found.trial)}; of "
                    f"{forms.plural(len(shift_T), 'target')} those that moved most.",
            height=max(180, 80 + 20 * len(order)),
        )
    }  # fmt: skip


def shifts(pred_TN: NDArray[Any], test_TS: NDArray[Any]) -> Floats:
    """(T,) difference of means, test minus train, in standard deviations of train; 0 where that
    is 0."""
    found = []
    for start in range(0, len(pred_TN), _BLOCK):
        pred = np.asarray(pred_TN[start : start + _BLOCK], dtype=np.float64)
        moved = test_TS[start : start + _BLOCK].mean(axis=1, dtype=np.float64) - pred.mean(axis=1)
        sd = pred.std(axis=1)
        found.append(np.divide(moved, sd, out=np.zeros(len(sd)), where=sd > 0))
    return np.concatenate(found)
