"""Optimiser, learning rate per step, and averaged weights."""

import copy
import math

import torch
from torch import Tensor, nn

from search.model.backbone import Network
from spaces.recipe import Recipe


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser. Each group holds `scale`: its learning rate relative to the peak.

    Norms, biases and what the backbone itself names do not decay.
    """
    exempt: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = name.startswith("backbone.")
        plain = parameter.ndim <= 1 or name.removeprefix("backbone.") in exempt
        key = (1.0 if in_backbone else recipe.head_lr_mult, 0 if plain else recipe.weight_decay)
        groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "scale": scale, "weight_decay": decay, "lr": recipe.lr * scale}
        for (scale, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, lr=recipe.lr, fused=True)


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`: linear from peak / warmup to the
    peak, then a half cosine that would reach 0 at step `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


class AveragedModel:
    """Exponential moving average of a network, batch statistics included: averaged weights need
    the statistics that belong to them. `network` is the average, to be evaluated."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(source).eval().requires_grad_(False) if decay else source
        self._decay = decay
        pairs = list(zip(_state(source), _state(self.network), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self._moving = [p[0] for p in moving], [p[1] for p in moving]
        self._counters = [p[0] for p in counters], [p[1] for p in counters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0). The decay grows into its value, so that
        the random start is forgotten."""
        if not self._decay:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        sources, averages = self._moving
        torch._foreach_lerp_(averages, sources, 1 - decay)
        if self._counters[0]:
            torch._foreach_copy_(self._counters[1], self._counters[0])


def _state(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
