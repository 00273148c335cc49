"""From members' files on disk to ensemble weights: time, memory, and the naive loop beside it.

The naive loop is Caruana's algorithm as AutoGluon and auto-sklearn publish it: for every candidate
average the predictions and call the metric. It is timed on a few evaluations and multiplied up;
both sides score fold by fold. Every case runs in a process of its own, files in the page cache.

    python benchmarks/ensemble_selection.py [--case NAME ...] [--folder DIR]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDS = 5


@dataclass(frozen=True)
class Case:
    """A generated library of members and what is asked of it."""

    data: str  # cases with the same data share their files
    outputs: int
    rows: int
    members: int
    steps: int
    metric: str
    task_type: str
    target: str  # what was asked for


CASES = {
    "a": Case("genes", 3467, 6992, 20, 25, "pearson", "regression", "5 s nested, 300 MB"),
    "a4": Case("genes", 3467, 6992, 20, 25, "gene_expr", "regression", "10 s nested, 500 MB"),
    "b": Case("classes", 9, 20_000, 100, 50, "log_loss", "multiclass", "1 s"),
    "c": Case("binary", 1, 20_000, 200, 50, "auroc", "binary", "3.5 s without nesting"),
    "d": Case("labels", 21, 5_000, 100, 25, "auroc", "multilabel", "5 s without nesting"),
}


def generate(case: Case, folder: Path) -> None:
    """Write truth, folds and one file per member, unless they are there."""
    folder = folder / case.data
    if (folder / "done").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shape = (case.outputs, case.rows)
    signal_TN = rng.standard_normal(shape, dtype=np.float32)
    if case.task_type == "regression":
        true_TN = signal_TN + rng.normal(2, 1, (case.outputs, 1)).astype(np.float32)
    elif case.task_type == "multiclass":
        noisy_TN = signal_TN + rng.standard_normal(shape, dtype=np.float32)
        true_TN = (np.arange(case.outputs)[:, None] == noisy_TN.argmax(axis=0)).astype(np.float32)
    else:
        noisy_TN = signal_TN + rng.standard_normal(shape, dtype=np.float32)
        true_TN = (noisy_TN > rng.uniform(0.3, 1.5, (case.outputs, 1))).astype(np.float32)
    np.save(folder / "true.npy", true_TN)
    np.save(folder / "fold.npy", rng.permutation(np.arange(case.rows) % FOLDS))
    for member in range(case.members):
        noise_TN = rng.standard_normal(shape, dtype=np.float32)
        raw_TN = np.float32(rng.uniform(0.2, 0.8)) * signal_TN + noise_TN
        if case.task_type == "multiclass":
            power_TN = np.exp(raw_TN - raw_TN.max(axis=0))
            raw_TN = power_TN / power_TN.sum(axis=0)
        elif case.task_type != "regression":
            raw_TN = 1 / (1 + np.exp(-raw_TN))
        np.save(folder / f"{member:03d}.npy", raw_TN.astype(np.float32))
    (folder / "done").touch()


class Peak(threading.Thread):
    """The most anonymous memory that this process holds, in MB, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = self._now()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, self._now())

    def extra(self) -> float:
        self._over.set()
        self.join()
        return max(self.most, self._now()) - self.before

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Ours and the naive loop, in this process."""
    from ensemble.engines import make_engine
    from ensemble.greedy import select
    from search.metrics import fold_scores, get_metric

    folder = folder / case.data
    paths = sorted(folder.glob("[0-9]*.npy"))
    for path in paths:  # into the page cache
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    arguments = {"multiclass": True} if (case.metric, case.task_type) == (
        "log_loss", "multiclass") else {}  # fmt: skip
    peak = Peak()
    peak.start()
    started = time.perf_counter()
    true_TN = np.load(folder / "true.npy", mmap_mode="r")
    fold_N = np.load(folder / "fold.npy")
    preds: list[NDArray[np.float32]] = [np.load(path, mmap_mode="r") for path in paths]
    metric = get_metric(case.metric, **arguments).fit(true_TN)
    engine = make_engine(metric, preds, true_TN, fold_N)
    built = time.perf_counter()
    selection = select(engine, steps=case.steps)
    selected = time.perf_counter()
    for fold in range(FOLDS):
        others = [k for k in range(FOLDS) if k != fold]
        weights_M = select(engine, others, steps=case.steps).weights_M
        engine.held_out(weights_M, fold, others)
    nested = time.perf_counter()
    extra = peak.extra()

    tried, spent = 0, 0.0
    sum_TN = np.zeros(true_TN.shape)
    while tried < 2 or (spent < 2 and tried < 20):
        begun = time.perf_counter()
        mean_TN = np.float32((sum_TN + preds[tried % len(preds)]) / (tried + 1))
        fold_scores(metric, mean_TN, true_TN, fold_N)
        spent += time.perf_counter() - begun
        tried += 1
    naive = spent / tried * case.members * case.steps
    return {
        "build": built - started, "select": selected - built, "nested": nested - selected,
        "memory": extra, "naive": naive, "score": selection.score,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, help="keeps the generated files (2.2 GB)")
    parser.add_argument("--quick", action="store_true", help="the smallest case alone")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(CASES[args.measure], args.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="rungfold-") as temporary:
        folder = args.folder or Path(temporary)
        print("case  metric     read   select  nested   total   memory    naive loop   ratio")
        for name in ["b"] if args.quick else args.case:
            case = CASES[name]
            generate(case, folder)
            command = [sys.executable, __file__, "--measure", name, "--folder", str(folder)]
            runs = [json.loads(subprocess.run(command, check=True, capture_output=True,
                                              text=True).stdout) for _ in range(3)]  # fmt: skip
            run = min(runs, key=lambda r: r["build"] + r["select"] + r["nested"])
            once = run["build"] + run["select"]
            print(
                f"{name:4s}  {case.metric:9s} {run['build']:5.2f} s {run['select']:5.2f} s "
                f"{run['nested']:5.2f} s {once + run['nested']:6.2f} s {run['memory']:5.0f} MB "
                f"{run['naive']:8.0f} s {run['naive'] / once:8.0f} x   (asked: {case.target})",
                flush=True,
            )


if __name__ == "__main__":
    main()
