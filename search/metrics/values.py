"""What values may not be: NaN, infinite, outside [0, 1].

Shapes: T outputs, N rows, R and C the rows and columns of any matrix.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import BLOCK


def count_non_finite(x_RC: NDArray[Any]) -> int:
    """How many values are NaN or infinite."""
    return sum(
        int(np.size(block) - np.isfinite(block).sum())
        for block in (x_RC[i : i + BLOCK] for i in range(0, len(x_RC), BLOCK))
    )


def refuse_non_finite(what: str, x_RC: NDArray[Any]) -> None:
    """Raise ValueError when any value is NaN or infinite."""
    if count := count_non_finite(x_RC):
        raise ValueError(f"{what} hold {count} values that are NaN or infinite; none may be")


def out_of_range(pred_TN: NDArray[Any]) -> tuple[float, float] | None:
    """Lowest and highest prediction when one is no probability, else None. It is judged as it is
    stored, in float32: a mean of ones may exceed 1 by the rounding of float64."""
    low, high = float(np.float32(pred_TN.min())), float(np.float32(pred_TN.max()))
    return None if low >= 0 and high <= 1 else (low, high)
