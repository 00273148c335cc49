"""Tables and a figure of what the simulations found.

A data set's regret is first averaged over its problems for each seed; intervals are over seeds.

Letters: S seeds, G moments (every 1/GRID of a whole trial's compute).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.arms import ARMS, BASELINE, GRID, OURS, RANDOM_ASHA, Outcome

SHARES = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the budget, columns of the table
RESAMPLES = 2000  # of the seeds, for intervals of ratios


@dataclass(frozen=True, kw_only=True)
class Found:
    """One simulation's outcome and what it was of."""

    arm: str
    problem: str
    data_set: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class Results:
    """All outcomes of a benchmark run."""

    found: Sequence[Found]
    trials: int  # the budget, in whole trials

    def data_sets(self) -> list[str]:
        return sorted({f.data_set for f in self.found})

    def arms(self) -> list[str]:
        return [arm for arm in ARMS if any(f.arm == arm for f in self.found)]

    def of(self, arm: str, data_set: str) -> list[Found]:
        return [f for f in self.found if (f.arm, f.data_set) == (arm, data_set)]

    def regret_SG(self, arm: str, data_set: str) -> NDArray[np.float64]:
        by_seed: dict[int, list[NDArray[np.float64]]] = {}
        for found in self.of(arm, data_set):
            by_seed.setdefault(found.seed, []).append(found.outcome.regret_G)
        return np.stack([np.mean(by_seed[seed], axis=0) for seed in sorted(by_seed)])

    def moment(self, share: float) -> int:
        """The index in G of a share of the budget."""
        return max(1, round(share * self.trials * GRID)) - 1


def half_width(value_S: NDArray[np.float64]) -> Any:
    """Two standard errors of the mean over seeds: about 95 %."""
    return 2 * value_S.std(0, ddof=1) / np.sqrt(len(value_S)) if len(value_S) > 1 else np.nan


def table(results: Results) -> str:
    """Mean regret with its interval at several moments, and what it was spent on."""
    lines = []
    for data_set in results.data_sets():
        some = results.of(results.arms()[0], data_set)
        count, seeds = len({f.problem for f in some}), len({f.seed for f in some})
        lines.append(
            f"{data_set}: {count} problems, {seeds} seeds; mean regret ± 2 standard errors"
        )
        heads = "".join(f"{f'@ {share * results.trials:g}':>16}" for share in SHARES)
        lines.append(f"  {'policy':32}{heads}   tried finished  busy")
        for arm in results.arms():
            regret_SG = results.regret_SG(arm, data_set)
            cells = ""
            for share in SHARES:
                value_S = regret_SG[:, results.moment(share)]
                cells += f"   {value_S.mean():.4f}±{half_width(value_S):.4f}"
            outcomes = [f.outcome for f in results.of(arm, data_set)]
            lines.append(
                f"  {ARMS[arm].title:32}{cells}  {np.mean([o.tried for o in outcomes]):6.0f} "
                f"{np.mean([o.finished for o in outcomes]):8.1f}  "
                f"{np.mean([o.busy for o in outcomes]):4.0%}"
            )
        lines.append("")
    return "\n".join(lines)


def targets(results: Results) -> str:
    """Ours against the two policies of the target; "" where one of them was left out."""
    lines = []
    for arm in OURS:
        if not {arm, BASELINE, RANDOM_ASHA} <= set(results.arms()):
            continue
        lines.append(f"{ARMS[arm].title}, against {ARMS[BASELINE].title}")
        for data_set in results.data_sets():
            ours_SG = results.regret_SG(arm, data_set)
            base_SG = results.regret_SG(BASELINE, data_set)
            lines.append(f"  {data_set}:")
            lines.append(
                f"    compute to its final regret  {_with_interval(_reach, ours_SG, base_SG)}"
            )
            for share in (1 / 2, 1):
                at = results.moment(share)
                ratio = _with_interval(_ratio, ours_SG[:, : at + 1], base_SG[:, : at + 1])
                lines.append(f"    regret ratio @ {share * results.trials:<4g}         {ratio}")
            worse = _worse(ours_SG, results.regret_SG(RANDOM_ASHA, data_set))
            lines.append(f"    worse than {ARMS[RANDOM_ASHA].title}  {worse}")
        lines.append("")
    return "\n".join(lines)


def _reach(ours_SG: NDArray[np.float64], base_SG: NDArray[np.float64]) -> float:
    """The share of all compute after which ours is as good as the other at the end."""
    reached_G = ours_SG.mean(0) <= base_SG[:, -1].mean() + 1e-12
    return float(reached_G.argmax() + 1) / len(reached_G) if reached_G.any() else np.inf


def _ratio(ours_SG: NDArray[np.float64], base_SG: NDArray[np.float64]) -> float:
    """Of the regrets at the last moment."""
    ours, base = ours_SG[:, -1].mean(), base_SG[:, -1].mean()
    return float(ours / base) if base else (1.0 if not ours else np.inf)


def _with_interval(measure: Any, ours_SG: NDArray[np.float64], base_SG: NDArray[np.float64]) -> str:
    """A measure of two policies with its 95 % bootstrap interval over seeds."""
    rng, seeds = np.random.default_rng(0), len(ours_SG)
    drawn = [rng.integers(seeds, size=seeds) for _ in range(RESAMPLES)]
    low, high = np.quantile(
        [measure(ours_SG[d], base_SG[d]) for d in drawn], (0.025, 0.975), method="nearest"
    )
    return f"{measure(ours_SG, base_SG):.2f} [{low:.2f}, {high:.2f}]"


def _worse(ours_SG: NDArray[np.float64], other_SG: NDArray[np.float64]) -> str:
    """Where ours is worse by more than two standard errors of the paired difference."""
    more_SG = ours_SG - other_SG
    at = np.flatnonzero(more_SG.mean(0) - half_width(more_SG) > 1e-12)
    if not len(at):
        return "nowhere"
    most = at[more_SG.mean(0)[at].argmax()]
    return (
        f"at {len(at)} of {more_SG.shape[1]} moments, from {(at[0] + 1) / GRID:g} to "
        f"{(at[-1] + 1) / GRID:g} trials; most @ {(most + 1) / GRID:g}: "
        f"{more_SG.mean(0)[most]:+.4f}±{half_width(more_SG)[most]:.4f}"
    )


def by_problem(results: Results) -> str:
    """The final regret on each problem, mean over seeds."""
    arms = results.arms()
    lines = ["final regret on each problem", f"  {'':44}" + "".join(f"{a:>13}" for a in arms)]
    for problem in sorted({f.problem for f in results.found}):
        cells = ""
        for arm in arms:
            some = [f for f in results.found if (f.arm, f.problem) == (arm, problem)]
            cells += f"{np.mean([f.outcome.regret_G[-1] for f in some]):13.4f}"
        lines.append(f"  {problem:44}{cells}")
    return "\n".join(lines)


def draw(results: Results, path: Path) -> None:
    """Regret against compute, a panel for each data set, intervals shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets, arms = results.data_sets(), results.arms()
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(6.5 * len(sets), 6), squeeze=False, layout="constrained"
    )
    trials_G = np.arange(1, results.trials * GRID + 1) / GRID
    for panel, data_set in zip(panels[0], sets, strict=True):
        lowest, first = 1.0, results.trials * GRID
        for arm in arms:
            regret_SG = results.regret_SG(arm, data_set)
            mean_G, half_G = regret_SG.mean(0), half_width(regret_SG)
            lowest = min(lowest, float(mean_G[mean_G > 0].min(initial=1.0)))
            first = min(first, int((mean_G == 1).sum()))
            color = "black" if arm in OURS else f"C{list(ARMS).index(arm)}"
            dashes = "--" if arm.endswith(("-hours", "-fold")) else "-"
            width = 2.6 if arm in OURS else 1.4
            panel.plot(trials_G, mean_G, dashes, color=color, lw=width, label=ARMS[arm].title)
            low_G = np.maximum(mean_G - half_G, 1e-9)
            panel.fill_between(trials_G, low_G, mean_G + half_G, color=color, alpha=0.1, lw=0)
        panel.set(
            yscale="log",
            ylim=(lowest / 2, 1.1),
            xlim=(max(0, first / GRID - 1), results.trials),
            title=data_set,
            xlabel="compute, in whole trials (all folds, all epochs)",
            ylabel="regret of the handed-in configuration (1 = chance)",
        )
        panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
