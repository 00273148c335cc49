"""Which parameters matter: a forest's permutation importance, slices, parallel coordinates.

Optuna's own evaluators want one space for all trials and whole trials only; here most are pruned
and each family of backbones has parameters of its own. So a random forest learns the score at the
deepest rung that enough trials have reached from the recipes' fields, and a field matters as much
as the forest's prediction of trials that it did not see suffers when the field is shuffled among
them. Where the forest predicts nothing, nothing can be said, and the page says so.

Shapes: N trials, P parameters, S shuffles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.report import forms
from search.report.chart import (
    BLUE,
    GREY,
    ORANGE,
    Chart,
    axis,
    names_axis,
    numbers,
    room,
    thin,
    words,
)
from search.report.facts import Facts, Nothing
from search.report.markup import Html, el, join
from search.report.recipes import levels, logarithmic, numeric, varied
from search.trials import Trial

FEWEST, ENOUGH = 12, 40  # trials at a rung: to say anything; to go no further up
TELLS = 0.1  # R2 on unseen trials below which a forest has learned nothing
_MOST = 600  # trials that the forest sees
_FOLDS, _SHUFFLES, _TREES = 5, 3, 60
_SHOWN, _SLICES, _AXES = 15, 6, 7
_DOTS, _LINES = 400, 300
_CATEGORIES = 12  # names on an axis
_FEW = 5  # different numbers that are shown as names


@dataclass(frozen=True, kw_only=True, eq=False)
class Importance:
    """What a forest found."""

    where: str  # the rung
    trials: tuple[Trial, ...]
    score_N: NDArray[np.float64]
    values: dict[str, list[Any]]  # parameters that differ -> N values
    r2: float  # of the forest, on trials that it did not see
    drop: dict[str, tuple[float, float]]  # parameter -> mean and sd over folds of the R2 it costs

    @property
    def tells(self) -> bool:
        return self.r2 >= TELLS

    @property
    def order(self) -> list[str]:
        """The parameters, the most important first."""
        return sorted(self.values, key=lambda name: (-self.drop[name][0], name))


def find(facts: Facts) -> Importance:
    """Raises Nothing with too few trials."""
    reached = levels(facts)
    enough = [level for level in reached if len(level[1]) >= ENOUGH]
    if enough:
        where, scores = enough[-1]
    else:
        where, scores = max(reversed(reached), key=lambda level: len(level[1]), default=("", {}))
    if len(scores) < FEWEST:
        raise Nothing(
            f"{forms.plural(len(scores), 'trial')} can be compared at most; fewer than {FEWEST} "
            "say nothing about single parameters."
        )
    trials = [facts.trials.all[number] for number in sorted(scores)]
    trials = [trials[i] for i in thin(len(trials), _MOST)]
    score_N = np.array([scores[trial.number] for trial in trials])
    values = varied(trials)
    if not values or np.ptp(score_N) == 0:
        raise Nothing("All comparable trials have one recipe or one score.")
    r2, drop = _forest(list(values.values()), score_N)
    return Importance(
        where=where, trials=tuple(trials), score_N=score_N, values=values, r2=r2,
        drop=dict(zip(values, drop, strict=True)),
    )  # fmt: skip


def codes(values: Sequence[Any]) -> NDArray[np.float64]:
    """Numbers as they are, or their logarithms; words by their place in the alphabet."""
    if numeric(values):
        found = np.array([float(v) for v in values])
        return np.log(found) if logarithmic(values) else found
    places = {name: place for place, name in enumerate(_names(values))}
    return np.array([float(places[str(v)]) for v in values])


def _names(values: Sequence[Any]) -> list[str]:
    return sorted(set(map(str, values)))


def _forest(
    columns: Sequence[Sequence[Any]], score_N: NDArray[np.float64]
) -> tuple[float, list[tuple[float, float]]]:
    """R2 on held-out trials, and by how much it falls, mean and sd over folds, when a parameter is
    shuffled there. Ranks are predicted, so that a trial that diverged is no outlier."""
    from scipy.stats import rankdata
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    x_NP = np.stack([codes(column) for column in columns], axis=1)
    rank_N = rankdata(score_N)
    rng = np.random.default_rng(0)
    r2_K, drop_KP = [], []
    for train, held_out in KFold(_FOLDS, shuffle=True, random_state=0).split(x_NP):
        forest = RandomForestRegressor(_TREES, min_samples_leaf=2, random_state=0)
        forest.fit(x_NP[train], rank_N[train])
        spread = float(np.square(rank_N[held_out] - rank_N[train].mean()).mean())
        if not spread:  # all of them tie
            continue
        whole = _explained(forest.predict(x_NP[held_out]), rank_N[held_out], spread)
        shuffled_PSNP = np.tile(x_NP[held_out], (x_NP.shape[1], _SHUFFLES, 1, 1))
        for column, copies_SNP in enumerate(shuffled_PSNP):
            for copy_NP in copies_SNP:
                rng.shuffle(copy_NP[:, column])
        # All at once: a call of the forest takes longer than its rows.
        pred_PSN = forest.predict(shuffled_PSNP.reshape(-1, x_NP.shape[1]))
        pred_PSN = pred_PSN.reshape(shuffled_PSNP.shape[:3])
        left_PS = [[_explained(pred_N, rank_N[held_out], spread) for pred_N in pred_SN]
                   for pred_SN in pred_PSN]  # fmt: skip
        drops = whole - np.mean(left_PS, axis=1)
        r2_K.append(whole)
        drop_KP.append(drops)
    if len(r2_K) < 2:
        raise Nothing("Nearly all comparable trials have one score.")
    mean_P, sd_P = np.mean(drop_KP, axis=0), np.std(drop_KP, axis=0, ddof=1)
    return float(np.mean(r2_K)), list(zip(mean_P.tolist(), sd_P.tolist(), strict=True))


def _explained(pred_N: NDArray[np.float64], rank_N: NDArray[np.float64], spread: float) -> float:
    """R2; `spread` is the squared error of who always says the training mean."""
    return 1 - float(np.square(pred_N - rank_N).mean()) / spread


def body(facts: Facts) -> Html:
    found = find(facts)
    drawn = _charts(facts, found)
    return join([
        el("p", _method(found)),
        drawn["importance"].html() if "importance" in drawn else None,
        el("h3", "Slices"),
        el("p", f"Each dot is a trial {found.where}: what it scored, against one of its values. "
           "Blue ones have finished, grey ones have not. The sampler tries more "
           "where it is good, so dense is not the same as better."),
        el("div", [c.html() for name, c in drawn.items() if name.startswith("slice-")],
           class_="grid"),
        el("h3", "Parallel coordinates"),
        drawn["parallel"].html(),
    ])  # fmt: skip


def _method(found: Importance) -> str:
    method = (
        f"A random forest (scikit-learn) learned the ranks of {len(found.trials)} trials "
        f"{found.where} from {len(found.values)} parameters. On trials that it did not see it "
        f"explains R² = {found.r2:.2f} of them"
    )
    if not found.tells:
        return (
            f"{method}: next to nothing. So nothing can be said about which parameter matters; "
            "more trials, or a wider space, would help."
        )
    few = " With so few trials take the order as a hint." if len(found.trials) < ENOUGH else ""
    return f"{method}; a bar is the part of it that is lost when a parameter is shuffled.{few}"


def charts(facts: Facts) -> dict[str, Chart]:
    return _charts(facts, find(facts))


def _charts(facts: Facts, found: Importance) -> dict[str, Chart]:
    drawn = {"importance": _bars(found)} if found.tells else {}
    for name in found.order[:_SLICES]:
        drawn[f"slice-{name}"] = _slice(facts, found, name)
    return drawn | {"parallel": _parallel(facts, found)}


def _bars(found: Importance) -> Chart:
    names = found.order[:_SHOWN]
    drops = [found.drop[name] for name in names]
    told = ", ".join(f"{name} {found.drop[name][0]:.2f}" for name in names[:5])
    return Chart(
        data=[{
            "type": "bar", "orientation": "h", "x": numbers(mean for mean, _ in drops),
            "y": list(range(len(names))), "customdata": [words(name) for name in names],
            "marker": {"color": BLUE},
            "error_x": {"type": "data", "array": numbers(sd for _, sd in drops), "color": GREY,
                        "thickness": 1},
            "hovertemplate": "%{customdata}: %{x:.3f}<extra></extra>",
        }],
        label=f"Importance of parameters: {told}.",
        layout={"xaxis": axis("R² lost when shuffled"), "yaxis": names_axis(names)},
        caption="Lines: one standard deviation over five folds of trials.",
        height=max(200, 60 + 22 * len(names)),
    )  # fmt: skip


def _slice(facts: Facts, found: Importance, name: str) -> Chart:
    values = found.values[name]
    kept = thin(len(values), _DOTS)
    whole = {trial.number for trial in facts.finished}
    if numeric(values) and len(set(values)) > _FEW:
        x: list[Any] = numbers(values[i] for i in kept)
        log = {"type": "log", "exponentformat": "power"} if logarithmic(values) else {}
        across = axis(words(name), **log)
    else:
        names = [str(v) for v in sorted(set(values))] if numeric(values) else _names(values)
        # Beside each other by the golden ratio: dots of one value would hide each other.
        x = [names.index(str(values[i])) + 0.5 * ((n * 0.618034) % 1 - 0.5)
             for n, i in enumerate(kept)]  # fmt: skip
        across = axis(words(name), showgrid=False, **_ticks(names))
    return Chart(
        data=[{
            "type": "scatter", "mode": "markers", "x": x,
            "y": numbers(found.score_N[i] for i in kept),
            "text": [f"trial {found.trials[i].number}, {words(forms.value(values[i]))}"
                     for i in kept],
            "marker": {"size": 7, "opacity": 0.7,
                       "color": [BLUE if found.trials[i].number in whole else GREY for i in kept]},
            "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
        }],
        label=f"Scores {found.where} against {name}.",
        layout={"xaxis": across,
                "yaxis": axis(words(facts.score_name), range=room(found.score_N.tolist()))},
        height=240,
    )  # fmt: skip


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    places = thin(len(names), _CATEGORIES)
    return {"tickvals": places, "ticktext": [words(names[i], 24) for i in places]}


def _parallel(facts: Facts, found: Importance) -> Chart:
    """Lines over axes from 0 to 1. Drawn as ordinary lines: Plotly's own kind needs WebGL, which
    remote desktops lack, and cannot be printed."""
    names = found.order[:_AXES]
    scaled_PN = [_scaled(codes(found.values[name])) for name in names]
    scaled_PN.append(_scaled(found.score_N))
    best_first = np.argsort(-found.score_N, kind="stable")
    quarter = max(1, len(best_first) // 4)
    groups = [("the others", GREY, 0.25, best_first[quarter:]),
              ("the best quarter", ORANGE, 0.8, best_first[:quarter])]  # fmt: skip
    places = list(range(len(names) + 1))
    traces = []
    for title, colour, opacity, members in groups:
        x: list[int | None] = []
        y: list[float | None] = []
        for n in (int(members[i]) for i in thin(len(members), _LINES)):
            # A little apart, so that lines of the same choice can be told from each other.
            shift = 0.03 * ((n * 0.618034) % 1 - 0.5)
            x += [*places, None]
            y += [*(float(line_N[n]) + shift for line_N in scaled_PN), None]
        traces.append({
            "type": "scatter", "mode": "lines", "x": x, "y": numbers(y), "name": title,
            "line": {"color": colour, "width": 1}, "opacity": opacity, "hoverinfo": "skip",
        })  # fmt: skip
    notes = []
    for place, name in enumerate(names):
        low, high = _ends(found.values[name])
        notes += [_note(place, -0.03, "top", low), _note(place, 1.03, "bottom", high)]
    last = len(names)
    notes += [_note(last, -0.03, "top", f"{found.score_N.min():.3f}"),
              _note(last, 1.03, "bottom", f"{found.score_N.max():.3f}")]  # fmt: skip
    return Chart(
        data=traces,
        label=f"Parallel coordinates of {len(found.trials)} trials over {', '.join(names)} and the "
              "score; the best quarter stands out.",
        layout={
            "xaxis": axis("", tickvals=places, ticktext=[*(words(n, 18) for n in names), "score"],
                          zeroline=False, range=[-0.4, last + 0.4]),
            "yaxis": {"visible": False, "range": [-0.12, 1.12]}, "annotations": notes,
            "showlegend": True, "margin": {"l": 12, "r": 12, "t": 30, "b": 44},
        },
        height=360,
        least_width=90 * (last + 1),
    )  # fmt: skip


def _scaled(line_N: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = float(np.ptp(line_N))
    return (line_N - line_N.min()) / spread if spread else np.full(len(line_N), 0.5)


def _ends(values: Sequence[Any]) -> tuple[str, str]:
    if numeric(values):
        return forms.value(float(min(values))), forms.value(float(max(values)))
    names = _names(values)
    return words(names[0], 14), words(names[-1], 14)


def _note(x: float, y: float, side: str, what: str) -> dict[str, Any]:
    return {"x": x, "y": y, "text": what, "showarrow": False, "yanchor": side,
            "font": {"size": 10}}  # fmt: skip
