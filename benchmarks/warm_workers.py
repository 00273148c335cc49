"""How much of a worker's time goes into training, in a run of many short trials?

The same recipes (drawn by our sampler, none pruned, two folds each) on the same images through our
search, through a plain Ray Tune function with Ray's defaults, and through Optuna in one process
with a thread for each core. All train with our code, so only what lies between two trials differs.
Busy is training and evaluation, as a share of all workers' time from the first step on.

    python benchmarks/warm_workers.py [--trials 40] [--epochs 3]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from search.journal import read_events
from search.run_folder import RunFolder

WORKERS = 2
ASKED = 0.92  # of each worker's time


def ours(folder: Path, args: argparse.Namespace) -> None:
    """The search itself; what its workers are told is kept for the others."""
    from search import compose, plan
    from search.director import Director
    from search.run import main as search
    from search.study import run_study
    from search.trial import Context

    def keep(director: Director, a_plan: plan.Plan, context: Context, *rest: Any) -> None:
        (folder / "context.json").write_text(json.dumps(asdict(context), default=dict))
        run_study(director, a_plan, context, *rest)

    vars(plan)["make_rungs"] = lambda folds, epochs: ()
    vars(compose)["run_study"] = keep
    search([
        "gene_expr", "--trials", str(args.trials), "--epochs", str(args.epochs), "--folds", "2",
        "--backbone", "test_resnet", "--cpus-per-trial", "1", "--out", str(folder / "ours"),
    ])  # fmt: skip


def read_ours(folder: Path) -> list[dict[str, float]]:
    """Of each trial: when it began and ended, and its seconds of training and evaluation."""
    trials: dict[int, dict[str, float]] = {}
    waiting: set[int] = set()
    for event in read_events(RunFolder(folder / "ours").journal)[0]:
        if event.kind == "ask":
            trials[event.trial] = {"busy": 0.0}
            waiting.add(event.trial)
        for point in event.data.get("points", ()):
            trials[event.trial]["busy"] += point["seconds"]
        if event.kind == "fold":
            trial = trials[event.trial]
            trial["busy"] += event.data["seconds"]
            trial["end"] = event.time
            if event.trial in waiting:  # folds are told whole: the first began so long ago
                waiting.discard(event.trial)
                trial["begin"] = event.time - trial["busy"]
    return list(trials.values())


def train(folder: Path, side: str, number: int, threads: int) -> dict[str, float]:
    """One trial by our worker, as a function that somebody writes would: everything is set up anew,
    but what is imported already."""
    from search.trial import Context, Worker

    saved = json.loads((folder / "context.json").read_text())
    saved |= {"run": str(folder / side), "threads": threads}
    saved["target_names"] = tuple(saved["target_names"])
    worker = Worker(Context(**saved))
    asks = [e for e in read_events(RunFolder(folder / "ours").journal)[0] if e.kind == "ask"]
    busy, begin = 0.0, 0.0
    lease = {
        "trial": number, "attempt": 1, "recipe": asks[number].data["recipe"], "folds": [0, 1],
        "first_fold": 0, "rung_epochs": [],
    }  # fmt: skip
    for report in worker.reports(lease):
        busy += sum(point["seconds"] for point in report["points"])
        busy += report.get("fold", {}).get("seconds", 0.0)  # a long fold tells its epochs before
        begin = begin or time.time() - busy
    return {"begin": begin, "end": time.time(), "busy": busy}


def ray_tune(folder: Path, args: argparse.Namespace) -> None:
    """A function trainable and a grid over the recipes, one core for each trial: Ray's defaults."""
    import ray
    from ray import tune

    def trainable(config: dict[str, int]) -> None:
        told = train(folder, "ray_tune", config["number"], threads=1)
        (folder / "ray_tune" / f"{config['number']}.json").write_text(json.dumps(told))
        tune.report({"score": 0.0})

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(list(range(args.trials)))},
        run_config=tune.RunConfig(storage_path=str(folder / "ray_results")),
    ).fit()


def optuna_alone(folder: Path, args: argparse.Namespace) -> None:
    """One trial after the other, each with all cores."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        told = train(folder, "optuna", trial.number, threads=WORKERS)
        (folder / "optuna" / f"{trial.number}.json").write_text(json.dumps(told))
        return 0.0

    optuna.create_study().optimize(objective, n_trials=args.trials)


def read_told(side: str) -> Callable[[Path], list[dict[str, float]]]:
    return lambda folder: [
        json.loads(path.read_text()) for path in (folder / side).glob("[0-9]*.json")
    ]


# name -> what it runs, how its trials are read, how many workers it has
SIDES: dict[str, tuple[Callable[[Path, argparse.Namespace], None], Callable, int]] = {
    "ours": (ours, read_ours, WORKERS),
    "ray_tune": (ray_tune, read_told("ray_tune"), WORKERS),
    "optuna": (optuna_alone, read_told("optuna"), 1),
}
TITLES = {
    "ours": "ours", "ray_tune": "Ray Tune function, defaults", "optuna": "Optuna in one process"
}  # fmt: skip


def prepare(folder: Path, side: str) -> None:
    """A run folder in which a peer's trials find folds and targets."""
    (folder / side).mkdir()
    for name in ("folds.parquet", "targets.npy"):
        shutil.copy(folder / "ours" / name, folder / side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few and shorter trials")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            SIDES[args.side][0](args.folder, args)
        return
    if args.quick:
        args.trials, args.epochs = 4, 1
    print(f"{args.trials} trials of 2 folds, {args.epochs} epochs, test_resnet at 64 px")
    print(f"{'':30}{'all':>9}{'from 1st step':>15}{'a trial':>9}{'busy':>7}   ratio")
    with tempfile.TemporaryDirectory(prefix="warm-workers-") as temporary:
        folder, reference = Path(temporary), 0.0
        for side, (_, read, workers) in SIDES.items():
            if side != "ours":
                prepare(folder, side)
            started = time.time()
            subprocess.run([
                sys.executable, __file__, "--side", side, "--folder", temporary,
                "--trials", str(args.trials), "--epochs", str(args.epochs),
            ], check=True)  # fmt: skip
            trials = read(folder)
            assert len(trials) == args.trials, f"{len(trials)} trials of {side} were told"
            seconds = max(t["end"] for t in trials) - min(t["begin"] for t in trials)
            busy = sum(t["busy"] for t in trials)
            reference = reference or seconds
            print(
                f"{TITLES[side]:30}{time.time() - started:7.1f} s{seconds:13.1f} s"
                f"{busy / len(trials):7.2f} s{busy / seconds / workers:7.1%}"
                f"{seconds / reference:8.2f}" + (f"   asked: {ASKED:.0%}" * (side == "ours")),
                flush=True,
            )


if __name__ == "__main__":
    main()
