"""Greedy ensemble selection as competitors write it. (Caruana et al. 2004)

Shapes: T genes, N rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 25


def greedy(
    preds: Sequence[NDArray[Any]], score: Callable[[NDArray[Any]], float]
) -> tuple[list[int], float]:
    """Indices into `preds`, (T, N) each, whose mean scores best, repeated ones weigh more; and its
    score. The best is added, with replacement, until none helps."""
    chosen: list[int] = []
    best, sum_TN = -np.inf, np.zeros(preds[0].shape)
    while len(chosen) < STEPS:
        scores = [score((sum_TN + pred_TN) / (len(chosen) + 1)) for pred_TN in preds]
        top = int(np.argmax(scores))
        if scores[top] <= best:
            break
        best = scores[top]
        sum_TN += preds[top]
        chosen.append(top)
    return chosen, best
