"""Where the best model is most wrong: groups, and rows with their pictures.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.report import forms
from search.report.chart import BLUE, Chart, axis, names_axis, numbers, words
from search.report.facts import Facts, Nothing, Predictions
from search.report.markup import Html, el, join
from search.report.pictures import Pictures, card, gallery, picture

_WORST, _GROUPS, _OF_GROUP = 12, 4, 4  # rows; groups, and rows of each
_BARS = 30
_BLOCK = 256  # outputs at a time
_EDGE = 1e-6  # probabilities stay this far from 0 and 1

Floats = NDArray[np.float64]


def row_errors(
    task_type: str, pred_TN: NDArray[np.float32], true_TN: NDArray[np.float32]
) -> Floats:
    """(N,) how wrong each row is: for regression the root mean square over targets of the error in
    standard deviations of the truth, else the log-loss, for several labels their mean."""
    sum_N = np.zeros(true_TN.shape[1])
    counted = 0
    for start in range(0, len(true_TN), _BLOCK):
        pred_BN = np.asarray(pred_TN[start : start + _BLOCK], dtype=np.float64)
        true_BN = np.asarray(true_TN[start : start + _BLOCK], dtype=np.float64)
        if task_type == "regression":
            sd_B = true_BN.std(axis=1)
            vary = sd_B > 0
            sum_N += np.square((pred_BN - true_BN)[vary] / sd_B[vary, None]).sum(axis=0)
            counted += int(vary.sum())
        else:
            sum_N -= np.log(_chance(pred_BN, true_BN, task_type)).sum(axis=0)
            counted += len(true_BN)
    if task_type == "multiclass":
        return sum_N
    mean_N = sum_N / max(counted, 1)
    return np.sqrt(mean_N) if task_type == "regression" else mean_N


def _chance(pred_TN: Floats, true_TN: Floats, task_type: str) -> Floats:
    """(T, N) probability that was given to what is true; 1 where nothing is asked."""
    kept_TN = np.clip(pred_TN, _EDGE, 1 - _EDGE)
    other = 1.0 if task_type == "multiclass" else 1 - kept_TN
    return np.where(true_TN == 1, kept_TN, other)


def body(facts: Facts) -> Html:
    found = facts.predictions
    error_N = row_errors(facts.task_type, found.pred_TN, found.true_TN)
    measure = (
        "the root mean square error over targets, in standard deviations of each"
        if facts.task_type == "regression"
        else "the log-loss: how surprised the model is by the truth"
    )
    drawn = _charts(found, error_N)
    parts: list[object] = [
        el("p", f"Out-of-fold, by {facts.name(found.trial)}. The error of a row is {measure}; its "
           f"median is {np.median(error_N):.3f}, its highest {error_N.max():.3f}."),
        *(chart.html() for chart in drawn.values()),
    ]  # fmt: skip
    try:
        pictures = Pictures.open(facts)
    except Nothing as nothing:
        pictures = None
        parts.append(el("p", nothing))
    groups = _worst_groups(found, error_N)
    for name, rows in groups:
        parts += [
            el("h3", f"Worst rows of {forms.group(name)}"),
            _cards(facts, found, error_N, rows, pictures),
        ]
    if not groups:
        worst = np.argsort(-error_N, kind="stable")[:_WORST].tolist()
        parts += [el("h3", "Worst rows of all"), _cards(facts, found, error_N, worst, pictures)]
    return join(parts)


def charts(facts: Facts) -> dict[str, Chart]:
    found = facts.predictions
    return _charts(found, row_errors(facts.task_type, found.pred_TN, found.true_TN))


def _charts(found: Predictions, error_N: Floats) -> dict[str, Chart]:
    means = _group_errors(found, error_N)
    if not means:
        return {}
    shown = means[:_BARS]
    return {
        "errors-by-group": Chart(
            data=[{
                "type": "bar", "orientation": "h", "x": numbers(error for _, error, _ in shown),
                "y": list(range(len(shown))), "marker": {"color": BLUE},
                "customdata": [[words(name), rows] for name, _, rows in shown],
                "hovertemplate": "%{customdata[0]}: %{x:.3f}, %{customdata[1]} rows<extra></extra>",
            }],
            label=f"Mean error of {len(means)} groups, the worst first: {shown[0][0]} "
                  f"{shown[0][1]:.3f}; the best {means[-1][0]} {means[-1][1]:.3f}.",
            layout={"xaxis": axis("mean error of its rows"),
                    "yaxis": names_axis([name for name, _, _ in shown])},
            caption=f"The {_BARS} worst of {len(means)} groups." if len(means) > _BARS else "",
            height=max(180, 70 + 20 * len(shown)),
        )
    }  # fmt: skip


def _group_errors(found: Predictions, error_N: Floats) -> list[tuple[str, float, int]]:
    """Group, mean error of its rows and how many they are, the worst first; none where rows are
    not grouped, or hardly."""
    code_N = found.folds.group_N
    if code_N is None or found.folds.group is None or code_N.max() + 1 > len(code_N) / 2:
        return []
    names = np.unique(np.array(found.folds.group))
    count_G = np.bincount(code_N)
    mean_G = np.bincount(code_N, weights=error_N) / count_G
    return [(str(names[g]), float(mean_G[g]), int(count_G[g]))
            for g in np.argsort(-mean_G, kind="stable")]  # fmt: skip


def _worst_groups(found: Predictions, error_N: Floats) -> list[tuple[str, list[int]]]:
    """The worst groups, and of each its worst rows."""
    groups = []
    for name, _, _ in _group_errors(found, error_N)[:_GROUPS]:
        rows = np.flatnonzero(np.array(found.folds.group) == name)
        worst = rows[np.argsort(-error_N[rows], kind="stable")][:_OF_GROUP]
        groups.append((name, worst.tolist()))
    return groups


def _cards(
    facts: Facts, found: Predictions, error_N: Floats, rows: Sequence[int],
    pictures: Pictures | None,
) -> Html:  # fmt: skip
    cards = []
    for row in rows:
        name = found.folds.ids[row]
        shown = [] if pictures is None else [picture(pictures.row(row), f"row {name}")]
        cards.append(card(
            shown, el("strong", name), f"error {error_N[row]:.3f}, fold {found.fold_N[row]}",
            what_happened(facts.task_type, found, row),
        ))  # fmt: skip
    return gallery(cards)


def what_happened(task_type: str, found: Predictions, row: int, output: int | None = None) -> str:
    """Truth and prediction of a row, of that output, or of the one that is worst."""
    pred_T = np.asarray(found.pred_TN[:, row], dtype=np.float64)
    true_T = np.asarray(found.true_TN[:, row], dtype=np.float64)
    if task_type == "multiclass":
        true, decided = int(true_T.argmax()), int(pred_T.argmax())
        return (
            f"true {found.names[true]} ({pred_T[true]:.2f}), decided {found.names[decided]} "
            f"({pred_T[decided]:.2f})"
        )
    if task_type == "regression":
        sd_T = found.deviation_T
        off_T = np.divide(np.abs(pred_T - true_T), sd_T, out=np.zeros(len(sd_T)), where=sd_T > 0)
        worst = int(off_T.argmax()) if output is None else output
        return (
            f"{found.names[worst]}: true {forms.short(true_T[worst])}, predicted "
            f"{forms.short(pred_T[worst])}"
        )
    chance_T = _chance(pred_T[:, None], true_T[:, None], task_type)[:, 0]
    worst = int(chance_T.argmin())
    truth = "positive" if true_T[worst] == 1 else "negative"
    return f"{found.names[worst]}: true {truth}, predicted {pred_T[worst]:.2f}"
