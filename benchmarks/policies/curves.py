"""Problems made of recorded learning curves, and worlds: a problem with its folds drawn for a seed.

Scores are higher-better: the test accuracy (DeepOBS), or minus the validation loss (TaskSet). Row 0
of a curve is before training; a value that is not finite is a divergence.

Letters: N configurations, A axes, R replicates, E epochs + 1, K folds, T epochs over all folds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from spaces.errors import UserError
from spaces.seeds import derive

FILES = ("deepobs_images.parquet", "taskset_imdb.parquet")
NOISE = 0.01  # sd between folds, in units of best - chance, where no replicates tell
FOLD_EFFECT = 2.0  # sd of what is common to all configurations on a fold, in units of the noise

HOW_TO_GET = f"""\
set RUNGFOLD_DATA to a folder that holds curves/{FILES[0]} and curves/{FILES[1]}:
  {FILES[0]}: the baseline curves of DeepOBS (github.com/fsschneider/DeepOBS_Baselines, MIT) for
    cifar10_3c3d, cifar100_allcnnc, fmnist_2c2d and svhn_wrn164, all learning rates of the three
    optimisers and all seeds; a row per epoch: problem, run, optimizer, lr, seed, epoch,
    test_accuracy (in [0, 1], epoch 0 before training)
  {FILES[1]}: the FixedTextRNNClassification_imdb tasks of TaskSet (Apache-2.0;
    github.com/google-research/google-research/tree/master/task_set), Adam8p, 1000 settings;
    a row per setting: task, config, hp (JSON of the eight numbers), valid_loss (51 evaluations,
    the first before training)"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One dimension of a space: a choice among `options`, or a number in [low, high]."""

    name: str
    options: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def position(self, value: Any) -> float:
        """An option's index, or a number's place in [0, 1] on its own scale."""
        if self.options:
            return float(self.options.index(value))
        ends = np.array([self.low, self.high, value], dtype=float)
        low, high, at = np.log(ends) if self.log else ends
        return float((at - low) / (high - low))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A table of configurations with their curves."""

    name: str
    data_set: str
    epochs: int  # of training per fold
    axes: tuple[Axis, ...]
    position_NA: NDArray[np.float64]  # Axis.position of each configuration
    curves: tuple[NDArray[np.float64], ...]  # one (R, E) array for each configuration
    fold_sd: float | None = None  # between folds of a configuration; None: a stated share

    @cached_property
    def truth_N(self) -> NDArray[np.float64]:
        """What each configuration is worth: its last score, averaged over its replicates."""
        last_N = np.array([curve_RE[:, -1].mean() for curve_RE in self.curves])
        return np.where(np.isfinite(last_N), last_N, -np.inf)

    @cached_property
    def best(self) -> float:
        return float(self.truth_N.max())

    @cached_property
    def chance(self) -> float:
        """The score before training."""
        return float(np.nanmedian([curve_RE[0, 0] for curve_RE in self.curves]))

    @property
    def floor(self) -> float:
        """As far below chance as the best is above it. What is worse counts as this: a loss of
        10^8 says no more, and would drown every mean and percentile, Ray's own too."""
        return 2 * self.chance - self.best

    @cached_property
    def noise(self) -> float:
        """Standard deviation between the folds of a configuration."""
        return NOISE * (self.best - self.chance) if self.fold_sd is None else self.fold_sd

    def nearest(self, params: Mapping[str, Any]) -> int:
        """The configuration that stands for these parameters: of the same options, the one whose
        numbers are nearest; the first of equals."""
        at_A = np.array([axis.position(params[axis.name]) for axis in self.axes])
        choice_A = np.array([bool(axis.options) for axis in self.axes])
        away_NA = self.position_NA - at_A
        distance_N = (away_NA[:, ~choice_A] ** 2).sum(1)
        distance_N[(away_NA[:, choice_A] != 0).any(1)] = np.inf
        return int(distance_N.argmin())

    def regret(self, config: int | None) -> float:
        """How far a configuration is from the best, 0 to 1 = chance; 1 when there is none."""
        if config is None:
            return 1.0
        return float(np.clip((self.best - self.truth_N[config]) / (self.best - self.chance), 0, 1))


class World:
    """A problem whose folds were drawn for a seed: every policy of that seed meets the same ones.

    A configuration's folds are its replicates in an order drawn anew, where it has them, else its
    curve plus an offset for each fold; and each fold is easier or harder for all alike.
    """

    def __init__(self, problem: Problem, folds: int, seed: int) -> None:
        rng = np.random.default_rng(derive("folds", problem.name, seed))
        self.problem, self.folds, self.seed = problem, folds, seed
        self._offset_NK = rng.normal(0, problem.noise, (len(problem.curves), folds))
        self._offset_K = rng.normal(0, FOLD_EFFECT * problem.noise, folds)
        self._order_NR = [rng.permutation(len(curve_RE)) for curve_RE in problem.curves]
        self._means: dict[int, NDArray[np.float64]] = {}

    @property
    def max_t(self) -> int:
        """Epochs of a whole trial, over all folds."""
        return self.folds * self.problem.epochs

    def curve(self, config: int, fold: int) -> NDArray[np.float64]:
        """(E,) scores of a configuration on a fold; NaN where training has diverged."""
        curve_RE = self.problem.curves[config]
        if len(curve_RE) > 1:
            order_R = self._order_NR[config]
            curve_E = curve_RE[order_R[fold % len(order_R)]]
        else:
            curve_E = curve_RE[0] + self._offset_NK[config, fold]
        curve_E = curve_E + self._offset_K[fold]
        return np.where(np.isfinite(curve_E), np.maximum(curve_E, self.problem.floor), np.nan)

    def running_mean(self, config: int) -> NDArray[np.float64]:
        """(T,) what a user of Ray reports after each epoch: the mean over the folds done, at their
        last epoch, and the current fold at its epoch. NaN from where training has diverged."""
        if config not in self._means:
            curves_KE = np.stack([self.curve(config, k)[1:] for k in range(self.folds)])
            done_K1 = np.concatenate([[0.0], curves_KE[:-1, -1].cumsum()])[:, None]
            mean_T = ((curves_KE + done_K1) / np.arange(1, self.folds + 1)[:, None]).ravel()
            mean_T[np.logical_or.accumulate(np.isnan(mean_T))] = np.nan
            self._means[config] = mean_T
        return self._means[config]


def load_problems(folder: Path) -> list[Problem]:
    """All problems of both data sets.

    Raises UserError when a file is absent.
    """
    lost = [str(folder / name) for name in FILES if not (folder / name).is_file()]
    if lost:
        raise UserError(f"{', '.join(lost)}: no such file; {HOW_TO_GET}")
    return _deepobs(folder / FILES[0]) + _taskset(folder / FILES[1])


def _deepobs(path: Path) -> list[Problem]:
    """Optimiser x learning rate on images; the best rate of each optimiser has ten seeds."""
    found = []
    for name, table in pd.read_parquet(path).groupby("problem"):
        options = tuple(sorted(table.optimizer.unique()))
        low, high = float(table.lr.min()), float(table.lr.max())
        axes = (
            Axis(name="optimizer", options=options),
            Axis(name="lr", low=low, high=high, log=True),
        )
        places, curves = [], []
        for (optimizer, lr), runs in table.groupby(["optimizer", "lr"]):
            by_run = runs.pivot(index="run", columns="epoch", values="test_accuracy")
            curves.append(by_run.to_numpy(dtype=float))
            places.append((axes[0].position(optimizer), axes[1].position(lr)))
        # The median: a single seed that fails would make all folds look like noise.
        spreads = [curve_RE[:, -1].std(ddof=1) for curve_RE in curves if len(curve_RE) > 1]
        problem = Problem(
            name=f"deepobs/{name}",
            data_set="DeepOBS",
            axes=axes,
            curves=tuple(curves),
            position_NA=np.array(places),
            epochs=curves[0].shape[1] - 1,
            fold_sd=float(np.median(spreads)),
        )
        found.append(problem)
    return found


def _taskset(path: Path) -> list[Problem]:
    """Eight numbers of an optimiser on text; all of them were drawn log-uniformly."""
    found = []
    for name, table in pd.read_parquet(path).groupby("task"):
        numbers = pd.DataFrame([json.loads(text) for text in table.hp])
        for beta in ("beta1", "beta2"):
            numbers[beta] = 1 - numbers[beta]
        log_NA = np.log(numbers.to_numpy(dtype=float))
        low_A, high_A = log_NA.min(0), log_NA.max(0)
        curves_NE = -np.array(table.valid_loss.tolist(), dtype=float)
        problem = Problem(
            name=f"taskset/{str(name).removeprefix('FixedTextRNNClassification_')}",
            data_set="TaskSet",
            axes=tuple(Axis(name=axis) for axis in numbers.columns),
            position_NA=(log_NA - low_A) / (high_A - low_A),
            epochs=curves_NE.shape[1] - 1,
            curves=tuple(curve_E[None] for curve_E in curves_NE),
        )
        found.append(problem)
    return found
