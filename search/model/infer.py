"""Prediction with the model of one fold. The one code path for validation, test and bundles.

Shapes: B batch, N rows, H W height and width, C channels, F features, T outputs, V of what a
function gives.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
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
from search.run_folder import write_file
from spaces.errors import UserError
from spaces.recipe import Recipe

FORMAT = "1"  # version of a fold's model file
FACTS = ("target.mean", "target.std", "image.mean", "image.std")


class FoldModel:
    """The evaluated weights of one fold, and all that turns images into predictions."""

    def __init__(
        self, network: Network, facts: dict[str, Tensor], recipe: Recipe, device: str = "cpu"
    ) -> None:
        self.network = network.to(device).eval()
        self.recipe = recipe
        self.device = device
        self.facts = facts

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "FoldModel":
        """The model in a fold's file. Raises UserError when it is no such file or incomplete."""
        tensors, metadata = read_model(path)
        # The task's own part of the recipe matters for training only.
        recipe = Recipe.from_dict(json.loads(metadata["recipe"]), None)
        facts = {name: tensors.pop(name) for name in FACTS}
        network = build_model(recipe, int(metadata["outputs"]), pretrained=False)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not fit its recipe ({reason}); restore it") from error
        return cls(network, facts, recipe, device)

    def predict(
        self,
        images_NHWC: NDArray[np.uint8] | Tensor,
        tta: int | None = None,
        batch_size: int = 64,
        rows: NDArray[np.int64] | None = None,  # of the images; None: all
    ) -> NDArray[np.float32]:
        """Predictions (N, T) in original units, in float32; `tta` None is the recipe's own."""
        tta = self.recipe.tta if tta is None else tta
        pred_NT = predict_batches(self.network, self._batches(images_NHWC, rows), tta, batch_size)
        return original_units(pred_NT, self.facts["target.mean"], self.facts["target.std"])

    def features(
        self,
        images_NHWC: NDArray[np.uint8] | Tensor,
        tta: int | None = None,
        batch_size: int = 64,
        rows: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Pooled features (N, F) before the head, the mean over the views; else as `predict`."""
        tta = self.recipe.tta if tta is None else tta
        batches = self._batches(images_NHWC, rows)
        return _over_views(self.network, self.network.features, batches, tta, batch_size).numpy()

    def _batches(
        self, images_NHWC: NDArray[np.uint8] | Tensor, rows: NDArray[np.int64] | None
    ) -> Batches:
        return Batches(
            images_NHWC,
            torch.empty(0),
            np.arange(len(images_NHWC)) if rows is None else rows,
            self.recipe.image_size,
            self.facts["image.mean"].tolist(),
            self.facts["image.std"].tolist(),
            self.device,
        )


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a fold's file. Raises UserError when it is none or incomplete."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no fold model ({error}); restore the file") from error
    if metadata.get("format") != FORMAT or "recipe" not in metadata:
        got = metadata.get("format")
        raise UserError(f"{path} has format {got!r}; this version reads fold models {FORMAT}")
    missing = [name for name in FACTS if name not in tensors]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; restore the file")
    return tensors, metadata


def save_model(
    path: Path, tensors: Mapping[str, Tensor], recipe: Mapping[str, Any], outputs: int
) -> None:
    """Write a fold's file for `FoldModel.load`: weights and the four facts."""
    metadata = {"format": FORMAT, "recipe": json.dumps(recipe), "outputs": str(outputs)}
    write_file(path, lambda temporary: save_file(dict(tensors), temporary, metadata=metadata))


def predict_batches(
    network: nn.Module, batches: Batches, tta: int, batch_size: int, bf16: bool = False
) -> Tensor:
    """Predictions (N, T) on the CPU, standardised: the mean over the first `tta` of the 8 flips
    and quarter turns.

    In full float32, so that the same weights give the same predictions whatever the batch size;
    with `bf16` at the speed of training.
    """
    return _over_views(network, network, batches, tta, batch_size, bf16)


def _over_views(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    batches: Batches,
    tta: int,
    batch_size: int,
    bf16: bool = False,
) -> Tensor:
    """What a function of the network gives for images, on the CPU, the mean over the views."""
    was_training = network.training
    network.eval()
    pieces = []
    with torch.inference_mode(), autocast(batches.device, True) if bf16 else _full_float32():
        for images_BCHW in batches.ordered(batch_size):
            sum_BV = function(images_BCHW).float()
            for view in range(1, tta):
                sum_BV += function(dihedral(images_BCHW, view)).float()
            pieces.append(sum_BV / tta)
    network.train(was_training)
    return torch.cat(pieces).cpu()


def original_units(pred_NT: Tensor, mean_T: Tensor, std_T: Tensor) -> NDArray[np.float32]:
    """Standardised predictions in the units of the targets."""
    return (pred_NT * std_T.cpu() + mean_T.cpu()).numpy()


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
