"""From a network's raw outputs to predictions: values as they are, classes as probabilities.

Shapes: N rows, T outputs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IDENTITY = "identity"
_LINKS = {"binary": "sigmoid", "multilabel": "sigmoid", "multiclass": "softmax"}


def link_of(task_type: str) -> str:
    """The link of a task's outputs: "identity", "sigmoid" or "softmax"."""
    return IDENTITY if task_type == "regression" else _LINKS[task_type]


def apply_link(pred_NT: Tensor, link: str) -> Tensor:
    """Raw outputs (N, T) as predictions; over the outputs of a row where they exclude each other.
    Raises ValueError for a link that is none."""
    if link == IDENTITY:
        return pred_NT
    if link == "sigmoid":
        return torch.sigmoid(pred_NT)
    if link == "softmax":
        return torch.softmax(pred_NT, dim=1)
    raise ValueError(f"link is {link!r}; known: {IDENTITY}, sigmoid, softmax")


def finish_predictions(
    raw_NT: Tensor, link: str, mean_T: Tensor, std_T: Tensor
) -> NDArray[np.float32]:
    """What is reported (N, T): probabilities, or values in the units of the targets."""
    if link == IDENTITY:
        raw_NT = raw_NT * std_T.cpu() + mean_T.cpu()
    return apply_link(raw_NT, link).numpy()
