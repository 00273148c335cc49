"""Train one fold: rows in, predictions and weights out. Runs without Ray.

Shapes: N rows, V validation rows, S test rows, T outputs, H W C height, width and channels.
"""

import logging
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.data.batches import Batches
from search.model.backbone import build_model, model_facts
from search.model.infer import bf16_pays, original_units, predict_batches, save_model
from search.model.losses import Loss, make_loss, target_scale
from search.model.memory import with_halving
from search.train.checkpoint import TrainState, load_epoch, save_epoch
from search.train.loop import epoch_seed, train_epoch
from search.train.optim import AveragedModel, make_optimizer
from spaces.recipe import Recipe

logger = logging.getLogger(__name__)
Images = NDArray[np.uint8] | Tensor
Floats = NDArray[np.float32]
NO_TARGETS = torch.empty(0)  # of batches that are only predicted


class Diverged(RuntimeError):
    """The loss or a prediction is no longer finite; this recipe cannot be scored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldJob:
    """All that decides the outcome of training one fold."""

    recipe: Recipe
    images_NHWC: Images  # uint8; a memory map, or a tensor on the device
    targets_TN: Floats
    train_rows: NDArray[np.int64]
    valid_rows: NDArray[np.int64]
    test_images_NHWC: Images | None = None
    seed: int = 0  # derived from run seed, trial and fold
    device: str = "cpu"
    weights_dir: Path | None = None  # local pretrained weights; None: timm's own
    bf16: bool | None = None  # train in bfloat16; None: where it is faster
    evaluate_at: frozenset[int] | None = None  # epochs (from 1); None: all; the last always
    micro_batch: int | None = None  # the most rows that are known to fit; None: a whole batch


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochResult:
    """What is known after an epoch."""

    epoch: int  # from 1
    epochs: int  # scheduled
    loss: float  # mean over the epoch's steps, in standardised units
    pred_TV: Floats | None  # by the averaged weights, original units; None when not asked for
    seconds: float  # of training and evaluation
    images_per_second: float  # in training alone
    batch: int  # rows of an optimiser step, however many micro-batches that takes
    micro_batch: int
    peak_memory_bytes: int  # of the device; on the CPU, of the process


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """A finished fold."""

    pred_TV: Floats
    test_pred_TS: Floats | None
    state: dict[str, Tensor]  # evaluated weights, target.mean, target.std, image.mean, image.std
    micro_batch: int
    params: int  # numbers that the network has learned
    predict_ms: float  # milliseconds to predict an image, with the recipe's views


class FoldTraining:
    """One job on its way: call `epoch` until `done`, then `finish`."""

    def __init__(self, job: FoldJob) -> None:
        self.job = job
        torch.manual_seed(epoch_seed(job.seed, -1))
        targets_NT = torch.from_numpy(np.ascontiguousarray(job.targets_TN.T, dtype=np.float32))
        part = job.recipe.task
        kind = getattr(part, "target", "zscore")
        train_targets = targets_NT[torch.from_numpy(np.asarray(job.train_rows))]
        self.target_mean, self.target_std = target_scale(train_targets, kind)
        facts = model_facts(job.recipe.backbone)
        self.mean, self.std = facts.mean, facts.std
        self.loss_of: Loss = make_loss(part, self.target_std.to(job.device))
        standard_NT = (targets_NT - self.target_mean) / self.target_std
        self.train = self._batches(job.images_NHWC, standard_NT, job.train_rows)
        self.valid = self._batches(job.images_NHWC, NO_TARGETS, job.valid_rows)
        network = build_model(job.recipe, len(job.targets_TN), job.weights_dir)
        network = network.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch = min(job.recipe.batch_size, len(job.train_rows))
        self.state = TrainState(
            network,
            AveragedModel(network, job.recipe.ema),
            make_optimizer(network, job.recipe),
            micro_batch=min(self.batch, job.micro_batch or self.batch),
            bf16=bf16_pays(network, job.device) if job.bf16 is None else job.bf16,
        )
        self._predict_rows = max(2 * self.state.micro_batch, 64)  # at a time; falls to what fits
        self._pred_TV: Floats | None = None  # by the state after the last epoch
        self._predict_ms = 0.0

    @property
    def done(self) -> bool:
        """Whether all scheduled epochs are trained."""
        return self.state.epoch >= self.job.recipe.epochs

    def epoch(self) -> EpochResult:
        """Train one epoch and predict the validation rows: the last epoch with the recipe's views
        (tta) and in full precision, those before it with neither."""
        job = self.job
        _reset_peak(job.device)
        started = time.perf_counter()
        loss = self._train_epoch()
        trained = time.perf_counter()
        epoch = self.state.epoch
        wanted = self.done or job.evaluate_at is None or epoch in job.evaluate_at
        self._pred_TV = self._predict_valid() if wanted else None
        return EpochResult(
            epoch=epoch,
            epochs=job.recipe.epochs,
            loss=loss,
            pred_TV=self._pred_TV,
            seconds=time.perf_counter() - started,
            images_per_second=len(job.train_rows) / (trained - started),
            batch=self.batch,
            micro_batch=self.state.micro_batch,
            peak_memory_bytes=_peak(job.device),
        )

    def finish(self) -> FoldResult:
        """The finished fold, with test predictions if there are test images."""
        assert self.done
        job, network = self.job, self.state.average.network
        if self._pred_TV is None:  # restored after the last epoch
            self._pred_TV = self._predict_valid()
        test_pred_TS = None
        if job.test_images_NHWC is not None:
            rows = np.arange(len(job.test_images_NHWC))
            test = self._batches(job.test_images_NHWC, NO_TARGETS, rows)
            test_pred_TS = self._predict(test, job.recipe.tta, bf16=False)
        return FoldResult(
            pred_TV=self._pred_TV,
            test_pred_TS=test_pred_TS,
            state=self._evaluated_state(),
            micro_batch=self.state.micro_batch,
            params=sum(parameter.numel() for parameter in network.parameters()),
            predict_ms=self._predict_ms,
        )

    def save(self, path: Path, note: str = "") -> None:
        """Write an epoch checkpoint, with a note for whoever restores it."""
        save_epoch(path, self.state, self.job.recipe, self.job.seed, note)

    def restore(self, path: Path) -> str:
        """Go on from an epoch checkpoint of this very job; returns its note.

        Raises UserError when it is none, or belongs to another recipe or seed.
        """
        self._pred_TV = None
        largest = self.state.micro_batch
        note = load_epoch(path, self.state, self.job.recipe, self.job.seed)
        # What fits may have been learned since, from other trials.
        self.state.micro_batch = min(self.state.micro_batch, largest)
        return note

    def _batches(self, images: Images, targets: Tensor, rows: NDArray[np.int64]) -> Batches:
        size = self.job.recipe.image_size
        return Batches(images, targets, rows, size, self.mean, self.std, self.job.device)

    def _predict_valid(self) -> Floats:
        if self.done:
            started = time.perf_counter()
            pred_TV = self._predict(self.valid, self.job.recipe.tta, bf16=False)
            seconds = time.perf_counter() - started
            self._predict_ms = 1000 * seconds / len(self.job.valid_rows)
            return pred_TV
        return self._predict(self.valid, 1, self.state.bf16)

    def _train_epoch(self) -> float:
        """One epoch, at the largest micro-batch that fits; the loss."""
        state, job = self.state, self.job
        before, epoch, step = state.tensors(), state.epoch, state.step

        def attempt(micro_batch: int) -> float:
            return train_epoch(state, self.train, job.recipe, job.seed, self.loss_of, micro_batch)

        def undo() -> None:
            state.load(before)
            state.epoch, state.step = epoch, step

        loss, state.micro_batch = with_halving(attempt, state.micro_batch, undo, job.device)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {state.epoch}")
        return loss

    def _predict(self, batches: Batches, tta: int, bf16: bool) -> Floats:
        """Predictions (T, N) by the averaged weights, in original units."""

        def attempt(batch_size: int) -> Tensor:
            return predict_batches(self.state.average.network, batches, tta, batch_size, bf16)

        pred_NT, self._predict_rows = with_halving(
            attempt, self._predict_rows, lambda: None, self.job.device
        )
        pred_TN = np.ascontiguousarray(original_units(pred_NT, self.target_mean, self.target_std).T)
        if not np.isfinite(pred_TN).all():
            raise Diverged(f"a prediction is not finite after epoch {self.state.epoch}")
        return pred_TN

    def _evaluated_state(self) -> dict[str, Tensor]:
        weights = self.state.average.network.state_dict()
        state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in weights.items()}
        state["target.mean"], state["target.std"] = self.target_mean, self.target_std
        state["image.mean"] = torch.tensor(self.mean)
        state["image.std"] = torch.tensor(self.std)
        return state


def train_fold(
    job: FoldJob, on_epoch: Callable[[EpochResult], bool] = lambda result: True
) -> FoldResult | None:
    """Train one fold to its last scheduled epoch; `on_epoch` returns False to stop it (None).

    Raises Diverged, OutOfMemory, and UserError for an impossible recipe.
    """
    training = FoldTraining(job)
    while not training.done:
        if not on_epoch(training.epoch()):
            return None
    return training.finish()


def save_fold(path: Path, result: FoldResult, recipe: Recipe) -> None:
    """Write the fold's model for `search.model.infer.FoldModel`."""
    save_model(path, result.state, recipe.to_dict(), len(result.pred_TV))


def _reset_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
