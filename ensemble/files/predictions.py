"""Predictions of an ensemble for the test rows, in the forms in which files are read.

Shapes: T outputs, N rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.submission import SubmissionForm
from search.run_folder import write_file


def write_predictions(
    out: Path, ids: tuple[str, ...] | None, target_names: Sequence[str], pred_TN: NDArray[Any]
) -> Path:
    """Write OUT/test.csv (id, then the targets) when the rows have ids, else OUT/test.npy ((N,)
    for one output, else (N, T)). Returns its path; raises ValueError for NaN."""
    if ids is None:
        path = out / "test.npy"
        save_array(path, pred_TN)
        return path
    path, names = out / "test.csv", tuple(target_names)
    form = SubmissionForm(target_names=names, test_ids=ids, ids=ids, columns=("id", *names))
    form.write(path, pred_TN)
    return path


def save_array(path: Path, pred_TN: NDArray[Any]) -> None:
    """Write a .npy file: (N,) for one output, else (N, T). Raises ValueError for NaN."""
    if not np.isfinite(pred_TN).all():
        raise ValueError(f"predictions for {path} hold NaN or infinity")
    array = pred_TN[0] if len(pred_TN) == 1 else np.ascontiguousarray(pred_TN.T)
    write_file(path, lambda temporary: np.save(temporary, array))
