"""What do thousands of trials cost beside their training? Trials that train nothing, two workers.

Ours is the whole search (sampler, journal, director, Ray, leaderboard and ensemble on the way) on
the gene_expr sample; only epochs are made up, with predictions of the real size. Beside it bare Ray
Tune with a function that reports as often. Asked: the last quarter of the trials costs at most 1.6
times the first one, the driver grows by less than 100 KB a trial, a leaderboard of 2000 rows takes
less than 1 s, and to resume that run until something starts less than 10 s.

    python benchmarks/bookkeeping.py [--quick]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from search.journal import Event, read_events
from search.run_folder import RunFolder

WORKERS = 2
QUICK = 40  # trials
START = 16  # trials in which workers start and modules are imported: not counted
COLD_SHARE = 0.01  # of the trials with Ray's defaults: a process for each takes over a second
SIDES = {
    "ours": "ours",
    "reused": "bare Ray Tune, reuse_actors",
    "cold": "bare Ray Tune, defaults",
}


@dataclass(kw_only=True)
class Marks:
    """What is noted in the driver at the start and at each trial."""

    seconds: list[float]  # since any moment
    bytes: list[int]  # resident
    ours: list[float]  # seconds so far in the director; empty for bare Ray

    @classmethod
    def none(cls) -> "Marks":
        return cls(seconds=[], bytes=[], ours=[])

    def note(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.seconds.append(time.perf_counter())
        self.bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))

    def save(self, folder: Path, side: str) -> None:
        (folder / f"{side}.json").write_text(json.dumps(asdict(self)))


def ours(folder: Path, args: argparse.Namespace) -> None:
    """The search as `python -m search.run` does it, but for what its workers train."""
    import search.trial
    from search import compose, prepare
    from search.director import Director
    from search.leaderboard import write_leaderboard
    from search.plan import Resources
    from search.run import parser
    from search.study import run_study

    class Worker(search.trial.Worker):
        """Makes up epochs and predictions: the better, the nearer a learning rate is to .003."""

        def _fold(
            self, config: dict[str, Any], fold: int, fits: int | None
        ) -> Generator[dict[str, Any]]:
            from safetensors.numpy import save_file

            from search.oof import write_fold

            recipe = config["recipe"]
            chance = random.Random(f"{config['trial']} {fold}")
            far = abs(np.log10(recipe["lr"]) + 2.5) + 0.2 * random.Random(config["trial"]).random()
            quality = float(0.6 / (1 + far))
            work = self.run.work(config["trial"], config["attempt"])
            checkpoint = self.run.epoch(config["trial"], config["attempt"], fold)
            work.mkdir(parents=True, exist_ok=True)
            earlier = [
                self.run.epoch(config["trial"], attempt, fold)
                for attempt in range(config["attempt"] - 1, 0, -1)
            ]
            begin = next((int(path.read_text()) for path in earlier if path.exists()), 0)
            rungs = set(config["rung_epochs"]) if fold == config["first_fold"] else set()
            news = []
            for epoch in range(begin + 1, recipe["epochs"] + 1):
                score = quality * (1 - 0.7**epoch) + chance.gauss(0, 0.01)
                news.append({
                    "fold": fold, "epoch": epoch, "loss": 1 / epoch, "score": score,
                    "parts": {"gene": score, "cell": score}, "seconds": 0.001,
                    "images_per_second": 1e5, "batch": 32, "micro_batch": 32, "peak_memory": 10**8,
                })  # fmt: skip
                if epoch in rungs and epoch < recipe["epochs"]:
                    checkpoint.write_text(str(epoch))
                    yield {"points": news}
                    news = []
            true_TV = self.targets_TN[:, self.fold_N == fold]
            noise_TV = np.random.default_rng([config["trial"], fold]).normal(size=true_TV.shape)
            write_fold(work, fold, quality * true_TV + (1 - quality) * noise_TV)
            save_file({"made_up": np.zeros(9)}, work / f"fold-{fold}.safetensors")
            yield {
                "points": news,
                "fold": {"fold": fold, "score": score, "parts": {"gene": score, "cell": score},
                         "params": 9, "predict_ms": 0.1, "seconds": 0.001},
            }  # fmt: skip

    class Trainable(search.trial.TrialTrainable):
        def setup(self, config: dict[str, Any], context: Any = None) -> None:
            super().setup(config, context)
            self._worker = Worker(context)
            self._reports = self._worker.reports(json.loads(config["lease"]))

    marks, inside = Marks.none(), [0.0]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*given: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*given)
            finally:
                inside[0] += time.perf_counter() - begun

        return timing

    def study(director: Director, *rest: Any) -> None:
        director.next_config = timed(director.next_config)  # type: ignore[method-assign]
        director.on_result = timed(director.on_result)  # type: ignore[method-assign]
        run_study(director, *rest)

    def hear(event: Event) -> None:
        if event.kind == "ask":
            marks.note()
            marks.ours.append(inside[0])

    search.trial.TrialTrainable = Trainable  # type: ignore[misc]
    prepare._resources = lambda address: Resources(  # whatever this machine has
        cpus=WORKERS, gpus=0, memory_bytes=8 * 10**9
    )
    compose.run_study = study  # type: ignore[assignment]
    setup = prepare.prepare(parser().parse_args([
        "gene_expr", "--trials", str(args.trials), "--cpus-per-trial", "1", "--weights", "random",
        "--backbone", "test_resnet", "test_efficientnet", "resnet10t", "--out", str(folder / "run"),
    ]), lambda text: None)  # fmt: skip
    assert setup is not None
    with compose.Session(setup, time.monotonic()) as session:
        session._journal.listen(hear, replay=False)
        marks.note()
        marks.ours.append(0.0)
        session.run_trials()
        write_leaderboard(setup.run, session.frame())
    marks.save(folder, "ours")


def bare(folder: Path, args: argparse.Namespace) -> None:
    """A function that reports as often as our trials did, one core for each."""
    import ray
    from ray import tune

    counts = json.loads((folder / "reports.json").read_text())
    marks = Marks.none()

    class Note(tune.Callback):
        def on_trial_complete(self, *given: Any, **named: Any) -> None:
            marks.note()

    def trainable(config: dict[str, int]) -> None:
        for report in range(counts[config["number"]]):
            tune.report({"score": report})

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    for side, trials in (("reused", args.trials), ("cold", cold(args.trials))):
        marks = Marks.none()
        marks.note()
        tune.Tuner(
            trainable,
            param_space={"number": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=side == "reused"),
            run_config=tune.RunConfig(storage_path=str(folder / side), callbacks=[Note()]),
        ).fit()
        marks.save(folder, side)


def cold(trials: int) -> int:
    """How many of the trials run with Ray's defaults."""
    return max(2 * WORKERS, round(COLD_SHARE * trials))


def resume(folder: Path) -> float:
    """Seconds to open the run again, with some trials more, until a worker has something to do."""
    begun = time.monotonic()
    from search.compose import Session
    from search.setup import reopen

    with Session(reopen(folder / "run"), begun, extend=4) as session:
        assert session.director.next_config() is not None
        return time.monotonic() - begun


def reports(run: RunFolder, trials: int) -> list[int]:
    """How often each trial reported."""
    told = Counter(event.trial for event in read_events(run.journal)[0] if event.kind == "epochs")
    return [told[trial] for trial in range(trials)]


def process(folder: Path, side: str, trials: int) -> str:
    """A side in a process of its own; what it printed last."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder, "--trials", trials]
    quiet = {"CUDA_VISIBLE_DEVICES": "", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(
        list(map(str, command)), env=os.environ | quiet, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{side} failed:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return (result.stdout.strip().splitlines() or [""])[-1]


def leaderboard(run: RunFolder) -> float:
    """Seconds of `python -m search.leaderboard RUN`, median of three."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "search.leaderboard", str(run.root)],
            check=True, capture_output=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def rate(values: list[float], part: slice) -> float:
    """Growth a trial within a part of the trials."""
    inside = values[part]
    return (inside[-1] - inside[0]) / (len(inside) - 1)


def show(folder: Path, trials: int) -> None:
    quarter = trials // 4
    first, last = slice(START, START + quarter), slice(-quarter, None)
    print(f"{'':<30}{'trials':>7}{'ms a trial':>12}{f'first {quarter}':>12}{f'last {quarter}':>11}"
          f"{'ratio':>7}{'KB a trial':>12}")  # fmt: skip
    for side, name in SIDES.items():
        marks = Marks(**json.loads((folder / f"{side}.json").read_text()))
        rows = [(name, marks.seconds)]
        if marks.ours:
            rows.append(("  of it in our director", marks.ours))
        for title, seconds in rows:
            count = len(seconds) - 1
            whole = 1000 * rate(seconds, slice(START if count == trials else 0, None))
            line = f"{title:<30}{count:>7}{whole:>12.1f}"
            if count == trials:
                a, b = 1000 * rate(seconds, first), 1000 * rate(seconds, last)
                line += f"{a:>12.1f}{b:>11.1f}{b / a:>7.2f}"
                if seconds is marks.seconds:
                    # Modules and pools are there after the first quarter.
                    grown = rate([float(b) for b in marks.bytes], slice(quarter, None))
                    line += f"{grown / 1000:>12.1f}"
            print(line)
    print("asked of ours: ratio at most 1.6, less than 100 KB a trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} trials, which say little")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--side", choices=["ours", "bare", "resume"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "ours":
        ours(args.folder, args)
    elif args.side == "resume":
        print(resume(args.folder))
    elif args.side:
        bare(args.folder, args)
    else:
        compare(QUICK if args.quick else args.trials)


def compare(trials: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = RunFolder(folder / "run")
        process(folder, "ours", trials)
        counts = reports(run, trials)
        (folder / "reports.json").write_text(json.dumps(counts))
        process(folder, "bare", trials)
        events = read_events(run.journal)[0]
        leases = sum(event.kind == "attempt" for event in events)
        print(f"{trials} trials that train nothing, {WORKERS} workers; ours in {leases} leases, "
              f"{sum(counts)} reports, {len(run.members())} members")  # fmt: skip
        show(folder, trials)
        size = run.journal.stat().st_size / 1e6
        print(f"leaderboard of {trials} rows, whole process: {leaderboard(run):.2f} s (asked: 1 s)")
        seconds = float(process(folder, "resume", trials))
        print(f"resume of a journal of {len(events)} events, {size:.1f} MB, until the first lease: "
              f"{seconds:.2f} s (asked: 10 s)")  # fmt: skip


if __name__ == "__main__":
    main()
