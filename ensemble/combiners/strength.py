"""How strongly to shrink: what does best on each fold when it is left out.

Shapes: S strengths.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_EQUAL = 1e-9  # losses nearer than this share are equal

# (S,) losses on one fold of what was fitted on other folds with each strength
Losses = Callable[[Sequence[int], int], NDArray[np.float64]]


def best_strength(strengths: Sequence[float], folds: Sequence[int], losses: Losses) -> float:
    """The strength with the least mean loss over these folds, each left out in turn; the first of
    equals. The strengths begin with the strongest, which is all that one fold can justify."""
    if len(folds) < 2:
        return strengths[0]
    loss_S = np.zeros(len(strengths))
    for fold in folds:
        loss_S += losses([other for other in folds if other != fold], fold)
    return strengths[int(np.flatnonzero(loss_S <= loss_S.min() * (1 + _EQUAL))[0])]
