"""Classification, target by target: ROC and precision-recall curves, decisions, calibration.

Shapes: T outputs, N rows, B bins.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.detail import RATES, decide
from search.metrics import aurocs, average_precisions, rate
from search.report import forms
from search.report.chart import (
    BLUE,
    GREY,
    SERIES,
    SHADES,
    Chart,
    axis,
    numbers,
    thin,
    words,
)
from search.report.facts import Facts, Predictions
from search.report.markup import Column, Html, el, join, table

_CURVES = len(SERIES)  # targets with a curve of their own
_POINTS = 150  # of a curve
_BINS = 10
_VALUES = 1_000_000  # predictions that calibration looks at; more tell no more
_CLASSES = 30  # in a picture of the confusion
_ROWS = 60  # targets in the table


def body(facts: Facts, found: Predictions) -> Html:
    drawn = charts(facts, found)
    titles = {
        "roc": "ROC", "precision-recall": "Precision and recall",
        "calibration": "Calibration", "probabilities": "Predicted probabilities",
    }  # fmt: skip
    grid = [el("div", el("h3", titles[name]), drawn[name].html()) for name in titles]
    return join([
        el("p", "Curves are over the rows of all folds together; the score is the mean over "
           f"folds.{_which(found)}"),
        el("div", grid, class_="grid"),
        join([el("h3", "Confusion"), drawn["confusion"].html()]) if "confusion" in drawn else None,
        _table(facts, found),
    ])  # fmt: skip


def _which(found: Predictions) -> str:
    if len(found.names) <= _CURVES:
        return ""
    return f" Curves of the {_CURVES} targets with the most positives."


def charts(facts: Facts, found: Predictions) -> dict[str, Chart]:
    drawn = {
        **_curves(found), "calibration": _calibration(found), "probabilities": _histogram(found),
    }  # fmt: skip
    if facts.task_type == "multiclass" and len(found.names) <= _CLASSES:
        drawn["confusion"] = _confusion(facts, found)
    return drawn


def _shown(found: Predictions) -> list[int]:
    """Targets with both classes, those with the most positives, in their own order."""
    positives_T = (found.true_TN == 1).sum(axis=1)
    both = np.flatnonzero((positives_T > 0) & (positives_T < found.true_TN.shape[1]))
    most = both[np.argsort(-positives_T[both], kind="stable")][:_CURVES]
    return sorted(most.tolist())


def _curves(found: Predictions) -> dict[str, Chart]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    shown = _shown(found)
    auc_T = aurocs(found.pred_TN[shown], found.true_TN[shown]) if shown else np.empty(0)
    ap_T = average_precisions(found.pred_TN[shown], found.true_TN[shown]) if shown else np.empty(0)
    roc: list[dict[str, Any]] = [_diagonal()]
    recall: list[dict[str, Any]] = []
    for i, t in enumerate(shown):
        true_N, pred_N = found.true_TN[t] == 1, found.pred_TN[t]
        false, true, _ = roc_curve(true_N, pred_N)
        roc.append(_line(false, true, f"{words(found.names[t], 24)} {auc_T[i]:.3f}", SERIES[i]))
        precision, caught, _ = precision_recall_curve(true_N, pred_N)
        recall.append(
            _line(caught[::-1], precision[::-1], f"{words(found.names[t], 24)} {ap_T[i]:.3f}",
                  SERIES[i])
        )  # fmt: skip
    unit = {"range": [-0.02, 1.02]}

    def chart(traces: list[dict[str, Any]], what: str, x: str, y: str, each: Any) -> Chart:
        values = [f"{found.names[t]} {value:.3f}" for t, value in zip(shown, each, strict=True)]
        return Chart(
            data=traces, label=f"{what}: {', '.join(values) or 'no target has both classes'}.",
            layout={"xaxis": axis(x, **unit), "yaxis": axis(y, **unit), "showlegend": True},
            height=360,
        )  # fmt: skip

    return {
        "roc": chart(roc, "ROC curves, with the area below each", "false positive rate",
                     "true positive rate", auc_T),
        "precision-recall": chart(recall, "Precision against recall, with the average precision",
                                  "recall", "precision", ap_T),
    }  # fmt: skip


def _line(x: NDArray[Any], y: NDArray[Any], name: str, colour: str) -> dict[str, Any]:
    kept = thin(len(x), _POINTS)
    return {
        "type": "scatter", "mode": "lines", "x": numbers(x[kept].tolist()),
        "y": numbers(y[kept].tolist()), "name": name, "line": {"color": colour, "width": 2},
    }  # fmt: skip


def _diagonal() -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
        "line": {"color": GREY, "width": 1, "dash": "dot"}, "showlegend": False,
    }  # fmt: skip


def calibration(
    pred: NDArray[Any], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean prediction and share of positives in bins of as many values each, and the expected
    calibration error: the mean distance of the two, weighted by the values."""
    order = np.argsort(pred, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    mean_B = np.array([pred[part].mean(dtype=np.float64) for part in parts])
    share_B = np.array([positive[part].mean() for part in parts])
    sizes_B = np.array([len(part) for part in parts])
    return mean_B, share_B, float(np.average(np.abs(mean_B - share_B), weights=sizes_B))


def _calibration(found: Predictions) -> Chart:
    step = -(-found.pred_TN.size // _VALUES)
    some = found.pred_TN.ravel()[::step], (found.true_TN == 1).ravel()[::step]
    mean_B, share_B, error = calibration(*some)
    return Chart(
        data=[
            _diagonal(),
            {"type": "scatter", "mode": "lines+markers", "x": numbers(mean_B.tolist()),
             "y": numbers(share_B.tolist()), "line": {"color": BLUE, "width": 2},
             "marker": {"size": 7}, "name": "all targets",
             "hovertemplate": "predicted %{x:.3f}, positive %{y:.3f}<extra></extra>"},
        ],
        label=f"Calibration over all targets in {len(mean_B)} bins of equal size; expected "
              f"calibration error {error:.3f}.",
        layout={"xaxis": axis("mean prediction", range=[-0.02, 1.02]),
                "yaxis": axis("share of positives", range=[-0.02, 1.02])},
        caption=f"All targets together, bins of as many values. Expected calibration error "
                f"{error:.3f}. Dotted: perfect.",
        height=320,
    )  # fmt: skip


def _histogram(found: Predictions) -> Chart:
    edges = np.linspace(0, 1, 21)
    positive = found.true_TN == 1
    traces = []
    for name, mask, colour in (("negative", ~positive, GREY), ("positive", positive, BLUE)):
        counts, _ = np.histogram(found.pred_TN[mask], bins=edges)
        traces.append({
            "type": "bar", "x": numbers(((edges[1:] + edges[:-1]) / 2).tolist()),
            "y": numbers((counts / max(counts.sum(), 1)).tolist()), "name": name,
            "marker": {"color": colour}, "hovertemplate": "%{x:.3f}: %{y:.1%}<extra></extra>",
        })  # fmt: skip
    return Chart(
        data=traces,
        label="Histogram of predicted probabilities of positives and of negatives.",
        layout={"xaxis": axis("predicted probability"),
                "yaxis": axis("share of their rows", tickformat=".0%"), "showlegend": True,
                "barmode": "group", "bargap": 0.1},
        height=320,
    )  # fmt: skip


def _confusion(facts: Facts, found: Predictions) -> Chart:
    assert facts.metric is not None
    decided = decide(facts.metric, "multiclass", found.pred_TN, found.true_TN, found.fold_N)
    assert decided.confusion_TT is not None
    counts_TT = decided.confusion_TT
    share_TT = counts_TT / np.maximum(counts_TT.sum(axis=1, keepdims=True), 1)
    names = [words(name, 24) for name in found.names]
    right = counts_TT.trace() / max(counts_TT.sum(), 1)
    places = list(range(len(names)))
    return Chart(
        data=[{
            "type": "heatmap", "z": [numbers(row) for row in share_TT.tolist()],
            "text": counts_TT.tolist(), "texttemplate": "%{text}", "colorscale": SHADES,
            "zmin": 0, "zmax": 1, "showscale": False, "xgap": 1, "ygap": 1,
            "hovertemplate": "%{text} rows, %{z:.1%} of the class<extra></extra>",
        }],
        label=f"Confusion of {len(names)} classes: {forms.share(float(right))} of the rows are on "
              "the diagonal.",
        layout={
            "xaxis": axis("decided", tickvals=places, ticktext=names, showgrid=False),
            "yaxis": axis("true", tickvals=places, ticktext=names, showgrid=False,
                          autorange="reversed"),
        },
        caption="Rows by their true class (down) and the class with the highest probability "
                "(across); the shade is the share of the true class.",
        height=max(260, 110 + 30 * len(names)), least_width=120 + 44 * len(names),
    )  # fmt: skip


def _table(facts: Facts, found: Predictions) -> Html:
    assert facts.metric is not None
    pred_TN, true_TN = found.pred_TN[:_ROWS], found.true_TN[:_ROWS]
    auc_T, ap_T = aurocs(pred_TN, true_TN), average_precisions(pred_TN, true_TN)
    if facts.task_type == "multiclass" or facts.metric.fits_thresholds:  # over all targets at once
        pred_TN, true_TN = found.pred_TN, found.true_TN
    decided = decide(facts.metric, facts.task_type, pred_TN, true_TN, found.fold_N)
    rates = {name: rate(name, decided.counts) for name in RATES}
    columns = [
        Column(title="target", right=False),
        Column(title="positive", form=forms.share, meaning="share of the rows"),
        Column(title="AUROC", form=lambda v: f"{v:.3f}"),
        Column(title="AP", form=lambda v: f"{v:.3f}", meaning="average precision"),
        *(Column(title=name, form=forms.whole) for name in ("TP", "FP", "FN", "TN")),
        *(Column(title=name, form=lambda v: f"{v:.3f}") for name in RATES),
    ]
    counts, rows = decided.counts, found.true_TN.shape[1]
    lines = [
        [
            name, float((found.true_TN[t] == 1).sum() / rows), float(auc_T[t]), float(ap_T[t]),
            *(int(x[t]) for x in (counts.tp, counts.fp, counts.fn, counts.tn)),
            *(float(rates[r][t]) for r in RATES),
        ]
        for t, name in list(enumerate(found.names))[:_ROWS]
    ]  # fmt: skip
    how = (
        "the class with the highest probability"
        if facts.task_type == "multiclass"
        else "thresholds that were chosen on the other folds"
    )
    left_out = len(found.names) - len(lines)
    return join([
        table(f"Targets; decisions by {how}", columns, lines),
        el("p", f"The first {_ROWS} of {len(found.names)} targets.", class_="note")
        if left_out > 0 else None,
    ])  # fmt: skip
