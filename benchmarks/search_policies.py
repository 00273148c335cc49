"""Which search policy finds good configurations with the least compute? Replay of real curves.

Learning curves of DeepOBS (images) and TaskSet (text) are replayed on a simulated clock with 8
workers. A trial is one configuration on 5 folds, one after another, a fold being a replicate seed
where the data has ten, else the curve plus noise (policies/curves.py has the sizes). Random search,
Ray's ASHA, Ray's OptunaSearch, Syne Tune where it is installed (policies/syne_tune.py says how) and
our own searcher and scheduler run through Ray's interfaces, on the same folds for each seed.
Others report after each epoch the mean over the folds done and the current fold at its epoch; our
workers report at the first fold's rungs and at folds' ends.

Regret is that of the finished trial with the best own score: (best - its true final score) / (best
- chance), 1 before any has finished. Compute is epochs trained, in units of a whole trial.

    RUNGFOLD_DATA=DIR PYTHONPATH=. python benchmarks/search_policies.py [--seeds N] [--out DIR]
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
from policies.arms import ARMS, FOLDS, run
from policies.curves import HOW_TO_GET, Problem, World, load_problems
from policies.report import Found, Results, by_problem, draw, table, targets

from spaces.errors import UserError, run_main

_problems: dict[str, Problem] = {}  # of this process


def _load(folder: Path) -> None:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    _problems.update({problem.name: problem for problem in load_problems(folder)})


def _simulate(task: tuple[str, int, tuple[str, ...], int]) -> list[Found]:
    """All policies on one problem with one seed."""
    name, seed, arms, trials = task
    world = World(_problems[name], FOLDS, seed)
    return [
        Found(
            arm=arm, problem=name, data_set=world.problem.data_set, seed=seed,
            outcome=run(arm, world, trials),
        )
        for arm in arms
    ]  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help="tune on others than you report")
    parser.add_argument("--budget", type=int, default=32, help="compute, in whole trials")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM",
                        help=f"of {', '.join(ARMS)}")  # fmt: skip
    parser.add_argument("--problems", nargs="+", default=[""], help="parts of problems' names")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for search_policies.txt and .png")
    parser.add_argument("--quick", action="store_true", help="one seed and a small budget")
    asked = parser.parse_args()
    if asked.quick:
        asked.seeds, asked.budget = 1, 4
    lacking = {arm: ARMS[arm].lacking() for arm in asked.arms}
    for reason in sorted({reason for reason in lacking.values() if reason}):
        titles = ", ".join(ARMS[arm].title for arm in asked.arms if lacking[arm] == reason)
        print(f"left out {titles}: {reason}", file=sys.stderr)
    asked.arms = [arm for arm, reason in lacking.items() if not reason]
    return asked


def main() -> None:
    asked = _arguments()
    if "RUNGFOLD_DATA" not in os.environ:
        print(f"skipped: RUNGFOLD_DATA is not set; {HOW_TO_GET}")
        return
    if min(asked.seeds, asked.budget, asked.processes) < 1:
        raise UserError("--seeds, --budget and --processes must be at least 1")
    if not asked.arms:
        raise UserError("none of the policies in --arms can run here")
    folder, began = Path(os.environ["RUNGFOLD_DATA"]) / "curves", time.perf_counter()
    known = load_problems(folder)
    chosen = [p for p in known if any(part in p.name for part in asked.problems)]
    if not chosen:
        names = ", ".join(p.name for p in known)
        raise UserError(f"--problems {' '.join(asked.problems)} matches none of {names}")
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    # Long problems first, so that no process is left alone with one at the end.
    chosen.sort(key=lambda p: -p.epochs)
    tasks = [(p.name, s, tuple(asked.arms), asked.budget) for p in chosen for s in seeds]
    for library in ("OMP", "OPENBLAS", "MKL"):  # the arrays are small: threads only get in the way
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with context.Pool(asked.processes, initializer=_load, initargs=(folder,)) as pool:
        batches = list(pool.imap_unordered(_simulate, tasks))
    results = Results([found for batch in batches for found in batch], asked.budget)

    text = "\n".join(
        part for part in (table(results), targets(results), by_problem(results)) if part
    )
    spent = {arm: [f.outcome.seconds for f in results.found if f.arm == arm] for arm in asked.arms}
    each = ", ".join(f"{arm} {np.mean(seconds):.2f}" for arm, seconds in spent.items())
    print(text)
    print(f"\n{time.perf_counter() - began:.0f} s; seconds per simulation: {each}")
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "search_policies.txt").write_text(text + "\n", encoding="utf-8")
        draw(results, asked.out / "search_policies.png")


if __name__ == "__main__":
    run_main(main)
