"""Who has the better test predictions after the same minutes on the same two cores?

    [RUNGFOLD_DATA=DIR] PYTHONPATH=. python benchmarks/anytime.py [--quick] [--out DIR]

Three arms search the same space: ours; Optuna with K folds, DataLoader and greedy selection by
hand; Ray Tune as its image tutorial does it (anytime_arms/*_script.py say how). Data: the generated
gene_expr sample, another one for each seed, and her2st, of which each seed holds another section
out as test rows, since its own test rows have no public truth.

All have the same backbones, image size, epochs, folds, random weights and, for the parameters that
the peers search, the same ranges; the others stand, for the peers, at what is known to serve. The
folds are given to the peers, while ours makes them itself. Ours begins with its first recipes,
which are part of it. They were chosen on her2st (docs/decisions.md), which makes the sample the
fairer half. Optuna begins with our space's defaults for each backbone.

Time counts from the start of a process, imports and decoding included. "known" is the score that
the arm sees itself, "test" the true one, which no arm sees; before the first hand-in it is that of
predicting the mean profile. The order of the arms alternates over seeds.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from anytime_arms.arms import ARMS, Result, run
from anytime_arms.problem import CORES, DATA_SETS, HER2ST, SAMPLE, prepare
from anytime_arms.report import draw, over_time, summary

from spaces.errors import UserError, run_main

QUICK_MINUTES = 0.9  # enough for a first member of ours


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=5, help="of each arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, help="keeps results, and goes on with what is there")
    parser.add_argument("--quick", action="store_true", help="only shows that all of it works")
    asked = parser.parse_args()
    if asked.quick:
        asked.minutes, asked.seeds, asked.data = QUICK_MINUTES, 1, [SAMPLE]
    if asked.seeds < 1 or asked.minutes <= 0:
        raise UserError("--seeds must be at least 1 and --minutes greater than 0")
    if HER2ST in asked.data and "RUNGFOLD_DATA" not in os.environ:
        print(f"left out {HER2ST}: RUNGFOLD_DATA is not set", file=sys.stderr)
        asked.data.remove(HER2ST)
    return asked


def _run_all(asked: argparse.Namespace, out: Path) -> list[Result]:
    results = []
    for seed in range(asked.seeds):
        for data_set in asked.data:
            folder = out / f"{data_set}-{seed}"
            problem = prepare(data_set, seed, asked.minutes, folder / "problem")
            for arm in asked.arms if seed % 2 == 0 else reversed(asked.arms):
                kept = folder / f"{arm}.json"
                if not kept.is_file():
                    print(f"{data_set}, seed {seed}: {arm}", file=sys.stderr)
                    run(arm, data_set, problem, folder / arm, asked.minutes).save(kept)
                results.append(Result.load(kept))
    if other := {r.minutes for r in results} - {asked.minutes}:
        raise UserError(f"{out} has results of {other.pop():g} minutes; give another --out")
    return results


def main() -> None:
    asked = _arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory(prefix="rungfold-anytime-") as scratch:
        results = _run_all(asked, asked.out or Path(scratch))
    if not results:
        print("nothing to run")
        return
    print(over_time(results))
    print(summary(results))
    if asked.out:
        draw(results, asked.out / "anytime.png")


if __name__ == "__main__":
    run_main(main)
