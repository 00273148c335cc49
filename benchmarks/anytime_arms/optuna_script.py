"""Optuna, K folds, DataLoader and greedy selection, by hand, as a strong competitor would write it.

TPE begins with a baseline of each backbone at our space's default values. The median pruner looks
at each epoch of the first fold, after few trials, since minutes allow few. A trial that passes
trains all folds; then its out-of-fold predictions may join the ensemble, which is selected anew.

    python -m anytime_arms.optuna_script PROBLEM OUT DEADLINE BEGAN
"""

import sys
import time
from pathlib import Path

import numpy as np
import optuna
import torch

from anytime_arms.caruana import greedy
from anytime_arms.hand_ins import ENSEMBLE, SINGLE, HandInLog
from anytime_arms.problem import CORES, Floats, Problem
from anytime_arms.training import Data, Training, ranges_of, seed_all
from search.metrics import fold_scores, trial_score

VIEWS = 8


class Competitor:
    """Optuna's objective, and what it keeps of finished trials."""

    def __init__(self, problem: Problem, log: HandInLog, deadline: float) -> None:
        """`deadline`: in seconds of time.time()."""
        self._problem, self._log, self._deadline = problem, log, deadline
        self._data, self._ranges = Data.read(problem), ranges_of(problem)
        self._true_TN = self._data.targets_NT.T
        self._oofs: list[Floats] = []
        self._tests: list[Floats] = []
        self._scores: list[float] = []

    def baselines(self) -> list[dict[str, object]]:
        usual = {name: wanted["default"] for name, wanted in self._ranges.items()}
        return [{**usual, "backbone": backbone} for backbone in self._problem.backbones]

    def objective(self, trial: optuna.Trial) -> float:
        config = {
            name: trial.suggest_categorical(name, wanted["options"])
            if "options" in wanted
            else trial.suggest_float(name, wanted["low"], wanted["high"], log=wanted["log"])
            for name, wanted in self._ranges.items()
        }
        data, epochs = self._data, self._problem.epochs
        oof_TN = np.empty_like(self._true_TN)
        tests = []
        for fold in range(int(data.fold_N.max()) + 1):
            seed_all(1000 * self._problem.seed + 10 * trial.number + fold)
            valid_N = data.fold_N == fold
            training = Training(data, fold, config, self._problem.size, epochs)
            for epoch in range(epochs):
                training.epoch()
                if time.time() > self._deadline:
                    trial.study.stop()
                    raise optuna.TrialPruned
                if fold == 0:
                    pred_TV = training.predict(data.train_NHWC[valid_N])
                    trial.report(self._score(pred_TV, valid_N), epoch)
                    if trial.should_prune():
                        raise optuna.TrialPruned
            oof_TN[:, valid_N] = training.predict(data.train_NHWC[valid_N], VIEWS)
            tests.append(training.predict(data.test_NHWC, VIEWS))
        return self._keep(oof_TN, np.mean(tests, axis=0))

    def _score(self, pred_TV: Floats, valid_N: "np.ndarray") -> float:
        if not np.isfinite(pred_TV).all():  # it diverged
            raise optuna.TrialPruned
        return float(self._problem.metric.score(pred_TV, self._true_TN[:, valid_N]).value)

    def _oof_score(self, pred_TN: "np.ndarray") -> float:
        """The mean over folds, as ours."""
        scores = fold_scores(self._problem.metric, pred_TN, self._true_TN, self._data.fold_N)
        return trial_score(scores)

    def _keep(self, oof_TN: Floats, test_TS: Floats) -> float:
        if not np.isfinite(oof_TN).all():
            raise optuna.TrialPruned
        score = self._oof_score(oof_TN)
        if score > max(self._scores, default=-np.inf):
            self._log.add(time.time(), SINGLE, score, test_TS)
        self._oofs.append(oof_TN)
        self._tests.append(test_TS)
        self._scores.append(score)
        chosen, known = greedy(self._oofs, self._oof_score)
        blended_TS = np.mean([self._tests[m] for m in chosen], axis=0)
        self._log.add(time.time(), ENSEMBLE, known, blended_TS)
        return score


def main(problem_folder: str, out: str, deadline: str, began: str) -> None:
    torch.set_num_threads(CORES)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problem = Problem.load(Path(problem_folder))
    competitor = Competitor(problem, HandInLog(Path(out), float(began)), float(deadline))
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=problem.seed, n_startup_trials=5),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=2, n_warmup_steps=max(1, problem.epochs // 4) - 1
        ),
    )
    for values in competitor.baselines():
        study.enqueue_trial(values)
    study.optimize(competitor.objective, timeout=float(deadline) - time.time())
    states = [trial.state.name for trial in study.trials]
    print(len(states), states.count("COMPLETE"))


if __name__ == "__main__":
    main(*sys.argv[1:])
