"""Prediction with the model of one fold. The one code path for validation, test and bundles.

Shapes: N rows, B rows of a batch, X images, the views of a row one after the other, H W height and
width, C channels, F features, T outputs, G what a function gives.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from search.data.augment import dihedral
from search.data.batches import Batches
from search.model.backbone import Network, build_model
from search.model.links import IDENTITY, finish_predictions
from search.model.weights import HUB, hub_model
from search.run_folder import write_file
from spaces.errors import UserError
from spaces.recipe import Recipe

FORMAT = "2"  # version of a fold's model file
_METADATA = ("recipe", "outputs", "channels", "views", "link")
FACTS = ("target.mean", "target.std", "image.mean", "image.std")


class FoldModel:
    """The evaluated weights of one fold, and all that turns images into predictions."""

    def __init__(
        self,
        network: Network,
        facts: dict[str, Tensor],
        recipe: Recipe,
        device: str = "cpu",
        *,
        views: int = 1,
        link: str = IDENTITY,
    ) -> None:
        self.network = network.to(device).eval()
        self.recipe = recipe
        self.device = device
        self.facts = facts
        self.views = views
        self.link = link

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "FoldModel":
        """The model in a fold's file. Raises UserError when it is no such file or incomplete."""
        tensors, metadata = read_model(path)
        # The task's own part of the recipe matters for training only.
        recipe = Recipe.from_dict(json.loads(metadata["recipe"]), None)
        facts = {name: tensors.pop(name) for name in FACTS}
        outputs, channels, views = (int(metadata[n]) for n in ("outputs", "channels", "views"))
        built, model_args = recipe, None
        if "hub" in metadata:
            architecture, model_args = json.loads(metadata["hub"])
            built = replace(recipe, backbone=architecture)
        network = build_model(
            built, outputs, pretrained=False, channels=channels, views=views, model_args=model_args
        )
        if recipe.probe != "none":
            from search.model.probe_head import ProbeHead

            network.head = ProbeHead.from_state(tensors)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not fit its recipe ({reason}); restore it") from error
        return cls(network, facts, recipe, device, views=views, link=metadata["link"])

    def predict(
        self,
        images_XHWC: NDArray[np.uint8] | Tensor,
        tta: int | None = None,
        batch_size: int = 64,
        rows: NDArray[np.int64] | None = None,  # whose images these are; None: all
    ) -> NDArray[np.float32]:
        """Predictions (N, T) in original units or as probabilities, in float32; `tta` None is the
        recipe's own, `batch_size` counts rows."""
        if self.recipe.probe != "none":  # fitted on such means
            features_NF = torch.from_numpy(self.features(images_XHWC, tta, batch_size, rows))
            with torch.inference_mode():
                raw_NT = self.network.head(features_NF.to(self.device)).cpu()
        else:
            tta = self.recipe.tta if tta is None else tta
            batches = self._batches(images_XHWC, rows)
            raw_NT = predict_batches(self.network, batches, tta, batch_size)
        mean_T, std_T = self.facts["target.mean"], self.facts["target.std"]
        return finish_predictions(raw_NT, self.link, mean_T, std_T)

    def features(
        self,
        images_XHWC: NDArray[np.uint8] | Tensor,
        tta: int | None = None,
        batch_size: int = 64,
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Features (N, F) before the head, the mean over flips and turns; else as `predict`."""
        tta = self.recipe.tta if tta is None else tta
        batches = self._batches(images_XHWC, rows)
        return _over_turns(self.network, self.network.features, batches, tta, batch_size).numpy()

    def _batches(
        self, images_XHWC: NDArray[np.uint8] | Tensor, rows: NDArray[np.int64] | None
    ) -> Batches:
        return Batches(
            images_XHWC,
            torch.empty(0),
            np.arange(len(images_XHWC) // self.views) if rows is None else rows,
            self.recipe.image_size,
            self.facts["image.mean"].tolist(),
            self.facts["image.std"].tolist(),
            self.device,
            views=self.views,
            channels=len(self.facts["image.mean"]),
            normalise=self.recipe.normalise,
            stain=self.recipe.stain,
        )


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a fold's file. Raises UserError when it is none or incomplete."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no fold model ({error}); restore the file") from error
    if metadata.get("format") != FORMAT:
        got = metadata.get("format")
        raise UserError(f"{path} has format {got!r}; this version reads fold models {FORMAT}")
    missing = [name for name in FACTS if name not in tensors]
    missing += [name for name in _METADATA if name not in metadata]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; restore the file")
    return tensors, metadata


def save_model(
    path: Path,
    tensors: Mapping[str, Tensor],
    recipe: Mapping[str, Any],
    outputs: int,
    *,
    channels: int = 3,  # that the network sees
    views: int = 1,
    link: str = IDENTITY,
) -> None:
    """Write a fold's file for `FoldModel.load`: weights and the four facts."""
    metadata = {
        "format": FORMAT,
        "recipe": json.dumps(recipe),
        "outputs": str(outputs),
        "channels": str(channels),
        "views": str(views),
        "link": link,
    }
    if recipe["backbone"].startswith(HUB):  # so that it can be built again without the hub
        metadata["hub"] = json.dumps(hub_model(recipe["backbone"]))
    write_file(path, lambda temporary: save_file(dict(tensors), temporary, metadata=metadata))


def predict_batches(
    network: nn.Module, batches: Batches, tta: int, batch_size: int, bf16: bool = False
) -> Tensor:
    """Raw outputs (N, T) on the CPU, the mean over the first `tta` of the 8 flips and quarter
    turns, each of which all views of a row take alike.

    In full float32, so that the same weights give the same predictions whatever the batch size;
    with `bf16` at the speed of training.
    """
    return _over_turns(network, network, batches, tta, batch_size, bf16)


def _over_turns(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    batches: Batches,
    tta: int,
    batch_size: int,
    bf16: bool = False,
) -> Tensor:
    """What a function of the network gives for rows, on the CPU, the mean over flips and turns."""
    was_training = network.training
    network.eval()
    pieces = []
    with torch.inference_mode(), autocast(batches.device, True) if bf16 else _full_float32():
        for images_XCHW in batches.ordered(batch_size):
            sum_BG = function(images_XCHW).float()
            for turn in range(1, tta):
                sum_BG += function(dihedral(images_XCHW, turn)).float()
            pieces.append(sum_BG / tta)
    network.train(was_training)
    return torch.cat(pieces).cpu()


def bf16_pays(network: Network, device: torch.device | str) -> bool:
    """Whether training in bfloat16 is faster here. On a GPU that computes in it, always. On a CPU
    that does, for plain convolutions (1.5 to 1.9 times); depthwise ones and attention lose."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    convolutions = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    depthwise = any(1 < m.groups == m.in_channels for m in convolutions)
    return network.layout == "nchw" and not depthwise


def autocast(device: torch.device | str, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where precision allows it, or nothing."""
    if not bf16:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32: its rounding depends on the algorithm, hence on the batch size."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=torch.backends.cudnn.benchmark,
            deterministic=torch.backends.cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def fastest_device() -> str:
    """The fastest kind of device here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
