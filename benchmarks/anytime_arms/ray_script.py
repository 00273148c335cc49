"""Ray Tune as PyTorch's tutorial on images does it: a function trains, reports each epoch with a
checkpoint, and ASHA stops it.

One split into training and validation rows (the first fold), random search, ASHAScheduler as it
comes, a CPU for each trial. The tutorial hands in the trial with the best last validation score.
What it has not, and is given here at no cost of time: eight views for the test rows, and an
ensemble, selected greedily by the last validation predictions of the trials so far.

    python -m anytime_arms.ray_script PROBLEM OUT DEADLINE BEGAN
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ray import init, tune
from ray.tune.schedulers import ASHAScheduler

from anytime_arms.caruana import greedy
from anytime_arms.hand_ins import ENSEMBLE, SINGLE, HandInLog
from anytime_arms.problem import CORES, Floats, Problem
from anytime_arms.training import Config, Data, Training, ranges_of, seed_all

FOLD = 0  # the rows that are validated
VIEWS, MOMENTS = 8, 20  # of the test rows; at which hand-ins are worked out
POOL = 20  # the best trials are what the ensemble is selected from


class Report(NamedTuple):
    """What a trial left at an epoch's end."""

    at: float  # time.time()
    score: float
    config: dict[str, Any]
    folder: Path  # its checkpoint


def train_tiles(config: Config, data: Data, problem: Problem) -> None:
    """The tutorial's training function."""
    torch.set_num_threads(1)
    valid_N = data.fold_N == FOLD
    true_TV = data.targets_NT[valid_N].T
    training = Training(data, FOLD, config, problem.size, problem.epochs)
    for _ in range(problem.epochs):
        training.epoch()
        pred_TV = training.predict(data.train_NHWC[valid_N])
        if not np.isfinite(pred_TV).all():  # it diverged
            return
        score = float(problem.metric.score(pred_TV, true_TV).value)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(training.network.state_dict(), Path(folder, "model.pt"))
            np.save(Path(folder, "valid.npy"), pred_TV)
            checkpoint = tune.Checkpoint.from_directory(folder)
            tune.report({"score": score, "at": time.time()}, checkpoint=checkpoint)


def search_space(problem: Problem) -> dict[str, Any]:
    return {
        name: tune.choice(wanted["options"])
        if "options" in wanted
        else (tune.loguniform if wanted["log"] else tune.uniform)(wanted["low"], wanted["high"])
        for name, wanted in ranges_of(problem).items()
    }


def reports_of(results: tune.ResultGrid) -> list[list[Report]]:
    """Of each trial that got so far, in order."""
    trials = []
    for result in map(results.__getitem__, range(len(results))):
        frame = result.metrics_dataframe
        if frame is None or "score" not in frame:
            continue
        trials.append([
            Report(row["at"], row["score"], result.config or {},
                   Path(result.path, row["checkpoint_dir_name"]))
            for _, row in frame.dropna(subset=["score"]).iterrows()
        ])  # fmt: skip
    return trials


class Courtesy:
    """Test predictions from checkpoints, and the ensemble: worked out after the time is up."""

    def __init__(self, data: Data, problem: Problem) -> None:
        self._data, self._problem = data, problem
        self._known: dict[Path, Floats] = {}
        self._true_TV = data.targets_NT[data.fold_N == FOLD].T

    def predict_test(self, report: Report) -> Floats:
        if report.folder not in self._known:
            problem = self._problem
            training = Training(self._data, FOLD, report.config, problem.size, problem.epochs)
            state = torch.load(report.folder / "model.pt", weights_only=True)
            training.network.load_state_dict(state)
            self._known[report.folder] = training.predict(self._data.test_NHWC, VIEWS)
        return self._known[report.folder]

    def ensemble(self, reports: list[Report]) -> tuple[float, Floats]:
        """Its validation score and test predictions."""
        preds = [np.load(report.folder / "valid.npy") for report in reports]
        chosen, known = greedy(
            preds, lambda pred_TV: self._problem.metric.score(pred_TV, self._true_TV).value
        )
        return known, np.mean([self.predict_test(reports[m]) for m in chosen], axis=0)


def main(problem_folder: str, out: str, deadline: str, began: str) -> None:
    problem = Problem.load(Path(problem_folder))
    log, end = HandInLog(Path(out), float(began)), float(deadline)
    data = Data.read(problem)
    seed_all(problem.seed)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_tiles, data=data, problem=problem), {"cpu": 1}
        ),
        param_space=search_space(problem),
        tune_config=tune.TuneConfig(
            metric="score", mode="max", num_samples=10_000, time_budget_s=end - time.time(),
            scheduler=ASHAScheduler(max_t=problem.epochs),
        ),
        run_config=tune.RunConfig(storage_path=str(Path(out).resolve()), name="tune", verbose=0),
    )  # fmt: skip
    trials = reports_of(tuner.fit())

    courtesy, span = Courtesy(data, problem), end - float(began)
    for moment in [float(began) + span * (i + 1) / MOMENTS for i in range(MOMENTS)]:
        past = [[r for r in reports if r.at <= moment] for reports in trials]
        last = sorted((reports[-1] for reports in past if reports), key=lambda r: -r.score)
        if last:
            log.add(moment, SINGLE, last[0].score, courtesy.predict_test(last[0]))
            log.add(moment, ENSEMBLE, *courtesy.ensemble(last[:POOL]))
    whole = sum(len(reports) == problem.epochs for reports in trials)
    print(len(trials), whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
