"""Networks from timm's backbones: facts, weights, and build_model.

Shapes: B batch, C channels, H W height and width, L tokens, F features, T outputs.
"""

import functools
import logging
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from search.model.heads import GeM, Head, swap_activations
from spaces.errors import UserError, near
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".pth", ".pt")
_HUB_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What timm knows about a backbone; `mean` and `std` belong to its pretrained weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int  # pixels, side of the square it was trained on
    fixed_size: bool  # whether it is built for one size (position embeddings, windows)
    params: int  # of the backbone without a classifier


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """Where pretrained weights come from: the hub (`folder` None), a folder, or nowhere."""

    pretrained: bool
    folder: Path | None
    reason: str


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


def probe_weights(mode: str, backbones: Sequence[str] = ()) -> WeightsSource:
    """Where pretrained weights can come from; answers within seconds.

    mode: "random"; "pretrained" (the hub, or UserError); "auto" (the hub if it answers or already
    has the weights in its cache, else random weights); or a folder of weight files, which must
    hold every one of `backbones`.
    """
    if mode == "random":
        return WeightsSource(pretrained=False, folder=None, reason="random weights were asked for")
    if mode not in ("auto", "pretrained"):
        folder = Path(mode).expanduser()
        faults: list[str] = []
        for name in backbones:
            try:
                _weight_file(folder, name)
            except UserError as error:
                faults += error.faults
        if faults or not folder.is_dir():
            raise UserError(faults or _no_folder(folder))
        return WeightsSource(pretrained=True, folder=folder, reason=f"weights from {folder}")
    absent = _not_cached(backbones)
    if not absent:
        reason = "pretrained weights are in the local cache"
        return WeightsSource(pretrained=True, folder=None, reason=reason)
    fault = _hub_fault()
    if fault is None:
        return WeightsSource(pretrained=True, folder=None, reason="the weights hub answers")
    if mode == "pretrained":
        raise UserError(
            f"pretrained weights were asked for but {fault}; connect to it, or use "
            "--weights DIR for local files, or --weights random"
        )
    return WeightsSource(pretrained=False, folder=None, reason=f"random weights, since {fault}")


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
        state = _read_weights(_weight_file(folder, recipe.backbone))
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
        _refuse_foreign(backbone, state, recipe.backbone)
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


def _no_folder(folder: Path) -> str:
    return f"weights folder {folder} does not exist; give auto, pretrained, random or a folder"


def _weight_file(folder: Path, backbone: str) -> Path:
    """The file of a backbone: `arch.tag` if named so, else `arch`, with a known suffix."""
    if not folder.is_dir():
        raise UserError(_no_folder(folder))
    for stem in dict.fromkeys((backbone, backbone.split(".")[0])):
        for suffix in _SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    there = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    raise UserError(
        f"weights folder {folder} has no {backbone}.safetensors (or .pth, .pt); "
        f"it has: {', '.join(there) or 'no weight file'}"
    )


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a weight file. Pickled code is refused, never run."""
    try:
        return load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # every reader has its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"weights file {path} cannot be read as plain tensors ({reason}); "
            "save a state_dict, best as .safetensors"
        ) from error


def _refuse_foreign(backbone: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """timm loads what fits and leaves the rest random. Refuse a file of which little was used.

    Compared by content, since timm renames tensors of some sources.
    """
    there = {_fingerprint(tensor) for tensor in state.values() if tensor.is_floating_point()}
    # Kernels only: norms and biases start alike everywhere.
    kernels = [parameter.detach() for parameter in backbone.parameters() if parameter.ndim > 1]
    loaded = [_fingerprint(kernel) in there for kernel in kernels]
    if sum(loaded) < 0.5 * len(loaded):
        raise UserError(
            f"the weights given for {name} fill {sum(loaded)} of its {len(loaded)} kernels; "
            "give a file of this architecture"
        )


def _fingerprint(tensor: Tensor) -> tuple[int, float, float]:
    flat = tensor.float().flatten()
    return flat.numel(), float(flat.double().sum()), float(flat.abs().max() if len(flat) else 0)


def _not_cached(backbones: Sequence[str]) -> list[str]:
    """Those whose weights the hub's local cache lacks; without names, a stand-in entry."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    absent = []
    for name in backbones:
        config = get_pretrained_cfg(name)
        hub = config.hf_hub_id if config else None
        snapshots = cache / f"models--{str(hub).replace('/', '--')}" / "snapshots"
        files = ("model.safetensors", "pytorch_model.bin")
        if not hub or not any(any(snapshots.glob(f"*/{file}")) for file in files):
            absent.append(name)
    return absent if backbones else ["any"]


def _hub_fault(seconds: float = _HUB_SECONDS) -> str | None:
    """Why the weights hub cannot be used, None if it answers. Takes at most about `seconds`."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answer.append(None)
        except urllib.error.HTTPError as error:
            # It answered; 4xx for HEAD on the front page says nothing about the files.
            answer.append(None if error.code < 500 else f"{endpoint} answers {error.code}")
        except (OSError, ValueError) as error:
            answer.append(f"{endpoint} cannot be reached ({error})")

    # A thread, since looking up a name ignores the time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(math.ceil(seconds))
    return answer[0] if answer else f"{endpoint} did not answer within {seconds:g} s"
