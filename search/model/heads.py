"""Pooling of feature maps, activations, and the layers from pooled features to outputs.

Shapes: B batch, L tokens, C channels, H W height and width, F features, T outputs.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
_MLP_HIDDEN = 512


class GeM(nn.Module):
    """Generalised mean over positions: the mean at p = 1, the maximum as p grows. p is learned.

    Negative values count as zero, which loses little after ReLU or SiLU. (Radenovic et al. 2018)
    """

    def __init__(self, power: float = 3.0) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([power]))

    def forward(self, values_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, C), in float32: powers overflow in half precision."""
        positive = values_BLC.float().clamp(min=1e-6)
        return positive.pow(self.power).mean(dim=1).pow(1 / self.power)


class Head(nn.Sequential):
    """Pooled features (B, F) -> outputs (B, T)."""

    def __init__(self, kind: str, features: int, outputs: int, activation: str, drop: float):
        last = nn.Linear(_MLP_HIDDEN if kind == "mlp" else features, outputs)
        # Targets are standardised: a start near zero is a start near their mean.
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        layers: list[nn.Module] = []
        if kind == "mlp":
            layers.append(nn.Linear(features, _MLP_HIDDEN))
        if kind in ("activation", "mlp"):
            layers.append(_ACTIVATIONS[activation]())
        super().__init__(*layers, nn.Dropout(drop), last)


def swap_activations(network: nn.Module, activation: str) -> int:
    """Replace every ReLU module of `network` by `activation`; how many were replaced.

    Never in place: what follows a ReLU needs only its output for the backward pass, SiLU and GELU
    need their input.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6) and activation != "relu":
                setattr(parent, name, _ACTIVATIONS[activation]())
                count += 1
    return count
