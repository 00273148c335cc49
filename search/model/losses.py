"""Losses on standardised targets, and on the raw outputs for classes.

Shapes: B batch, N training rows, T outputs (genes, labels, classes). All statistics in float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spaces.errors import UserError
from spaces.parts import Classification

Loss = Callable[[Tensor, Tensor], Tensor]  # (pred_BT, target_BT) -> scalar
_EPSILON = 1e-6
_STD_FLOOR = 1e-6
_MARGIN = 0.05  # probability below which a negative costs nothing (Ridnik et al. 2021)
_MOST_WEIGHT = 10.0  # of a rare class


def target_scale(targets_NT: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Mean (T,) and scale (T,) that standardise the training targets.

    "zscore": each output by its own standard deviation. "raw": all by one common scale, so that
    the outputs keep their relative weights as in original units while learning rates keep their
    meaning. Outputs that are constant get scale 1: they stay at their mean. "none": as they are,
    which is what classes need.
    """
    if kind == "none":
        return torch.zeros(targets_NT.shape[1]), torch.ones(targets_NT.shape[1])
    mean_T = targets_NT.double().mean(dim=0)
    variance_T = (targets_NT.double() - mean_T).square().mean(dim=0)
    if kind == "raw":
        variance_T = variance_T.mean().expand_as(variance_T)
    std_T = variance_T.sqrt()
    std_T = torch.where(std_T > _STD_FLOOR, std_T, torch.ones_like(std_T))
    return mean_T.float(), std_T.float()


def make_loss(
    part: Any,
    std_T: Tensor | None = None,
    *,
    task_type: str = "regression",
    targets_NT: Tensor | None = None,
) -> Loss:
    """The loss that the task part of a recipe names; without one, the mean squared error or the
    cross entropy. All but the gene-wise correlation add up over micro-batches.

    `std_T` is the scale of each output, `targets_NT` the training targets of the fold, from which
    the weights of classes are counted; both lie on the device that trains.
    Raises UserError for an unknown loss, and for weights that the type of task cannot have.
    """
    if task_type == "regression":
        return _regression(part, std_T)
    assert targets_NT is not None
    return _classification(part or Classification(), task_type, targets_NT)


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


def class_weights(part: Classification, task_type: str, targets_NT: Tensor) -> Tensor:
    """Weight (T,) of each class, or of each label's positives, at most 10; 1 where the training
    rows hold only one kind.

    "balanced": of a label negatives / positives, of a class N / (T n), so that the mean weight of
    a row is 1 and the learning rate keeps its meaning.
    """
    positives_T = targets_NT.sum(dim=0)
    rows, outputs = targets_NT.shape
    if part.class_weight == "none":
        return torch.ones_like(positives_T)
    if task_type == "multiclass":
        weight_T = rows / (outputs * positives_T)
    else:
        weight_T = (rows - positives_T) / positives_T
    return torch.where(_varied(targets_NT), weight_T.clamp(max=_MOST_WEIGHT), 1.0)


def first_bias(part: Any, task_type: str, targets_NT: Tensor) -> Tensor:
    """Raw outputs (T,) that predict the (weighted) frequency of each class in the training rows.

    A start there spares the first steps the pull of all the negatives. (Lin et al. 2017)
    """
    part = part or Classification()
    frequency_T = targets_NT.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    bias_T = frequency_T.log() + class_weights(part, task_type, targets_NT).log()
    return bias_T if task_type == "multiclass" else bias_T - (1 - frequency_T).log()


def _varied(targets_NT: Tensor) -> Tensor:
    """Whether an output has both a positive and a negative among the rows, (T,)."""
    return (targets_NT > 0.5).any(dim=0) & (targets_NT <= 0.5).any(dim=0)


def _regression(part: Any, std_T: Tensor | None) -> Loss:
    """Cell-wise correlation is that of the official score, over the genes of one row and in
    original units, but of the deviations from the gene means: the means dominate the official term
    (a constant profile already gets most of it) and are not learned. To first order, turning the
    predicted deviations towards the true ones is what raises the official term; their size is left
    to the squared error.
    Gene-wise correlation is over the rows of the batch, so it is the one loss that does not add up
    over micro-batches.
    """
    name = "mse" if part is None else part.loss
    if name == "mse":
        return _squared_error
    if name == "huber":
        delta = float(part.huber_delta)
        return lambda pred_BT, target_BT: (
            F.huber_loss(pred_BT.float(), target_BT, delta=delta) / min(delta, 1)
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


def _squared_error(pred_BT: Tensor, target_BT: Tensor) -> Tensor:
    return F.mse_loss(pred_BT.float(), target_BT)


def _classification(part: Classification, task_type: str, targets_NT: Tensor) -> Loss:
    """All losses are y w f(x) + (1 - y) g(x), hence linear in the target y: the loss of a mixture
    of two samples' targets is the mixture of their losses.

    Of a softmax, only the asymmetric loss has a term for the classes that are not the row's own.
    """
    softmax = task_type == "multiclass"
    if softmax and part.rest_weight is not None:
        raise UserError(
            f"task.rest_weight is {part.rest_weight}; the classes of one label are learned "
            "together: leave it out"
        )
    weight_T = class_weights(part, task_type, targets_NT)
    share_T = _output_shares(part, softmax, targets_NT)
    smoothing = part.label_smoothing
    even = smoothing / (targets_NT.shape[1] if softmax else 2)
    if part.loss not in ("cross_entropy", "focal", "asymmetric"):
        raise UserError(f"loss is {part.loss!r}; known: cross_entropy, focal, asymmetric")
    # Powers of a probability have no slope at 0 when gamma is below 1: neither gets there.
    gamma = part.gamma

    def loss(pred_BT: Tensor, target_BT: Tensor) -> Tensor:
        pred_BT = pred_BT.float()
        target_BT = target_BT * (1 - smoothing) + even
        log_yes = F.log_softmax(pred_BT, dim=1) if softmax else F.logsigmoid(pred_BT)
        positive_BT = -log_yes
        if part.loss == "focal":
            positive_BT = positive_BT * (1 - log_yes.exp()).clamp(min=_EPSILON) ** gamma
        total_BT = target_BT * weight_T * positive_BT
        if part.loss == "asymmetric":
            shifted_BT = (log_yes.exp() - _MARGIN).clamp(min=_EPSILON)
            total_BT = total_BT - (1 - target_BT) * shifted_BT**gamma * (1 - shifted_BT).log()
        elif not softmax:
            negative_BT = -F.logsigmoid(-pred_BT)
            if part.loss == "focal":
                negative_BT = negative_BT * log_yes.exp().clamp(min=_EPSILON) ** gamma
            total_BT = total_BT + (1 - target_BT) * negative_BT
        return (total_BT.mean(dim=0) * share_T).sum()

    return loss


def _output_shares(part: Classification, softmax: bool, targets_NT: Tensor) -> Tensor:
    """What each output's mean loss counts for, (T,). With a weight of the rest, an output that is
    all positive or all negative in the training rows teaches nothing and counts for nothing."""
    outputs = targets_NT.shape[1]
    if softmax:
        return torch.ones(outputs, device=targets_NT.device)
    if part.rest_weight is None:
        return torch.full((outputs,), 1 / outputs, device=targets_NT.device)
    counts_T = _varied(targets_NT).float()
    counts_T[0] = 0
    share_T = part.rest_weight * counts_T / counts_T.sum().clamp(min=1)
    share_T[0] = 1
    return share_T
