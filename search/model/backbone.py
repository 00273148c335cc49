"""Networks from timm's backbones.

Shapes: B samples, V views, X = B x V images, the views of a sample next to each other, C channels,
H W height and width, F features, T outputs.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from search.model.facts import has_fixed_size, not_fetched
from search.model.facts import known_backbone as known_backbone  # also found here
from search.model.facts import model_facts as model_facts
from search.model.facts import normalisation as normalisation
from search.model.heads import GeM, Head, swap_activations
from search.model.views import ON_IMAGES, grid_views, make_fusion, stack_views
from search.model.weights import probe_weights as probe_weights  # also found here
from search.model.weights import read_weights, refuse_foreign, weight_file
from spaces.errors import UserError
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)
Join = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """Normalised images (X, C, H, W) -> raw outputs (B, T)."""

    def __init__(
        self, backbone: nn.Module, layout: str, pooling: str, join: Join | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.gem = GeM() if pooling == "gem" else None
        self.fusion: nn.Module | None = None  # (X, F) -> (B, F')
        self.head: nn.Module = nn.Identity()
        self.layout = layout
        self._join = join  # (X, C, H, W) -> what the backbone sees of each sample
        self._pooling = pooling
        self._prefix = int(getattr(backbone, "num_prefix_tokens", 0))

    def features(self, images_XCHW: Tensor) -> Tensor:
        """Features (B, F') of the samples: pooled, and those of a sample's views made one."""
        if self._join is not None:
            images_XCHW = self._join(images_XCHW)
        features_XF = self._pooled(images_XCHW)
        return features_XF if self.fusion is None else self.fusion(features_XF)

    def forward(self, images_XCHW: Tensor) -> Tensor:
        return self.head(self.features(images_XCHW))

    def _pooled(self, images_XCHW: Tensor) -> Tensor:
        """Pooled features (X, F). "avg" is timm's own pooling, which for transformers may read the
        class token; "avgmax" is that and the maximum side by side."""
        maps = self.backbone.forward_features(images_XCHW)  # type: ignore[operator]
        parts = []
        if self._pooling in ("avg", "avgmax"):
            parts.append(self._after_pooling(maps))
        if self._pooling == "gem":
            assert self.gem is not None
            parts.append(self._after_pooling(self._spread(self.gem(self._positions(maps)))))
        if self._pooling in ("max", "avgmax"):
            parts.append(self._after_pooling(self._spread(self._positions(maps).amax(dim=1))))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

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


def layer_groups(network: Network) -> list[list[tuple[str, nn.Parameter]]]:
    """The backbone's parameters by their names in the network, from the stem to the last stage.

    The stages are timm's own; a backbone that names none is one group. Norms at its end belong to
    the last stage. Fusion, pooling and head are in none.
    """
    backbone = network.backbone
    own = dict(backbone.named_parameters())
    groups = [list(own)]
    for coarse in (True, False):
        try:
            matcher = backbone.group_matcher(coarse=coarse)  # type: ignore[operator]
        except (AssertionError, AttributeError):  # has no stages, or only its blocks
            continue
        groups = list(group_parameters(backbone, matcher).values())
        break
    merged: list[list[str]] = []
    for names in groups:
        if merged and all(own[name].ndim <= 1 for name in names):
            merged[-1] += names
        else:
            merged.append(list(names))
    return [[(f"backbone.{name}", own[name]) for name in names] for names in merged]


def build_model(
    recipe: Recipe,
    outputs: int,
    weights_dir: Path | None = None,
    pretrained: bool = True,
    channels: int = 3,
    views: int = 1,
    model_args: Mapping[str, Any] | None = None,
) -> Network:
    """The recipe's network for `outputs` outputs, on the CPU; `channels` are those that it sees,
    `model_args` timm's options for its architecture.

    Pretrained weights are loaded when the recipe asks for them and `pretrained` allows it, from
    `weights_dir` if given. Random initialisation draws from torch's global generator.
    Raises UserError when there is no such backbone, when it cannot take the recipe's image size,
    views or pooling, and when its weights are missing.
    """
    fusion, size = recipe.fusion if views > 1 else None, recipe.image_size
    if fusion == "grid" and model_facts(recipe.backbone).fixed_size:
        raise UserError(
            f"fusion is 'grid' and {recipe.backbone} takes squares of one size alone; "
            "choose another fusion or backbone"
        )
    join: Join | None = None
    if fusion in ON_IMAGES:
        join = functools.partial(stack_views if fusion == "stack" else grid_views, views=views)
    seen = channels * views if fusion == "stack" else channels
    backbone = _backbone(recipe, weights_dir, pretrained, seen, model_args or {})
    images_VCHW = torch.zeros(views, channels, size, size)
    backbone.eval()
    try:
        with torch.no_grad():
            maps = backbone.forward_features(images_VCHW if join is None else join(images_VCHW))  # type: ignore[operator]
            network = Network(backbone, _layout(recipe, maps, backbone), recipe.pooling, join)
            features_VF = network.features(images_VCHW)
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_cannot_take(recipe, error)) from error
    if fusion is not None and join is None:
        network.fusion = make_fusion(fusion, features_VF.shape[1], views).eval()
        with torch.no_grad():
            features_VF = network.fusion(features_VF)
    features = features_VF.shape[1]
    network.head = Head(recipe.head, features, outputs, recipe.activation, recipe.drop)
    return network.train()


def _backbone(
    recipe: Recipe,
    folder: Path | None,
    pretrained: bool,
    channels: int,
    model_args: Mapping[str, Any],
) -> nn.Module:
    known_backbone(recipe.backbone)
    pretrained = pretrained and recipe.weights == "pretrained"
    options: dict[str, Any] = {**model_args, "in_chans": channels, "num_classes": 0}
    if has_fixed_size(recipe.backbone):
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
            raise UserError(not_fetched(recipe.backbone, error)) from error
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
