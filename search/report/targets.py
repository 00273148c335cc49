"""How well each target is predicted: correlations, or curves, decisions and calibration.

All of the best trial's out-of-fold predictions: the model behind each did not see the row.

Shapes: T outputs, N rows, K folds.
"""

import numpy as np
from numpy.typing import NDArray

from search.metrics import row_correlations
from search.report import classification, forms
from search.report.chart import BLUE, GREY, Chart, axis, numbers, thin, words
from search.report.facts import Facts, Predictions
from search.report.markup import Column, Html, el, join, table

_EXTREMES = 12  # best and worst targets in tables
_DOTS = 600


def body(facts: Facts) -> Html:
    found = facts.predictions
    who = el("p", f"Out-of-fold predictions of {facts.name(found.trial)}, the best single model: "
             "whatever predicts a row did not see it.")  # fmt: skip
    if facts.task_type == "regression":
        return join([who, _regression(found)])
    return join([who, classification.body(facts, found)])


def charts(facts: Facts) -> dict[str, Chart]:
    found = facts.predictions
    if facts.task_type == "regression":
        return _regression_charts(found, correlations(found))
    return classification.charts(facts, found)


def correlations(found: Predictions) -> NDArray[np.float64]:
    """(K, T) Pearson correlation within each fold; NaN where the truth or prediction is
    constant."""
    return np.stack([
        row_correlations(found.pred_TN[:, found.fold_N == k], found.true_TN[:, found.fold_N == k])
        for k in range(found.folds.k)
    ])  # fmt: skip


def mean_correlations(corr_KT: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) mean over the folds in which it is defined; NaN where it is in none."""
    defined_KT = ~np.isnan(corr_KT)
    count_T = defined_KT.sum(axis=0)
    sum_T = np.where(defined_KT, corr_KT, 0).sum(axis=0)
    return np.divide(sum_T, count_T, out=np.full(len(count_T), np.nan), where=count_T > 0)


def _regression(found: Predictions) -> Html:
    corr_KT = correlations(found)
    mean_T = mean_correlations(corr_KT)
    drawn = _regression_charts(found, corr_KT)
    undefined = int(np.isnan(mean_T).sum())
    order = [int(t) for t in np.argsort(np.where(np.isnan(mean_T), np.inf, -mean_T), kind="stable")]
    order = order[: len(order) - undefined]
    few = len(order) <= 2 * _EXTREMES
    parts: list[object] = [
        el("p", f"Pearson correlation of prediction and truth over the rows of a fold, mean over "
           f"folds. {_spread(mean_T)}"),
        drawn["targets"].html() if "targets" in drawn else None,
        el("div", [c.html() for name, c in drawn.items() if name != "targets"], class_="grid"),
    ]  # fmt: skip
    if few:
        parts.append(_table("Targets", order, found, corr_KT, mean_T))
    else:
        parts.append(_table(f"The {_EXTREMES} best targets", order[:_EXTREMES], found, corr_KT,
                            mean_T))  # fmt: skip
        parts.append(_table(f"The {_EXTREMES} worst targets", order[-_EXTREMES:][::-1], found,
                            corr_KT, mean_T))  # fmt: skip
    if undefined:
        parts.append(el("p", f"{forms.plural(undefined, 'target')} do not vary, in truth or "
                        "prediction: no correlation.", class_="note"))  # fmt: skip
    return join(parts)


def _spread(mean_T: NDArray[np.float64]) -> str:
    known = mean_T[~np.isnan(mean_T)]
    if not len(known):
        return "It is defined for no target."
    low, middle, high = np.percentile(known, [10, 50, 90])
    tenths = f"a tenth of the targets lies below {low:.3f}, a tenth above {high:.3f}"
    return f"Median {middle:.3f}; {tenths}."


def _table(
    title: str, order: list[int], found: Predictions, corr_KT: NDArray[np.float64],
    mean_T: NDArray[np.float64],
) -> Html:  # fmt: skip
    columns = [
        Column(title="target", right=False),
        Column(title="correlation", form=lambda v: f"{v:.3f}"),
        Column(title="sd", form=lambda v: f"{v:.3f}", meaning="over folds"),
        Column(title="rmse", form=forms.short),
        Column(title="mean", form=forms.short, meaning="of the truth"),
        Column(title="deviation", form=forms.short, meaning="standard deviation of the truth"),
    ]
    rows = []
    for t in order:
        true_N = np.asarray(found.true_TN[t], dtype=np.float64)
        error_N = found.pred_TN[t] - true_N
        folds_K = corr_KT[:, t][~np.isnan(corr_KT[:, t])]
        rows.append([
            found.names[t], float(mean_T[t]),
            float(folds_K.std(ddof=1)) if len(folds_K) > 1 else None,
            float(np.sqrt(np.square(error_N).mean())), float(true_N.mean()), float(true_N.std()),
        ])  # fmt: skip
    return table(title, columns, rows)


def _regression_charts(found: Predictions, corr_KT: NDArray[np.float64]) -> dict[str, Chart]:
    mean_T = mean_correlations(corr_KT)
    known = np.flatnonzero(~np.isnan(mean_T))
    if not len(known):
        return {}
    best, worst = int(known[mean_T[known].argmax()]), int(known[mean_T[known].argmin()])
    drawn = {}
    if len(known) > 1:
        counts, edges = np.histogram(mean_T[known], bins=min(40, max(8, len(known) // 4)))
        drawn["targets"] = Chart(
            data=[{
                "type": "bar", "x": numbers(((edges[1:] + edges[:-1]) / 2).tolist()),
                "y": counts.tolist(), "width": float(edges[1] - edges[0]),
                "marker": {"color": BLUE, "line": {"width": 0}},
                "hovertemplate": "about %{x:.3f}: %{y} targets<extra></extra>",
            }],
            label=f"Histogram of the correlations of {len(known)} targets, from "
                  f"{mean_T[known].min():.3f} to {mean_T[known].max():.3f}.",
            layout={"xaxis": axis("correlation"), "yaxis": axis("targets"), "bargap": 0.04},
            height=260,
        )  # fmt: skip
    shown = {"best": best, "worst": worst} if best != worst else {"only": best}
    for what, t in shown.items():
        drawn[f"target-{what}"] = _scatter(found, t, what, float(mean_T[t]))
    return drawn


def _scatter(found: Predictions, t: int, what: str, corr: float) -> Chart:
    kept = thin(found.true_TN.shape[1], _DOTS)
    true_N, pred_N = found.true_TN[t][kept], found.pred_TN[t][kept]
    low, high = float(min(true_N.min(), pred_N.min())), float(max(true_N.max(), pred_N.max()))
    return Chart(
        data=[
            {"type": "scatter", "mode": "lines", "x": numbers([low, high], 8),
             "y": numbers([low, high], 8), "line": {"color": GREY, "dash": "dot", "width": 1},
             "hoverinfo": "skip"},
            {"type": "scatter", "mode": "markers", "x": numbers(true_N.tolist(), 8),
             "y": numbers(pred_N.tolist(), 8),
             "text": [words(found.folds.ids[i]) for i in kept],
             "marker": {"color": BLUE, "size": 5, "opacity": 0.5},
             "hovertemplate": "%{text}<br>true %{x:.3f}, predicted %{y:.3f}<extra></extra>"},
        ],
        label=f"Prediction against truth of {found.names[t]}, the {what} target; correlation "
              f"{corr:.3f}.",
        layout={"xaxis": axis("truth"), "yaxis": axis("prediction")},
        caption=f"{found.names[t]}, the {what} target: correlation {corr:.3f}. "
                "Dotted: prediction = truth.",
        height=280,
    )  # fmt: skip
