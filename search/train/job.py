"""What training a fold is given, and what it gives.

Shapes: N rows, V validation rows, S test rows, T outputs, H W C height, width and channels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spaces.recipe import Recipe

Images = NDArray[np.uint8] | Tensor
Floats = NDArray[np.float32]


class Diverged(RuntimeError):
    """The loss or a prediction is no longer finite; this recipe cannot be scored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldJob:
    """All that decides the outcome of training one fold."""

    recipe: Recipe
    images_NHWC: Images  # uint8; a memory map, or a tensor on the device; `views` for each row
    targets_TN: Floats
    train_rows: NDArray[np.int64]
    valid_rows: NDArray[np.int64]  # none: a refit on all rows
    test_images_NHWC: Images | None = None
    task_type: str = "regression"
    views: int = 1  # images of a row, one after the other in the store
    mirror_views: tuple[int, ...] | None = None  # new view v of a mirrored row is its old view [v]
    mirror_targets: tuple[int, ...] | None = None  # the same of its targets
    seed: int = 0  # derived from run seed, trial and fold
    device: str = "cpu"
    weights_dir: Path | None = None  # local pretrained weights; None: timm's own
    initial: Path | None = None  # a fold model whose backbone is the start; None: the weights above
    bf16: bool | None = None  # train in bfloat16; None: where it is faster
    evaluate_at: frozenset[int] | None = None  # epochs (from 1); None: all; the last always
    compile: bool = False  # steps of training, by torch.compile; changes speed alone
    micro_batch: int | None = None  # the most rows that are known to fit; None: a whole batch
    cache: Path | None = None  # folder where a probe's features are kept; None: they are not
    store_key: str = ""  # names the content of the images, for that folder


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochResult:
    """What is known after an epoch. Predictions of classes are probabilities."""

    epoch: int  # from 1
    epochs: int  # scheduled
    loss: float  # mean over the epoch's steps, in standardised units
    pred_TV: Floats | None  # by the averaged weights, original units; None when not asked for
    seconds: float  # of training and evaluation
    images_per_second: float  # in training alone
    batch: int  # rows of an optimiser step, however many micro-batches that takes
    micro_batch: int
    peak_memory_bytes: int  # of the device; on the CPU, of the process alone


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """A finished fold. Predictions of classes are probabilities."""

    pred_TV: Floats
    test_pred_TS: Floats | None
    state: dict[str, Tensor]  # evaluated weights, target.mean, target.std, image.mean, image.std
    micro_batch: int
    params: int  # numbers that the network has learned
    predict_ms: float  # milliseconds to predict a row with the recipe's views; 0: nothing to time
    channels: int = 3  # that the network sees
    views: int = 1
    link: str = "identity"  # from raw outputs to predictions


class Progress(Protocol):
    """How far a training is."""

    @property
    def epoch(self) -> int: ...  # epochs completed


class Training(Protocol):
    """A job on its way, whatever trains it: `epoch` is called until `done`, then `finish`."""

    @property
    def job(self) -> FoldJob: ...
    @property
    def state(self) -> Progress: ...
    @property
    def done(self) -> bool: ...
    def epoch(self) -> EpochResult: ...
    def finish(self) -> FoldResult: ...
    def save(self, path: Path, note: str = "") -> None: ...
    def restore(self, path: Path) -> str: ...
