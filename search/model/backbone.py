"""Networks from timm's backbones: facts, and build_model.

Shapes: B batch, C channels, H W height and width, L tokens, F features, T outputs.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from search.model.heads import GeM, Head, swap_activations
from search.model.weights import probe_weights as probe_weights  # also found here
from search.model.weights import read_weights, refuse_foreign, weight_file
from spaces.errors import UserError, near
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What timm knows about a backbone; `mean` and `std` belong to its pretrained weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int  # pixels, side of the square it was trained on
    fixed_size: bool  # whether it is built for one size (position embeddings, windows)
    params: int  # of the backbone without a classifier


class Network(nn.Module):
    """Normalised images (B, 3, H, W) -> standardised outputs (B, T)."""

    def __init__(self, backbone: nn.Module, layout: str, pooling: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.gem = GeM() if pooling == "gem" else None
        self.head: nn.Module = nn.Identity()
        self.layout = layout
        self._pooling = pooling
        self._prefix = int(getattr(backbone, "num_prefix_tokens", 0))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Pooled features (B, F). "avg" is timm's own pooling, which for transformers may read the
        class token; "avgmax" is that and the maximum side by side."""
        maps = self.backbone.forward_features(images_BCHW)  # type: ignore[operator]
        parts = []
        if self._pooling in ("avg", "avgmax"):
            parts.append(self._after_pooling(maps))
        if self._pooling == "gem":
            assert self.gem is not None
            parts.append(self._after_pooling(self._spread(self.gem(self._positions(maps)))))
        if self._pooling in ("max", "avgmax"):
            parts.append(self._after_pooling(self._spread(self._positions(maps).amax(dim=1))))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.features(images_BCHW))

    def _positions(self, maps: Tensor) -> Tensor:
        """Feature maps of any layout -> (B, positions, C), without class tokens."""
        if self.layout == "tokens":
            return maps[:, self._prefix :]
        if self.layout == "nhwc":
            return maps.flatten(1, 2)
        return maps.flatten(2).transpose(1, 2)

    def _spread(self, pooled_BC: Tensor) -> Tensor:
        """Pooled features as a map of one position, which timm's own pooling leaves as it is, so
        that layers between pooling and classifier (norms, 1x1 convolutions) still apply."""
        if self.layout == "tokens":
            return pooled_BC[:, None].expand(-1, self._prefix + 1, -1)
        if self.layout == "nhwc":
            return pooled_BC[:, None, None, :]
        return pooled_BC[:, :, None, None]

    def _after_pooling(self, maps: Tensor) -> Tensor:
        return self.backbone.forward_head(maps, pre_logits=True).flatten(1)  # type: ignore[operator]


def known_backbone(name: str) -> None:
    """Raises UserError unless timm has a model `name` ("arch" or "arch.tag")."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"backbone {name!r} is unknown to timm; {near(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(f"backbone {name!r} has an unknown tag; {near(tag, tags)}")
    if get_pretrained_cfg(name) is None:
        known = (n for n in timm.list_models() if n != architecture)
        raise UserError(f"backbone {name!r} is an unknown or retired name; {near(name, known)}")


@functools.cache
def model_facts(backbone: str) -> ModelFacts:
    """Facts of a backbone, without building its weights. Raises UserError for an unknown one."""
    known_backbone(backbone)
    config = get_pretrained_cfg(backbone)
    assert config is not None
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0)
    return ModelFacts(
        mean=tuple(config.mean),
        std=tuple(config.std),
        input_size=config.input_size[-1],
        fixed_size=bool(config.fixed_input_size),
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def build_model(
    recipe: Recipe,
    outputs: int,
    weights_dir: Path | None = None,
    pretrained: bool = True,
    channels: int = 3,
) -> Network:
    """The recipe's network for `outputs` outputs, on the CPU.

    Pretrained weights are loaded when the recipe asks for them and `pretrained` allows it, from
    `weights_dir` if given. Random initialisation draws from torch's global generator.
    Raises UserError when there is no such backbone, when it cannot take the recipe's image size or
    pooling, and when its weights are missing.
    """
    backbone = _backbone(recipe, weights_dir, pretrained, channels)
    pooling, size = recipe.pooling, recipe.image_size
    backbone.eval()
    try:
        with torch.no_grad():
            maps = backbone.forward_features(torch.zeros(1, channels, size, size))  # type: ignore[operator]
            network = Network(backbone, _layout(recipe, maps, backbone), pooling)
            features = network.features(torch.zeros(1, channels, size, size)).shape[1]
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_cannot_take(recipe, error)) from error
    network.head = Head(recipe.head, features, outputs, recipe.activation, recipe.drop)
    return network.train()


def _backbone(recipe: Recipe, folder: Path | None, pretrained: bool, channels: int) -> nn.Module:
    known_backbone(recipe.backbone)
    pretrained = pretrained and recipe.weights == "pretrained"
    options: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    config = get_pretrained_cfg(recipe.backbone)
    if config is not None and config.fixed_input_size:
        options["img_size"] = recipe.image_size
    if recipe.drop_path > 0:
        options["drop_path_rate"] = recipe.drop_path
    state: Mapping[str, Tensor] = {}
    if pretrained and folder is not None:
        state = read_weights(weight_file(folder, recipe.backbone))
        options["pretrained_cfg_overlay"] = {"state_dict": dict(state)}
    while True:
        try:
            backbone = timm.create_model(recipe.backbone, pretrained=pretrained, **options)
            break
        except TypeError as error:  # an option that this architecture does not take
            refused = [n for n in ("drop_path_rate", "img_size") if n in str(error)]
            if "unexpected" not in str(error) or not refused or refused[0] not in options:
                raise
            del options[refused[0]]
            if refused[0] == "drop_path_rate":
                logger.warning("%s has no stochastic depth; drop_path is ignored", recipe.backbone)
        except (RuntimeError, ValueError, AssertionError) as error:
            if pretrained and "Error(s) in loading" in str(error):
                raise UserError(
                    f"the weights in {folder or 'the hub'} do not fit {recipe.backbone} "
                    f"({str(error).splitlines()[1].strip()}); give a file of this architecture"
                ) from error
            if pretrained:
                raise
            raise UserError(_cannot_take(recipe, error)) from error
        except OSError as error:  # the hub's errors are OSErrors
            raise UserError(
                f"pretrained weights of {recipe.backbone} could not be fetched ({error}); use "
                "--weights DIR for local files, or --weights random"
            ) from error
    if state:
        refuse_foreign(backbone, state, recipe.backbone)
        vars(backbone)["pretrained_cfg"].pop("state_dict", None)  # a second copy of the weights
    if recipe.activation_backbone and swap_activations(backbone, recipe.activation) == 0:
        logger.info("%s has no ReLU to replace by %s", recipe.backbone, recipe.activation)
    return backbone


def _layout(recipe: Recipe, maps: Any, backbone: nn.Module) -> str:
    if isinstance(maps, Tensor) and maps.ndim == 3:
        return "tokens"
    if isinstance(maps, Tensor) and maps.ndim == 4:
        is_nhwc = str(getattr(backbone, "output_fmt", "")).upper().endswith("NHWC")
        return "nhwc" if is_nhwc else "nchw"
    if recipe.pooling != "avg":
        raise UserError(
            f"pooling is {recipe.pooling!r}; {recipe.backbone} pools its features itself: use 'avg'"
        )
    return "own"


def _cannot_take(recipe: Recipe, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"backbone {recipe.backbone} cannot take images of {recipe.image_size} px ({reason}); "
        "choose another image size"
    )
