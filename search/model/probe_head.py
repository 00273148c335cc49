"""The head of a probe: what was fitted on frozen features, rebuilt from its tensors alone.

Shapes: B batch, N training rows, F features, R features that neighbours are compared by, T outputs,
K neighbours.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LINKS = ("identity", "sigmoid", "softmax")  # their positions are stored
_EDGE = 1e-6  # probabilities stay this far from 0 and 1: raw outputs are finite


class ProbeHead(nn.Module):
    """Features (B, F) -> raw outputs (B, T), to which the network's link is applied as ever.

    The names of its tensors say what it is. All have `link_code`, a position in LINKS.
    Linear: weight (T, F), bias (T).
    MLP: hidden_weight (H, F), hidden_bias (H), weight (T, H), bias (T).
    Neighbours: mean (F), std (F), perhaps components (F, R), keys (N, R), values (N, T), and the
    numbers k, cosine and by_distance.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], prefix: str = "head.") -> "ProbeHead":
        """The head among the tensors of a fold's file; others are left alone."""
        names = [name for name in state if name.startswith(prefix)]
        return cls({name.removeprefix(prefix): state[name] for name in names})

    @property
    def kind(self) -> str:
        """The word that a recipe has for it."""
        if "keys" in self._buffers:
            return "knn"
        return "mlp" if "hidden_weight" in self._buffers else "ridge"

    @property
    def link(self) -> str:
        return LINKS[int(self._tensor("link_code"))]

    def forward(self, features_BF: Tensor) -> Tensor:
        if self.kind == "knn":
            return raw_outputs(self._neighbours(features_BF), self.link).float()
        weight, bias_T = self._tensor("weight"), self._tensor("bias")
        if self.kind == "ridge":
            return raw_outputs(functional.linear(features_BF, weight, bias_T), self.link)
        hidden = self._tensor("hidden_weight"), self._tensor("hidden_bias")
        return functional.linear(
            functional.relu(functional.linear(features_BF, *hidden)), weight, bias_T
        )

    def _neighbours(self, features_BF: Tensor) -> Tensor:
        # In float64, so that rounding changes no neighbour; Apple's GPUs have none.
        device = torch.device("cpu") if features_BF.device.type == "mps" else features_BF.device
        held = {n: t.to(device) for n, t in self._buffers.items() if t is not None}
        queries_BR = (features_BF.to(device).double() - held["mean"]) / held["std"]
        if "components" in held:
            queries_BR = queries_BR @ held["components"].double()
        cosine = bool(held["cosine"])
        distance_BN = distances(queries_BR, held["keys"].double(), cosine)
        distance_BK, rows_BK = distance_BN.topk(int(held["k"]), largest=False)
        weight_BK = torch.ones_like(distance_BK)
        if held["by_distance"]:
            weight_BK = closeness(distance_BK, cosine, queries_BR.shape[1])
        sum_BT = torch.zeros(len(rows_BK), held["values"].shape[1], dtype=torch.float64).to(device)
        for neighbour in range(rows_BK.shape[1]):  # all at once would take K times the memory
            values_BT = held["values"][rows_BK[:, neighbour]]
            sum_BT += weight_BK[:, neighbour, None] * values_BT
        return (sum_BT / weight_BK.sum(dim=1, keepdim=True)).to(features_BF.device, torch.float32)

    def _tensor(self, name: str) -> Any:
        return self._buffers[name]


def distances(queries_BR: Tensor, keys_NR: Tensor, cosine: bool) -> Tensor:
    """Euclidean or cosine distances (B, N)."""
    if cosine:
        queries_BR = functional.normalize(queries_BR)
        return (1 - queries_BR @ functional.normalize(keys_NR).T).clamp(min=0)
    squares_BN = queries_BR.square().sum(dim=1)[:, None] + keys_NR.square().sum(dim=1)
    return (squares_BN - 2 * queries_BR @ keys_NR.T).clamp(min=0).sqrt()


def closeness(distance: Tensor, cosine: bool, size: int) -> Tensor:
    """Weights that fall with distance in a space of `size` features of variance 1. Below a
    thousandth of what is usual there, distances are rounding: such neighbours count alike."""
    return 1 / distance.clamp(min=1e-6 if cosine else 1e-3 * size**0.5)


def probabilities(values_BT: Tensor, link: str) -> Tensor:
    """Fitted values as what they should be: classes lie in [0, 1], and sum to 1 under a softmax."""
    if link == "identity":
        return values_BT
    values_BT = values_BT.clamp(0, 1)
    if link == "sigmoid":
        return values_BT
    values_BT = values_BT.clamp(min=_EDGE)  # all classes refused: all alike
    return values_BT / values_BT.sum(dim=1, keepdim=True)


def raw_outputs(values_BT: Tensor, link: str) -> Tensor:
    """What the link turns into `probabilities(values_BT, link)`."""
    if link == "identity":
        return values_BT
    values_BT = probabilities(values_BT, link)
    return torch.logit(values_BT, eps=_EDGE) if link == "sigmoid" else values_BT.log()
