"""Optimiser, frozen parts, learning rate per step, and averaged weights."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.model.backbone import Network, layer_groups
from spaces.recipe import Recipe

_ONECYCLE_RISE = 0.3  # share of the steps (Smith 2018, and PyTorch's defaults for the rest)
_ONECYCLE_START = 25  # the peak is this many times the first rate
_ONECYCLE_END = 1e4  # and the first rate this many times the last
_EXPONENTIAL_END = 0.01  # of the peak
_LESS = 0.01  # share by which a loss must fall to count as better
_PATIENCE = 2  # epochs without a better loss after which the rate halves


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of all that learns. Each group holds `scale`, its learning rate
    relative to the peak, and `backbone`, whether it waits for the head to warm up.

    Norms, biases and what the backbone itself names do not decay. The last layers of the backbone
    learn at the peak, those before at `layer_decay` of the layers after them.
    """
    exempt: set[str] = getattr(network.backbone, "no_weight_decay", set)()
    scales = _layer_scales(network, recipe.layer_decay)
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        in_backbone = name.startswith("backbone.")
        scale = scales.get(id(parameter), 1.0) if in_backbone else recipe.head_lr_mult
        plain = parameter.ndim <= 1 or name.removeprefix("backbone.") in exempt
        key = (in_backbone, scale, 0 if plain else recipe.weight_decay)
        groups.setdefault(key, []).append(parameter)
    settings = [
        {
            "params": parameters,
            "backbone": in_backbone,
            "scale": scale,
            "weight_decay": decay,
            "lr": recipe.lr * scale,
        }
        for (in_backbone, scale, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(settings, lr=recipe.lr, fused=True)


def _layer_scales(network: Network, decay: float) -> dict[int, float]:
    """Learning rate of the backbone's parameters, by id, relative to the peak."""
    if decay == 1:
        return {}
    groups = layer_groups(network)
    return {
        id(parameter): decay ** (len(groups) - 1 - depth)
        for depth, group in enumerate(groups)
        for _, parameter in group
    }


def freeze(network: Network, kind: str) -> None:
    """Take from training what the recipe's `freeze` says: nothing, the backbone, or all of the
    backbone but its last layers."""
    if kind == "none":
        return
    network.backbone.requires_grad_(False)
    if kind == "last_block":
        for _, parameter in layer_groups(network)[-1]:
            parameter.requires_grad_(True)


def training_mode(network: Network) -> None:
    """Training mode, but for modules that are frozen as a whole: batch norms among them must not
    gather statistics, and noise in front of what learns helps nothing that could adapt to it."""
    network.train()
    for module in network.backbone.modules():
        learns = [parameter.requires_grad for parameter in module.parameters()]
        if learns and not any(learns):
            module.eval()


def learning_rate(
    step: int, total: int, warmup: int, peak: float, schedule: str = "cosine"
) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`.

    Linear from peak / warmup to the peak, then by the schedule: "cosine", half a wave that would
    reach 0 at step `total`; "exponential", the same factor at each step, which would reach 1 % of
    the peak there; "plateau", the peak, which `Plateau` lowers. "onecycle" has a warm-up of its
    own, 30 % of the steps, then half a wave to almost 0. (Smith 2018)
    """
    if schedule == "onecycle":
        return _onecycle(step, total, peak)
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step - warmup) / max(total - warmup, 1)
    if schedule == "exponential":
        return peak * _EXPONENTIAL_END**gone
    if schedule == "plateau":
        return peak
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _onecycle(step: int, total: int, peak: float) -> float:
    low, top = peak / _ONECYCLE_START, max(_ONECYCLE_RISE * total - 1, 0)
    if step < top:
        return peak + (low - peak) / 2 * (1 + math.cos(math.pi * step / top))
    low /= _ONECYCLE_END
    gone = (step - top) / max(total - 1 - top, 1)
    return low + (peak - low) / 2 * (1 + math.cos(math.pi * gone))


@dataclass(eq=False)
class Plateau:
    """Halves the learning rate when the training loss has not fallen by 1 % for two epochs.

    Never the validation loss: what is chosen by the validation rows has seen them.
    """

    factor: float = 1.0  # of the learning rate
    best: float = math.inf  # mean loss of an epoch
    waited: int = 0  # epochs since

    def observe(self, loss: float) -> None:
        """Take in the mean training loss of an epoch."""
        self.waited += 1
        if loss < self.best * (1 - _LESS):
            self.best, self.waited = loss, 0
        if self.waited == _PATIENCE:
            self.factor, self.waited = self.factor / 2, 0


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

    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0). The decay grows into its value, so that
        the random start is forgotten."""
        if self._decay:
            self._take_in(1 - min(self._decay, (1 + step) / (10 + step)))

    def end_epoch(self, epoch: int) -> None:
        """Take in the weights after epoch `epoch` (from 1), where these count alone."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the average that a checkpoint holds; nothing where it holds none."""
        if tensors:
            self.network.load_state_dict(tensors)

    @torch.no_grad()
    def _take_in(self, share: float) -> None:
        sources, averages = self._moving
        torch._foreach_lerp_(averages, sources, share)
        if self._counters[0]:
            torch._foreach_copy_(self._counters[1], self._counters[0])


class EpochAverage(AveragedModel):
    """Equal average of the weights after each epoch from `first` (from 1) on, batch statistics
    included (Izmailov et al. 2018). Before that `network` is the network itself."""

    def __init__(self, source: nn.Module, first: int) -> None:
        super().__init__(source, decay=1.0)
        self._average, self._first = self.network, first
        self.network = source

    def update(self, step: int) -> None:
        """Steps do not count here."""

    def end_epoch(self, epoch: int) -> None:
        """Take in the weights after epoch `epoch` (from 1)."""
        if epoch >= self._first:
            self._take_in(1 / (epoch - self._first + 1))
            self.network = self._average

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the average that a checkpoint holds; without one it has not begun."""
        if tensors:
            self.network = self._average
            self.network.load_state_dict(tensors)


def make_average(network: nn.Module, recipe: Recipe) -> AveragedModel:
    """The average that the recipe evaluates: over its last epochs with `swa`, which does without
    `ema` since an average of averages would lag behind; else over steps."""
    if recipe.swa > 0:
        last = max(round(recipe.swa * recipe.epochs), 1)
        return EpochAverage(network, recipe.epochs - last + 1)
    return AveragedModel(network, recipe.ema)


def _state(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
