"""Trials larger than a GPU: their folds are trained by a group of ranks, on a GPU each."""

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import ray
from ray.util import get_node_ip_address

from search.group import Group, Lost, this_node
from search.plan import ranks_of
from search.run_folder import write_file
from search.trial import Context, TrialTrainable, Worker

if TYPE_CHECKING:
    from search.train.job import EpochResult, FoldJob, FoldResult


@dataclass
class Position:
    """How far a fold is trained."""

    epoch: int = 0


class GroupTraining:
    """One fold on its way in a group, to be used as FoldTraining is."""

    def __init__(
        self, group: Group, job: "FoldJob", lease: tuple[dict[str, Any], int, int | None]
    ) -> None:
        """`lease`: the worker's configuration of the trial, the fold, and the micro-batch that is
        known to fit, from which the ranks make the same job."""
        self.job, self.state, self.done = job, Position(), False
        self._group = group
        self._move(group.ask("begin", *lease))

    def epoch(self) -> "EpochResult":
        """Train one epoch and predict the validation rows."""
        result, place = self._group.ask("epoch")
        self._move(place)
        return result

    def finish(self) -> "FoldResult":
        """The finished fold."""
        return self._group.ask("finish")

    def save(self, path: Path, note: str = "") -> None:
        """Write an epoch checkpoint, with a note for whoever restores it. A fold that was begun by
        a group may go on without one, and the other way round."""
        if self._group.nodes[0] == this_node():
            self._group.ask("save", str(path), note)
        else:
            content = self._group.ask("save", None, note)
            write_file(path, content.tofile)

    def restore(self, path: Path) -> str:
        """Go on from an epoch checkpoint of this very job; returns its note.

        Raises UserError when it is none, or belongs to another recipe or seed.
        """
        here = this_node()
        elsewhere = any(node != here for node in self._group.nodes)
        content = [ray.put(np.fromfile(path, dtype=np.uint8))] if elsewhere else []
        note, place = self._group.ask("restore", here, str(path), content)
        self._move(place)
        return str(note)

    def _move(self, place: tuple[int, bool]) -> None:
        self.state.epoch, self.done = place


class GroupWorker(Worker):
    """A worker whose folds are trained by a group."""

    def __init__(self, context: Context, host: str, group: Group) -> None:
        super().__init__(context, host)
        self.group = group

    def reports(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        """As a worker's; "lost" too when a rank is. Raises what keeps the group from starting."""
        self.group.start()
        self._where = self.group.where
        try:
            yield from super().reports(config)
            return
        except Lost as error:
            reason = str(error)
        head = {"trial": config["trial"], "attempt": config["attempt"], **self._where}
        yield {**head, "points": [], "lost": reason}

    def _training(self, config: dict[str, Any], fold: int, fits: int | None) -> GroupTraining:
        return GroupTraining(self.group, self.job(config, fold, fits), (config, fold, fits))


class GroupTrainable(TrialTrainable):
    """A worker with a group behind Ray Tune's class interface. GPUs and CPUs are its ranks'."""

    NEEDS: ClassVar[dict[str, float]] = {"cpu": 0, "memory": 1}  # Tune wants something: a byte
    _worker: GroupWorker

    def _worker_of(self, context: Context) -> GroupWorker:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # none is reserved for this process
        group = Group(context, ranks_of(context.gpus))
        return GroupWorker(context, get_node_ip_address(), group)

    def cleanup(self) -> None:
        super().cleanup()
        self._worker.group.stop()
