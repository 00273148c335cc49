"""Train one fold: rows in, predictions and weights out. Runs without Ray.

Shapes: N rows, V validation rows, S test rows, T outputs, H W C height, width and channels.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.data.batches import Batches
from search.model.backbone import Network
from search.model.infer import bf16_pays, predict_batches, save_model
from search.model.links import finish_predictions, link_of
from search.model.losses import Loss, first_bias, make_loss, target_scale
from search.model.memory import out_of_memory, peak_memory, reset_peak, with_halving
from search.train.checkpoint import TrainState, load_epoch, save_epoch
from search.train.compiled import CompiledNetwork, Forward, give_up
from search.train.job import Diverged, EpochResult, Floats, FoldJob, FoldResult, Images
from search.train.loop import epoch_seed, train_epoch
from search.train.network import image_scale, seen_channels, start_network, weights_on_cpu
from search.train.optim import freeze, make_average, make_optimizer
from search.train.parallel import Peers, Rank
from search.train.sampling import sampling_weights
from spaces.errors import UserError
from spaces.recipe import Recipe

if TYPE_CHECKING:
    from search.train.probe import ProbeTraining
    from search.train.probe_rows import Score

NO_TARGETS = torch.empty(0)  # of batches that are only predicted


class FoldTraining:
    """One job on its way: call `epoch` until `done`, then `finish`.

    Several ranks may train it together: each makes one of the same job, and all call the same
    methods in the same order, but `save`, which one of them may call alone. All get the result.
    """

    def __init__(self, job: FoldJob, rank: Rank | None = None) -> None:
        self.job = job
        self.rank = Rank() if rank is None else rank
        recipe, part = job.recipe, job.recipe.task
        self.batch = min(recipe.batch_size, len(job.train_rows))
        if self.batch < self.rank.count:
            raise UserError(
                f"batches have {self.batch} rows and {self.rank.count} GPUs are to share them; "
                "give fewer --gpus-per-trial, or larger batches"
            )
        torch.manual_seed(epoch_seed(job.seed, -1))
        classes = job.task_type != "regression"
        targets_NT = torch.from_numpy(np.array(job.targets_TN.T, dtype=np.float32, order="C"))
        train_NT = targets_NT[torch.from_numpy(np.asarray(job.train_rows))]
        kind = "none" if classes else getattr(part, "target", "zscore")
        self.target_mean, self.target_std = target_scale(train_NT, kind)
        if recipe.augment.mirror and job.mirror_targets and not classes:
            # What changes places must lie on one scale.
            swapped = list(job.mirror_targets)
            self.target_mean = (self.target_mean + self.target_mean[swapped]) / 2
            self.target_std = (self.target_std + self.target_std[swapped]) / 2
        self.link = link_of(job.task_type)
        self.channels = seen_channels(job)
        self.mean, self.std = image_scale(job)
        self.loss_of: Loss = make_loss(
            part,
            self.target_std.to(job.device),
            task_type=job.task_type,
            targets_NT=train_NT.to(job.device),
        )
        standard_NT = (targets_NT - self.target_mean) / self.target_std
        self.train = self._batches(
            job.images_NHWC,
            standard_NT,
            job.train_rows,
            mirror_views=job.mirror_views,
            mirror_targets=job.mirror_targets,
            weights_N=sampling_weights(train_NT, getattr(part, "sampler", "none")),
        )
        self.valid = self._predicted(job.images_NHWC, job.valid_rows)
        network = self._network(first_bias(part, job.task_type, train_NT) if classes else None)
        bf16 = job.bf16
        if bf16 is None:  # alike on all ranks, also where it would pay for some of them alone
            bf16 = all(self.rank.gather(lambda: bf16_pays(network, job.device)))
        self.state = TrainState(
            network,
            make_average(network, recipe),
            make_optimizer(network, recipe),
            micro_batch=min(self.batch, job.micro_batch or self.batch),
            bf16=bf16,
        )
        self._peers = Peers(network, self.rank)
        self._share = self.rank.largest_share(self.batch)  # rows of a step on one rank
        compiled = CompiledNetwork(network, job.device, self._share) if job.compile else None
        self._compiled = compiled
        # At a time; falls to what fits.
        self._predict_rows = max(2 * self.state.micro_batch, 64 // job.views)
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
        reset_peak(job.device)
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
            images_per_second=len(job.train_rows) * job.views / (trained - started),
            batch=self.batch,
            micro_batch=self.state.micro_batch,
            peak_memory_bytes=peak_memory(job.device),
        )

    def finish(self) -> FoldResult:
        """The finished fold, with test predictions if there are test images."""
        assert self.done
        job, network = self.job, self.state.average.network
        if self._pred_TV is None:  # restored after the last epoch
            self._pred_TV = self._predict_valid()
        test_pred_TS = None
        if job.test_images_NHWC is not None:
            rows = np.arange(len(job.test_images_NHWC) // job.views)
            test = self._predicted(job.test_images_NHWC, rows)
            test_pred_TS = self._predict(test, job.recipe.tta, bf16=False)
        return FoldResult(
            pred_TV=self._pred_TV,
            test_pred_TS=test_pred_TS,
            state=self._evaluated_state(),
            micro_batch=self.state.micro_batch,
            params=sum(parameter.numel() for parameter in network.parameters()),
            predict_ms=self._predict_ms,
            channels=self.channels,
            views=job.views,
            link=self.link,
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

    def _network(self, bias_T: Tensor | None) -> Network:
        """The network at its start, on the device."""
        job = self.job
        network = start_network(job, len(job.targets_TN))
        if bias_T is not None:
            last = [module for module in network.head.modules() if isinstance(module, nn.Linear)][
                -1
            ]
            with torch.no_grad():
                last.bias.copy_(bias_T)
        freeze(network, job.recipe.freeze)
        network = network.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rank.equalise(network)
        return network

    def _predicted(self, images: Images, rows: NDArray[np.int64]) -> Batches:
        """This rank's share of rows that are predicted."""
        return self._batches(images, NO_TARGETS, rows[self.rank.share(len(rows))])

    def _batches(
        self, images: Images, targets: Tensor, rows: NDArray[np.int64], **training: Any
    ) -> Batches:
        """Batches of the rows; `training` is what concerns those that are learned from."""
        job = self.job
        return Batches(
            images,
            targets,
            rows,
            job.recipe.image_size,
            self.mean,
            self.std,
            job.device,
            views=job.views,
            channels=self.channels,
            normalise=job.recipe.normalise,
            stain=job.recipe.stain,
            **training,
        )

    def _predict_valid(self) -> Floats:
        if self.done and len(self.job.valid_rows):
            started = time.perf_counter()
            pred_TV = self._predict(self.valid, self.job.recipe.tta, bf16=False)
            seconds = time.perf_counter() - started
            self._predict_ms = 1000 * seconds / self.rank.largest_share(len(self.job.valid_rows))
            return pred_TV
        return self._predict(self.valid, 1, self.state.bf16)

    def _train_epoch(self) -> float:
        """One epoch, at the largest micro-batch that fits; the loss."""
        state, job = self.state, self.job
        before, epoch, step = state.tensors(wait=False), state.epoch, state.step

        def train(micro_batch: int, forward: Forward) -> float:
            return train_epoch(
                state, self.train, job.recipe, job.seed, self.loss_of, micro_batch, forward,
                self._peers,
            )  # fmt: skip

        def attempt(micro_batch: int) -> float:
            if self._compiled is None:
                return train(micro_batch, state.network)
            try:
                return train(micro_batch, self._compiled.at(micro_batch))
            except Exception as error:
                if out_of_memory(error):
                    raise
                give_up(error)
            undo()  # if the compiler is not to blame, the same error comes again
            self._compiled = None
            return train(micro_batch, state.network)

        def undo() -> None:
            state.load(before)
            state.epoch, state.step = epoch, step

        whole = min(state.micro_batch, self._share)
        loss, fits = with_halving(attempt, whole, undo, job.device)
        if fits < whole:
            state.micro_batch = fits
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} in epoch {state.epoch}")
        state.end_epoch(loss)
        return loss

    def _predict(self, batches: Batches, tta: int, bf16: bool) -> Floats:
        """Predictions (T, N) by the averaged weights, in original units or as probabilities, of the
        rows of all ranks."""

        def attempt(batch_size: int) -> Tensor:
            return predict_batches(self.state.average.network, batches, tta, batch_size, bf16)

        def own() -> Tensor:
            if not len(batches.rows):
                return torch.empty(0, len(self.target_mean))
            raw_NT, self._predict_rows = with_halving(
                attempt, self._predict_rows, lambda: None, self.job.device
            )
            return raw_NT

        raw_NT = torch.cat(self.rank.gather(own))
        pred_NT = finish_predictions(raw_NT, self.link, self.target_mean, self.target_std)
        pred_TN = np.ascontiguousarray(pred_NT.T)
        if not np.isfinite(pred_TN).all():
            raise Diverged(f"a prediction is not finite after epoch {self.state.epoch}")
        return pred_TN

    def _evaluated_state(self) -> dict[str, Tensor]:
        state = weights_on_cpu(self.state.average.network)
        state["target.mean"], state["target.std"] = self.target_mean, self.target_std
        state["image.mean"] = torch.tensor(self.mean)
        state["image.std"] = torch.tensor(self.std)
        return state


def make_training(
    job: FoldJob,
    score: "Score | None" = None,
    groups_N: NDArray[Any] | None = None,
    rank: Rank | None = None,
) -> "FoldTraining | ProbeTraining":
    """The training that the recipe asks for: of a network, or of a probe on frozen features, whose
    head is chosen inside the training rows by `score`, groups kept whole. A network may be trained
    by several ranks together; a probe is too small for that."""
    if job.recipe.probe == "none":
        return FoldTraining(job, rank)
    from search.train.probe import ProbeTraining

    return ProbeTraining(job, score=score, groups_N=groups_N)


def train_fold(
    job: FoldJob, on_epoch: Callable[[EpochResult], bool] = lambda result: True
) -> FoldResult | None:
    """Train one fold to its last scheduled epoch; `on_epoch` returns False to stop it (None).

    Raises Diverged, OutOfMemory, and UserError for an impossible recipe.
    """
    training = make_training(job)
    while not training.done:
        if not on_epoch(training.epoch()):
            return None
    return training.finish()


def save_fold(path: Path, result: FoldResult, recipe: Recipe) -> None:
    """Write the fold's model for `search.model.infer.FoldModel`."""
    save_model(
        path,
        result.state,
        recipe.to_dict(),
        len(result.pred_TV),
        channels=result.channels,
        views=result.views,
        link=result.link,
    )
