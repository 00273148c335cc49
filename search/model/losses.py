"""Losses on standardised targets.

Shapes: B batch, T outputs (genes). All statistics in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spaces.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]  # (pred_BT, target_BT) -> scalar
_EPSILON = 1e-6
_STD_FLOOR = 1e-6


def target_scale(targets_NT: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mean (T,) and scale (T,) that standardise the training targets.

    "zscore": each output by its own standard deviation. "raw": all by one common scale, so that
    the outputs keep their relative weights as in original units while learning rates keep their
    meaning. Outputs that are constant get scale 1: they stay at their mean.
    """
    mean_T = targets_NT.double().mean(dim=0)
    variance_T = (targets_NT.double() - mean_T).square().mean(dim=0)
    if kind == "raw":
        variance_T = variance_T.mean().expand_as(variance_T)
    std_T = variance_T.sqrt()
    std_T = torch.where(std_T > _STD_FLOOR, std_T, torch.ones_like(std_T))
    return mean_T.float(), std_T.float()


def make_loss(part: Any, std_T: Tensor | None = None) -> Loss:
    """The loss that the task part of a recipe names; without one, the mean squared error.

    `std_T` is the scale of each output. Cell-wise correlation is that of the official score, over
    the genes of one row and in original units, but of the deviations from the gene means: the
    means dominate the official term (a constant profile already gets most of it) and are not
    learned. To first order, turning the predicted deviations towards the true ones is what raises
    the official term; their size is left to the squared error.
    Gene-wise correlation is over the rows of the batch, so it is the one loss that does not add up
    over micro-batches.
    """
    name = "mse" if part is None else part.loss
    if name == "mse":
        return _squared_error
    if name == "huber":
        delta = float(part.huber_delta)
        return lambda pred_BT, target_BT: (
            torch.nn.functional.huber_loss(pred_BT.float(), target_BT, delta=delta) / min(delta, 1)
        )
    terms = {
        "mse_pearson_gene": (True, False),
        "mse_pearson_cell": (False, True),
        "mse_pearson_both": (True, True),
    }
    if name not in terms:
        raise UserError(f"loss is {name!r}; known: mse, huber, {', '.join(terms)}")
    by_gene, by_cell = terms[name]
    weight = float(part.pearson_weight)

    def loss(pred_BT: Tensor, target_BT: Tensor) -> Tensor:
        pred_BT = pred_BT.float()
        total = _squared_error(pred_BT, target_BT)
        if by_gene:
            total = total + weight * (1 - correlation(pred_BT, target_BT, dim=0).mean())
        if by_cell:
            scale = 1.0 if std_T is None else std_T
            rows = correlation(pred_BT * scale, target_BT * scale, dim=1)
            total = total + weight * (1 - rows.mean())
        return total

    return loss


def adds_up(part: Any) -> bool:
    """Whether the loss of a batch is the mean over its rows, so that micro-batches agree."""
    return part is None or part.loss not in ("mse_pearson_gene", "mse_pearson_both")


def correlation(pred_BT: Tensor, target_BT: Tensor, dim: int) -> Tensor:
    """Pearson correlation along `dim`; 0 where either side is constant."""
    pred = pred_BT - pred_BT.mean(dim=dim, keepdim=True)
    target = target_BT - target_BT.mean(dim=dim, keepdim=True)
    products = (pred * target).mean(dim=dim)
    squares = (pred.square().mean(dim=dim) + _EPSILON) * (target.square().mean(dim=dim) + _EPSILON)
    return products / squares.sqrt()


def _squared_error(pred_BT: Tensor, target_BT: Tensor) -> Tensor:
    return torch.nn.functional.mse_loss(pred_BT.float(), target_BT)
