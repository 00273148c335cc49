"""How long a person waits: for --help, for the leaderboard, for the first step of a search.

    python benchmarks/start.py [--quick]

Whole processes, seconds of the wall clock, medians. Asked: search.run --help under 0.5 s, the
leaderboard under 1 s, also of 2000 rows, ensemble.build without torch where nothing is derived.
Peers of a search's first step: importing torch, ray.tune and timm, and a bare Ray Tune script that
trains one step of the same network on tensors in memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from search.journal import read_events
from search.leaderboard import write_leaderboard
from search.run_folder import RunFolder, write_json
from search.trials import FINISHED

PEER = """
import os
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray import tune

def train(config):
    import timm, torch
    network = timm.create_model("test_resnet", num_classes=60)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(32, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    tune.report({"loss": 0.0})

ray.init(log_to_driver=False, include_dashboard=False)
tune.Tuner(train, run_config=tune.RunConfig(verbose=0)).fit()
"""
# Stages of a start, each up to the first line that begins so.
STAGES = {
    "No --data": "light imports, the sample written",
    "checking": "arguments; Ray started; names of backbones",
    "weights": "data report: images, duplicates, groups, folds",
    "plan": "plan",
    "baseline": "image store",
}


def seconds(*command: object) -> float:
    """Of the wall clock, for a whole process. Leaves the benchmark where it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    return taken


def usual(turns: int, *command: object) -> float:
    if turns > 1:
        seconds(*command)  # files are read into memory
    return median(seconds(*command) for _ in range(turns))


def search(out: Path, cache: Path) -> dict[str, float]:
    """Seconds of each stage of a run up to its first step, from what it prints and journals."""
    started = time.time()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "search.run", "gene_expr", "--trials", "1", "--epochs", "1",
            "--folds", "2", "--image-size", "64", "--backbone", "test_resnet", "--out", str(out),
            "--cache", str(cache),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    reached: dict[str, float] = {}
    for line in process.stdout:
        for begin, stage in STAGES.items():
            if line.startswith(begin):
                reached.setdefault(stage, time.time())
    if process.wait():
        sys.exit(f"the search failed: {process.stderr.read() if process.stderr else ''}")
    run = RunFolder(out)
    events = {event.kind: event for event in reversed(read_events(run.journal)[0])}  # the first
    first = events["epochs"]
    reached["baselines, the run's files"] = run.run.stat().st_mtime
    reached["imports of the driver, journal"] = events["session"].time
    reached["first recipe"] = events["attempt"].time
    reached["worker: what is left of its start"] = first.time - first.data["points"][0]["seconds"]
    moments = [started, *reached.values()]
    took = {stage: end - moments[i] for i, (stage, end) in enumerate(reached.items())}
    return took | {"first step after": moments[-1] - started}


def many_rows(root: Path, count: int) -> RunFolder:
    """A run of so many finished trials, as far as the leaderboard looks."""
    random = np.random.default_rng(0)
    recipe = {"backbone": "resnet18", "lr": 1e-3, "augment": {"flip": True}}
    frame = pd.DataFrame({
        "trial": range(count), "kind": "trial", "name": "", "state": FINISHED,
        "backbone": "tf_efficientnetv2_s.in21k_ft_in1k", "image_size": 224,
        "score": random.random(count), "sd": 0.01, "folds_done": 5, "pooled": 0.5, "rest": 0.5,
        "params": 20_177_488, "seconds": 4321.0, "peak_memory": 3 * 2**30, "reason": "",
        "recipe": json.dumps(recipe), **{f"fold_{k}": random.random(count) for k in range(5)},
    })  # fmt: skip
    run = RunFolder(root)
    root.mkdir()
    write_json(run.run, {})
    write_leaderboard(run, frame)
    return run


def torch_in_build(run: Path) -> bool:
    """Whether a whole `python -m ensemble.build` imports torch."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ensemble.build", str(run)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="each once")
    turns = 1 if parser.parse_args().quick else 2
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = [search(root / f"run{turn}", root / "cache") for turn in range(turns)]
        later_runs = runs[1:] or runs
        rows: dict[str, tuple[float, list[object]]] = {
            "search.run --help": (0.5, ["search.run", "--help"]),
            "leaderboard, 3 rows": (1.0, ["search.leaderboard", root / "run0"]),
            "leaderboard, 2000 rows": (
                1.0, ["search.leaderboard", many_rows(root / "many", 2000).root],
            ),
            "the same, --json": (1.0, ["search.leaderboard", root / "many", "--json"]),
        }  # fmt: skip
        print(f"{'whole process':<50}{'s':>7}   asked")
        for name, (asked, command) in rows.items():
            print(f"{name:<50}{usual(turns, '-m', *command):7.2f}   under {asked:.1f}")
        build = usual(turns, "-m", "ensemble.build", root / "run0")
        loads = "with torch" if torch_in_build(root / "run0") else "without torch"
        print(f"{'ensemble.build of one member':<50}{build:7.2f}   {loads} (asked: without)")

        print(f"\n{'search.run gene_expr, to the first step':<50}{'first':>7}{'later':>7}")
        for stage in runs[0]:
            later = median(run[stage] for run in later_runs)
            print(f"  {stage:<48}{runs[0][stage]:7.2f}{later:7.2f}")
        imports = usual(turns, "-c", "import torch, ray.tune, timm")
        script = root / "peer.py"
        script.write_text(PEER)
        peer = usual(turns, script)
        later = median(run["first step after"] for run in later_runs)
        print(f"{'import torch, ray.tune, timm':<57}{imports:7.2f}")
        print(f"{'bare Ray Tune script, one step, whole process':<57}{peer:7.2f}")
        print(f"\nours to its first step: {later / peer:.2f} of the bare script's whole time")


if __name__ == "__main__":
    main()
