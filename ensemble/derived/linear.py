"""Fitting one linear layer on features: ridge for numbers, logistic regression for classes.

Shapes: T outputs, N rows, F features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.joint import JointLayer

if TYPE_CHECKING:
    from torch import Tensor

# Weight of the squared coefficients beside the mean loss of a row, for features of variance 1,
# strongest first. Features are in-sample (the networks were trained on these rows), hence the
# strong end.
STRENGTHS = {
    "regression": (100.0, 10.0, 1.0, 0.1, 0.01),
    "classes": (1.0, 0.1, 0.01, 0.001, 0.0001),
}
_FLOOR = 1e-6  # features that vary less are constant
_STEPS = 200


def strengths(task_type: str) -> tuple[float, ...]:
    return STRENGTHS["regression" if task_type == "regression" else "classes"]


def fit_layers(
    features_NF: NDArray[np.float32],
    true_TN: NDArray[np.float32],
    task_type: str,
    use: Sequence[float],
    parts: tuple[int, ...],
) -> list[JointLayer]:
    """A layer for each strength, in that order, fitted on these rows in float64."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"  # others have no float64
    x_NF = torch.from_numpy(np.ascontiguousarray(features_NF)).to(device).double()
    y_NT = torch.from_numpy(np.array(true_TN)).to(device).double().T
    mean_F, std_F = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
    std_F = torch.where(std_F > _FLOOR, std_F, torch.ones_like(std_F))
    x_NF = (x_NF - mean_F) / std_F
    fits = _ridge(x_NF, y_NT, use) if task_type == "regression" else None
    if fits is None:
        fits = _logistic(x_NF, y_NT, use, task_type == "multiclass")
    links = {"regression": "identity", "multiclass": "softmax"}
    layers = []
    for weight_FT, bias_T in fits:
        weight_TF = (weight_FT / std_F[:, None]).T.float()
        # From the rounded weights, so that rounding does not move the mean.
        bias_T = bias_T - weight_TF.double() @ mean_F
        layers.append(
            JointLayer(
                weight_TF=weight_TF.cpu().numpy(),
                bias_T=bias_T.cpu().numpy(),
                link=links.get(task_type, "sigmoid"),
                parts=parts,
            )
        )
    return layers


def _ridge(x_NF: "Tensor", y_NT: "Tensor", use: Sequence[float]) -> list[tuple[Any, Any]]:
    """Minimises mean_N |y - x w - b|^2 + strength |w|^2, in closed form."""
    import torch

    mean_T = y_NT.mean(dim=0)
    gram_FF = x_NF.T @ x_NF / len(x_NF)
    cross_FT = x_NF.T @ (y_NT - mean_T) / len(x_NF)
    one_FF = torch.eye(len(gram_FF), dtype=gram_FF.dtype, device=gram_FF.device)
    factors = (torch.linalg.cholesky(gram_FF + strength * one_FF) for strength in use)
    return [(torch.cholesky_solve(cross_FT, factor_FF), mean_T) for factor_FF in factors]


def _logistic(
    x_NF: "Tensor", y_NT: "Tensor", use: Sequence[float], multiclass: bool
) -> list[tuple[Any, Any]]:
    """Minimises the cross-entropy, a sum over outputs and a mean over rows, plus half the strength
    times |w|^2. Each strength starts from the solution of the one before."""
    import torch
    from torch.nn import functional

    shape = x_NF.shape[1], y_NT.shape[1]
    weight_FT = torch.zeros(shape, dtype=x_NF.dtype, device=x_NF.device, requires_grad=True)
    bias_T = torch.zeros(shape[1], dtype=x_NF.dtype, device=x_NF.device, requires_grad=True)
    fits = []
    for strength in use:
        solver = torch.optim.LBFGS(
            [weight_FT, bias_T], max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-10,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss(solver: Any = solver, strength: float = strength) -> "Tensor":
            solver.zero_grad()
            logits_NT = x_NF @ weight_FT + bias_T
            if multiclass:
                entropy = functional.cross_entropy(logits_NT, y_NT)
            else:
                each_NT = functional.binary_cross_entropy_with_logits(
                    logits_NT, y_NT, reduction="none"
                )
                entropy = each_NT.mean(dim=0).sum()
            total = entropy + strength / 2 * weight_FT.square().sum()
            total.backward()
            return total

        solver.step(loss)
        fits.append((weight_FT.detach().clone(), bias_T.detach().clone()))
    return fits
