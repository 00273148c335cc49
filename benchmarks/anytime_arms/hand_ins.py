"""What an arm would hand in, moment by moment: its own score and its test predictions.

Shapes: T genes, S test rows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SINGLE, ENSEMBLE = "single", "ensemble"


class HandIn(NamedTuple):
    """Stands from its moment until the next of its kind."""

    seconds: float  # since the start of the arm's process
    kind: str  # SINGLE or ENSEMBLE
    known: float  # the score that the arm itself sees, on validation or out-of-fold rows
    pred_TS: NDArray[Any]  # in the order of test.csv


class HandInLog:
    """Written by an arm as it goes, so that nothing is lost when the time is up."""

    def __init__(self, folder: Path, began: float) -> None:
        """`began`: time.time() when the arm's process was started."""
        self._folder, self.began, self._count = folder, began, 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, at: float, kind: str, known: float, pred_TS: NDArray[Any]) -> None:
        """`at`: time.time() from which it could be handed in."""
        name = f"{self._count:05d}.npy"
        np.save(self._folder / name, np.asarray(pred_TS, dtype=np.float32))
        line = {"seconds": at - self.began, "kind": kind, "known": float(known), "file": name}
        with open(self._folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._count += 1


def read_hand_ins(folder: Path) -> Iterator[HandIn]:
    """In the order of their moments; nothing where none was written."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in sorted(map(json.loads, lines), key=lambda line: line["seconds"]):
        pred_TS = np.load(folder / line["file"], allow_pickle=False)
        yield HandIn(line["seconds"], line["kind"], line["known"], pred_TS)
