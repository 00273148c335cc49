"""What happens to predictions before they are averaged, and to the average: pure functions.

Shapes: T outputs, B rows of a block, Q quantiles.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIP = 1e-6  # probabilities are kept this far from 0 and 1 before a logarithm is averaged

Floats = NDArray[np.float64]


def transformed(pred_TB: Floats, transform: str) -> Floats:
    """Predictions in the space they are averaged in: as they are, as logits, or as logarithms."""
    if transform == "identity":
        return pred_TB
    if transform == "logit":
        clipped_TB = np.clip(pred_TB, CLIP, 1 - CLIP)
        return np.log(clipped_TB) - np.log1p(-clipped_TB)
    if transform == "log":
        return np.log(np.clip(pred_TB, CLIP, None))
    raise ValueError(f"transform is {transform!r}; known: identity, logit, log")


def ranked(pred_TB: Floats, at_TQ: Floats) -> Floats:
    """The share of OOF values below each value, those equal to it counted half, from each output's
    quantiles at equal distances."""
    share_Q = np.linspace(0, 1, at_TQ.shape[1])
    rank_TB = np.empty(pred_TB.shape)
    for values_B, at_Q, rank_B in zip(pred_TB, at_TQ, rank_TB, strict=True):
        # Of equal quantiles np.interp takes the last; seen from above that is the first.
        below_or_equal_B = np.interp(values_B, at_Q, share_Q)
        above_or_equal_B = np.interp(-values_B, -at_Q[::-1], share_Q)
        rank_B[:] = (below_or_equal_B + 1 - above_or_equal_B) / 2
    return rank_TB


def voted(pred_TB: Floats, task_type: str) -> Floats:
    """1 where a member says yes: to a probability of a half or more, or to its highest class."""
    if task_type == "multiclass":
        return (np.arange(len(pred_TB))[:, None] == pred_TB.argmax(axis=0)).astype(np.float64)
    return (pred_TB >= 0.5).astype(np.float64)


def running_medians(values: Iterable[NDArray[Any]]) -> Iterator[Floats]:
    """The median of the first array, of the first two, and so on. Each is inserted into those
    sorted so far: that is faster than sorting once, value by value."""
    ordered: list[NDArray[Any]] = []
    for x in values:
        for i, below in enumerate(ordered):
            ordered[i], x = np.minimum(below, x), np.maximum(below, x)
        ordered.append(x)
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        yield (low.astype(np.float64) + high) / 2


def temper(pred_TB: Floats, temperature: float, task_type: str) -> Floats:
    """Probabilities with their logits divided by the temperature; 0 and 1 stay."""
    if task_type == "multiclass":
        # Divided by the greatest first: small probabilities to a high power would all become 0.
        power_TB = (pred_TB / np.maximum(pred_TB.max(axis=0), 1e-300)) ** (1 / temperature)
        return power_TB / np.maximum(_total(power_TB), 1e-300)
    with np.errstate(divide="ignore"):
        logit_TB = np.log(pred_TB) - np.log1p(-pred_TB)
    return _sigmoid(logit_TB / temperature)


def linked(sum_TB: Floats, link: str) -> Floats:
    """Predictions from what the members add up to."""
    if link == "identity":
        return sum_TB
    if link == "sigmoid":
        return _sigmoid(sum_TB)
    if link == "softmax":
        power_TB = np.exp(sum_TB - sum_TB.max(axis=0))
        return power_TB / _total(power_TB)
    if link == "normalise":
        kept_TB = np.maximum(sum_TB, 0)
        total_B = _total(kept_TB)
        return np.where(total_B > 0, kept_TB / np.where(total_B > 0, total_B, 1), 1 / len(kept_TB))
    if link == "sigmoid_normalise":
        return linked(_sigmoid(sum_TB), "normalise")
    raise ValueError(
        f"link is {link!r}; known: identity, sigmoid, softmax, normalise, sigmoid_normalise"
    )


def _total(x_TB: Floats) -> Floats:
    """(B,) sums over outputs, always in their order: numpy's own order depends on B."""
    total_B = np.zeros(x_TB.shape[1])
    for x_B in x_TB:
        total_B += x_B
    return total_B


def _sigmoid(x_TB: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x_TB))
