"""Train a probe on one fold: a head on the features of a frozen network, in one epoch.

Shapes: N rows, V validation rows, S test rows, T outputs, F features.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from search.model.links import link_of
from search.model.memory import peak_memory, reset_peak
from search.run_folder import write_file
from search.train.frozen import Frozen
from search.train.job import Diverged, EpochResult, Floats, FoldJob, FoldResult
from search.train.loop import epoch_seed
from search.train.network import weights_on_cpu
from search.train.probe_heads import FittedHead, fit_head
from search.train.probe_rows import Score
from spaces.errors import UserError

_FORMAT = "1"  # of its checkpoints
_CONSTANT = 1e-12  # mean variance of targets that have none


@dataclass
class ProbeState:
    """What a probe's training changes."""

    epoch: int = 0  # 1 when the head is fitted
    head: FittedHead | None = None


class ProbeTraining:
    """One job on its way, like FoldTraining: call `epoch` until `done`, then `finish`.

    `score` of (pred_TN, true_TN), the higher the better, chooses the head inside the training rows
    (without it the squared error does), where rows of one group of `groups_N` (all rows of the
    table) stay together.
    """

    def __init__(
        self,
        job: FoldJob,
        *,
        score: Score | None = None,
        groups_N: NDArray[Any] | None = None,
    ) -> None:
        self.job = job
        self.link = link_of(job.task_type)
        self.frozen = Frozen(job)
        self.state = ProbeState()
        self._score, self._groups_N = score, groups_N

    @property
    def done(self) -> bool:
        return self.state.epoch == 1

    def epoch(self) -> EpochResult:
        """Choose and fit the head on the training rows and predict the validation rows."""
        job, started = self.job, time.perf_counter()
        reset_peak(job.device)
        train_NF = self.frozen.features().values_NF[job.train_rows]
        train_TN = np.asarray(job.targets_TN)[:, job.train_rows]
        self.state.head = fit_head(
            job.recipe.probe, train_NF, train_TN,
            link=self.link, score=self._score,
            groups_N=None if self._groups_N is None else self._groups_N[job.train_rows],
            pca=job.recipe.pca, seed=epoch_seed(job.seed, 0), device=job.device,
        )  # fmt: skip
        self.state.epoch = 1
        pred_TV = self._predict(job.valid_rows)
        error_TN = self.state.head.predict(train_NF, job.device) - train_TN
        return EpochResult(
            epoch=1,
            epochs=1,
            loss=float(np.square(error_TN).mean() / max(train_TN.var(axis=1).mean(), _CONSTANT)),
            pred_TV=pred_TV,
            seconds=time.perf_counter() - started,
            images_per_second=len(train_NF) * job.views / (time.perf_counter() - started),
            batch=len(train_NF),
            micro_batch=len(train_NF),
            peak_memory_bytes=peak_memory(job.device),
        )

    def finish(self) -> FoldResult:
        """The finished fold, with test predictions if there are test images."""
        assert self.state.head is not None
        job, features = self.job, self.frozen.features()
        images, rows = len(features.values_NF), job.targets_TN.shape[1]
        test = job.test_images_NHWC is not None
        started = time.perf_counter()
        pred_TV = self._predict(job.valid_rows)
        head_seconds = time.perf_counter() - started
        tensors = {f"head.{name}": t for name, t in self.state.head.tensors.items()}
        network = self.frozen.model.network
        state = weights_on_cpu(network)
        # What a head gives is in the units of the targets already.
        outputs = len(job.targets_TN)
        state |= {"target.mean": torch.zeros(outputs), "target.std": torch.ones(outputs)}
        return FoldResult(
            pred_TV=pred_TV,
            test_pred_TS=self._predict(np.arange(rows, images)) if test else None,
            state={**state, **self.frozen.image_facts, **tensors},
            micro_batch=len(job.train_rows),
            params=sum(p.numel() for p in network.parameters())
            + sum(t.numel() for t in tensors.values()),
            predict_ms=1000 * (features.seconds / images + head_seconds / max(pred_TV.shape[1], 1)),
            channels=self.frozen.channels,
            views=job.views,
            link=self.link,
        )

    def save(self, path: Path, note: str = "") -> None:
        """Write a checkpoint, with a note for whoever restores it."""
        job, head = self.job, self.state.head
        metadata = {
            "format": _FORMAT,
            "kind": "probe",
            "digest": job.recipe.digest,
            "seed": str(job.seed),
            "epoch": str(self.state.epoch),
            "note": note,
        }
        tensors = head.tensors if head is not None else {}
        write_file(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    def restore(self, path: Path) -> str:
        """Go on from a checkpoint of this very job; returns its note.

        Raises UserError when it is none, or belongs to another recipe or seed.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is no probe checkpoint ({error}); train the fold anew"
            ) from error
        job = self.job
        wanted = {"format": _FORMAT, "kind": "probe", "digest": job.recipe.digest}
        if not {**wanted, "seed": str(job.seed)}.items() <= metadata.items():
            raise UserError(
                f"{path} is no probe checkpoint of recipe {job.recipe.digest} with seed "
                f"{job.seed}; give that fold's own checkpoint"
            )
        head = FittedHead(tensors=tensors) if tensors else None
        self.state = ProbeState(epoch=int(metadata["epoch"]), head=head)
        return str(metadata["note"])

    def _predict(self, rows: NDArray[np.int64]) -> Floats:
        assert self.state.head is not None
        pred_TN = self.state.head.predict(self.frozen.features().values_NF[rows], self.job.device)
        if not np.isfinite(pred_TN).all():
            raise Diverged("a prediction of the head is not finite")
        return pred_TN
