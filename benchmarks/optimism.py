"""How optimistic is a score on the rows that chose the ensemble, and how honest is the nested one?

Simulation: 60 members in 5 families whose errors resemble each other, a binary target, AUROC. Each
member predicts the OOF rows and a fresh test set with the same skill. Printed are means over
repetitions: best single and greedy selection on OOF rows and on the fresh test, and how far the
nested estimate lies from the fresh test's score of the very ensemble that is exported.

    python benchmarks/optimism.py [--repeats N]
"""

import argparse

import numpy as np

from ensemble.bench import Bench
from ensemble.combiners import get_combiner
from ensemble.honest import Nesting
from ensemble.limits import Cost, Limits
from ensemble.members import Member, Pool
from search.metrics import get_metric

MEMBERS, FAMILIES, FOLDS, FRESH = 60, 5, 5, 20_000
REPEATS = {300: 300, 1000: 150, 5000: 40}


def simulate(rows: int, seed: int) -> tuple[Pool, Pool]:
    """The members' predictions for OOF rows and for a fresh test, as two pools."""
    rng = np.random.default_rng(seed)
    skill_M = rng.uniform(0.3, 0.6, MEMBERS)
    family_M = np.arange(MEMBERS) % FAMILIES
    pools = []
    for count in (rows, FRESH):
        signal_N = rng.normal(size=count)
        label_N = (rng.random(count) < 1 / (1 + np.exp(-2.5 * signal_N))).astype(np.float32)
        shared_FN = rng.normal(size=(FAMILIES, count))
        own_MN = rng.normal(size=(MEMBERS, count))
        logit_MN = skill_M[:, None] * signal_N + 0.5 * shared_FN[family_M] + 0.3 * own_MN
        pred_MN = (1 / (1 + np.exp(-logit_MN))).astype(np.float32)
        members = tuple(
            Member(name=f"{m:02d}", pred_TN=pred_MN[m : m + 1], cost=Cost(family=str(family_M[m])))
            for m in range(MEMBERS)
        )
        true_TN = label_N[None]
        pools.append(
            Pool(task="simulation", task_type="binary", metric=get_metric("auroc").fit(true_TN),
                 target_names=("y",), members=members, true_TN=true_TN,
                 fold_N=rng.permutation(np.arange(count) % FOLDS), group_N=None)
        )  # fmt: skip
    return pools[0], pools[1]


def once(rows: int, seed: int) -> dict[str, float]:
    oof, fresh = simulate(rows, seed)
    bench = Bench(oof, Limits(max_members=None))
    nesting = Nesting(bench, [get_combiner("best_single"), get_combiner("greedy")])
    found = {}
    for combiner in nesting.combiners:
        blend = nesting.fit(combiner, bench.folds)
        pred_TN = blend.apply([fresh.members[m].pred_TN for m in blend.members])
        found[f"{combiner.name} OOF"] = bench.score(blend, bench.folds)
        found[f"{combiner.name} fresh"] = fresh.metric.score(pred_TN, fresh.true_TN).value
        found[f"{combiner.name} nested"] = nesting.nested(combiner).score.mean
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, help="for each number of rows")
    parser.add_argument("--quick", action="store_true", help="two repeats")
    args = parser.parse_args()
    repeats = 2 if args.quick else args.repeats
    print("rows  repeats  single OOF/fresh   greedy OOF/fresh   optimism  nested - fresh (± se)")
    for rows, usual in REPEATS.items():
        runs = [once(rows, 1000 * rows + seed) for seed in range(repeats or usual)]
        mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        off = np.array([run["greedy nested"] - run["greedy fresh"] for run in runs])
        print(
            f"{rows:5d} {len(runs):7d}   {mean['best_single OOF']:.4f} / "
            f"{mean['best_single fresh']:.4f}    {mean['greedy OOF']:.4f} / "
            f"{mean['greedy fresh']:.4f}   {mean['greedy OOF'] - mean['greedy fresh']:+.4f}   "
            f"{off.mean():+.4f} (± {off.std(ddof=1) / np.sqrt(len(off)):.4f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
