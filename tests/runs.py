"""Starting real runs from tests: a small learnable data folder, and search.run as a process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search.journal import Event, read_events
from tests.datafolder import write_csv

ROOT = Path(__file__).resolve().parent.parent
GENES = 6
SMALL = ("--epochs", 3, "--folds", 2, "--groups", "none", "--image-size", 32, "--backbone",
         "test_resnet", "test_efficientnet")  # fmt: skip
KINDS = ("ask", "rung", "decision", "fold", "end")  # what decides; attempts may differ
TIMES = ("seconds", "predict_ms")


def learnable_folder(root: Path, rows: int = 60, tests: int = 8, size: int = 32) -> Path:
    """Tiles whose genes follow brightness, colour and stripe direction, plus noise."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    names = [f"G{j}" for j in range(GENES)]
    tables: dict[str, list[list[object]]] = {"train": [], "test": []}
    for kind, count in (("train", rows), ("test", tests)):
        (root / kind).mkdir()
        for i in range(count):
            level, red, stripes = rng.random(3)
            y, x = np.mgrid[:size, :size] / size
            wave = np.sin(40 * (x * stripes + y * (1 - stripes)))
            pixels = 60 + 100 * level + 40 * wave[..., None] * [1, 0.5, 0.5] + [60 * red, 0, 0]
            pixels += rng.normal(0, 5, (size, size, 3))
            name = f"{kind.upper()}_{i:04d}"
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / kind / f"{name}.png")
            facts = np.array([level, red, stripes, level + red, level * stripes, 1 - red])
            genes = (facts + rng.normal(0, 0.05, GENES)).round(4)
            path = f"./{kind}/{name}.png"
            tables[kind].append([name, path, *(genes if kind == "train" else [])])
    write_csv(root / "train.csv", ["ID", "path", *names], tables["train"])
    write_csv(root / "test.csv", ["ID", "path"], tables["test"])
    rows_out = [[row[0], *[0.0] * GENES] for row in tables["test"]]
    write_csv(root / "sample_submission.csv", ["ID", *names], rows_out)
    return root


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def start(
    *args: object, cwd: Path, module: str = "search.run", cores: int = 1
) -> subprocess.Popen[str]:
    """The command as a process group of its own, its output in one stream.

    On one core it plans one worker, whose decisions a test can compare.
    """
    use = sorted(os.sched_getaffinity(0))[-cores:]
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)], cwd=cwd, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, use),
    )  # fmt: skip


def call(*args: object, timeout: float = 280, **options: Any) -> str:
    """The output of a command that must end with exit code 0."""
    process = start(*args, **options)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def events_of(run: Path) -> list[Event]:
    """All events so far, of a run that may be under way."""
    return read_events(run / "journal.jsonl")[0]


def decisions(run: Path) -> list[str]:
    """What was decided and with what result, in order, but for what times it took."""
    kept = [e for e in events_of(run) if e.kind in KINDS]
    data = [{k: v for k, v in e.data.items() if k not in TIMES} for e in kept]
    return [
        json.dumps([e.kind, e.trial, d], sort_keys=True) for e, d in zip(kept, data, strict=True)
    ]
