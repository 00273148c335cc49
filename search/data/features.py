"""Kept features: what a frozen network says of every row, computed once for all who ask.

Shapes: N rows, F features.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.disk import need_space, only_writer
from search.run_folder import read_json, write_file, write_json
from spaces.errors import UserError

VERSION = 1  # raise it when the same facts give other features, so that old ones are left alone


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of all rows, and what they cost."""

    values_NF: NDArray[np.float32]  # read-only, a memory map where they are kept
    seconds: float  # that computing them took


def load_or_compute(
    cache: Path, facts: Mapping[str, Any], compute: Callable[[], NDArray[np.float32]]
) -> Features:
    """The features that `facts`, plain data, describe in full; computed where they are not kept.

    The first process that asks computes and writes them; others wait for its lock and map the same
    file. The manifest is written last: features without one are what a killed process left, and
    are computed again. Raises UserError when the disk has no room.
    """
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    folder = cache / "features" / key
    if features := _open(folder):
        return features
    with only_writer(folder, "features"):
        if features := _open(folder):  # another process was quicker
            return features
        started = time.perf_counter()
        values_NF = np.ascontiguousarray(compute(), dtype=np.float32)
        seconds = time.perf_counter() - started
        need_space(folder, values_NF.nbytes, f"features of {len(values_NF)} rows")
        write_file(folder / "features.npy", lambda path: np.save(path, values_NF))
        shape = list(values_NF.shape)
        write_json(folder / "manifest.json", {**facts, "shape": shape, "seconds": seconds})
    features = _open(folder)
    assert features
    return features


def _open(folder: Path) -> Features | None:
    """The finished features in `folder`, or None when there are none that are whole."""
    try:
        manifest = read_json(folder / "manifest.json")
        values_NF = np.load(folder / "features.npy", mmap_mode="r")
    except (UserError, OSError, EOFError, ValueError):  # the last two: cut short
        return None
    if list(values_NF.shape) != manifest.get("shape") or values_NF.dtype != np.float32:
        return None
    return Features(values_NF=values_NF, seconds=float(manifest["seconds"]))
