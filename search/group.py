"""A group: ranks on several GPUs, of one host or of several, that train the same folds together.

Ray Train's TorchTrainer places them, connects them and watches them. Each is a worker of its own,
warm from fold to fold and from trial to trial. It finds its next command on a desk, and leaves its
answer there; what is told to one is told to all, since they train together.
"""

import asyncio
import contextlib
import dataclasses
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address

from search.exchange import Exchange, Unreachable
from search.policy.packing import UNIT
from search.trial import Context, Worker
from spaces.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from search.train.job import EpochResult, FoldResult, Training
    from search.train.parallel import Rank

LOOK_SECONDS = 1.0  # between two looks whether a group that is waited for still lives
STUCK_SECONDS = 30.0  # after one rank's error: the others wait for it, and will for ever
ROOM_SECONDS = 900.0  # until there is room for a group; a cluster may have to grow for it
STOP_SECONDS = 15.0  # for a group to end by itself


def this_node() -> str:
    """Ray's name of the host that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


class Lost(Unreachable):
    """A group cannot go on, or not begin; nothing is wrong with what it was told."""


class RankFailed(RuntimeError):
    """An error of a rank that nobody here knows; holds its traceback as text."""


class Desk:
    """Where ranks find their next command and leave their answers; a Ray actor. A command is told
    when all have answered the one before."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._number = 0  # of the command
        self._command: tuple[str, tuple[Any, ...]] = ("", ())
        self._answers: dict[int, Any] = {}
        self._changed = asyncio.Condition()

    async def tell(self, name: str, arguments: tuple[Any, ...]) -> None:
        """A command for all ranks."""
        async with self._changed:
            self._number += 1
            self._command, self._answers = (name, arguments), {}
            self._changed.notify_all()

    async def command(self, number: int) -> tuple[str, tuple[Any, ...]]:
        """The command of that number, once it is told."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._number >= number)
            return self._command

    async def answer(self, number: int, rank: int, answer: Any) -> None:
        """A rank's answer: an exception, or a reference to what it has to tell in a list."""
        async with self._changed:
            if number == self._number:
                self._answers[rank] = answer
                self._changed.notify_all()

    async def answers(self, seconds: float) -> dict[int, Any]:
        """Those there are, by rank: as soon as all are, and after so many seconds anyway."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: len(self._answers) == self._ranks)
        return dict(self._answers)


# --- in the processes of the ranks


def serve(config: dict[str, Any]) -> None:
    """What a rank does from its start to its end."""
    from search.train.parallel import Rank

    desk, rank = config["desk"], Rank.here()
    served = _Served(config["context"], rank)
    number, name, arguments = 0, "open", ()
    try:
        while name != "stop":
            try:
                answer: Any = [ray.put(getattr(served, name)(*arguments))]
            except Exception as error:
                answer = _told(error, rank)
            ray.get(desk.answer.remote(number, rank.index, answer))
            answer = None  # an error's traceback holds tensors
            number += 1
            name, arguments = ray.get(desk.command.remote(number))
    finally:
        served.close()


def _told(error: Exception, rank: "Rank") -> Exception:
    """An error as it can be sent, of a kind by which the trial's end is named."""
    from search.model.memory import OutOfMemory, out_of_memory
    from search.train.job import Diverged
    from search.train.parallel import PeerFailed

    if isinstance(error, Diverged | UserError | OSError | Unreachable | PeerFailed):
        return error
    if out_of_memory(error):
        return OutOfMemory(str(error))
    trace = "".join(traceback.format_exception(error))
    return RankFailed(f"rank {rank.index} of {rank.count} failed:\n{trace}")


class _RankWorker(Worker):
    def facts(self) -> dict[str, Any]:
        """About this process."""
        actor = ray.get_runtime_context().current_actor
        return {**self._where, "node": this_node(), "actor": actor}


class _Served:
    """A rank's side of the commands, each a method. What it returns only counts from rank 0."""

    def __init__(self, context: Context, rank: "Rank") -> None:
        self._context, self._rank = context, rank
        self._first = rank.index == 0
        self._files: Exchange | None = None
        self._training: Training | None = None

    def open(self) -> dict[str, Any]:
        """Make ready to train; facts about this process."""
        self._worker = _RankWorker(self._context, host=get_node_ip_address())
        self._files = self._worker.files
        return self._worker.facts()

    def begin(self, config: dict[str, Any], fold: int, fits: int | None) -> tuple[int, bool]:
        """Begin a fold of a lease; the epochs that are trained, and whether that is all."""
        self._training = None  # before there is another one
        job = self._worker.job(config, fold, fits)
        if job.recipe.probe == "none":
            self._training = self._worker.train(job, self._rank)
        elif self._first:  # fitted in one go, by one of them
            self._training = self._worker.train(job)
        return self._place()

    def epoch(self) -> tuple["EpochResult | None", tuple[int, bool]]:
        result = self._training.epoch() if self._training else None
        return (result if self._first else None), self._place()

    def finish(self) -> "FoldResult | None":
        result = self._training.finish() if self._training else None
        return result if self._first else None

    def save(self, path: str | None, note: str) -> "NDArray[np.uint8] | None":
        """Write a checkpoint to `path`; None: give its content."""
        if not self._first:
            return None
        assert self._training is not None
        if path is not None:
            self._training.save(Path(path), note)
            return None
        with tempfile.TemporaryDirectory(prefix="rungfold-rank-") as folder:
            file = Path(folder, "checkpoint")
            self._training.save(file, note)
            return np.fromfile(file, dtype=np.uint8)

    def restore(self, node: str, path: str, content: list[Any]) -> tuple[str, tuple[int, bool]]:
        """Go on from a checkpoint, which is at `path` on one node, and elsewhere is the one object
        that is referred to; its note."""
        note = ""
        if self._training is not None:
            if node == this_node():
                note = self._training.restore(Path(path))
            else:
                with tempfile.TemporaryDirectory(prefix="rungfold-rank-") as folder:
                    file = Path(folder, "checkpoint")
                    ray.get(content[0]).tofile(file)
                    note = self._training.restore(file)
        return note, self._place()

    def _place(self) -> tuple[int, bool]:
        training = self._training
        return (training.state.epoch, training.done) if training else (0, False)

    def close(self) -> None:
        """Delete what was copied to this host."""
        if self._files is not None:
            self._files.close()


# --- in the process of the trial's worker


class Group:
    """Ranks that train together, from when they are first needed until `stop`."""

    SERVE = staticmethod(serve)

    def __init__(self, context: Context, ranks: int, *, gpu: bool = True) -> None:
        """Each rank has a GPU, or with `gpu` off none, and its part of the trial's CPUs."""
        self.ranks, self._gpu = ranks, gpu
        self._context = dataclasses.replace(
            context, gpus=1.0 if gpu else 0.0, threads=max(1, context.threads // ranks)
        )
        self._cpus = context.threads * UNIT // ranks / UNIT  # all of them must not exceed it
        self._desk: Any = None
        self._thread: threading.Thread | None = None
        self._reason = ""  # why it ended
        self._facts: list[dict[str, Any]] = []

    def start(self) -> None:
        """Have the ranks ready, if they are not. Raises Lost when there is no room for them, and
        what keeps a rank's host from training."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.stop()
        self._desk = ray.remote(num_cpus=0)(Desk).remote(self.ranks)
        self._thread = threading.Thread(target=self._fit, args=(self._desk,), daemon=True)
        self._thread.start()
        try:
            self._facts = self._answers(ROOM_SECONDS)
        except BaseException:
            self.stop()
            raise

    @property
    def where(self) -> dict[str, str]:
        """Where it trains, as reports say it."""
        first = self._facts[0]
        return {"host": first["host"], "machine": f"{self.ranks} x {first['machine']}"}

    @property
    def nodes(self) -> list[str]:
        """Ray's name of each rank's host."""
        return [facts["node"] for facts in self._facts]

    def ask(self, name: str, *arguments: Any) -> Any:
        """Rank 0's answer to a command that all carry out. Raises their error, and Lost when one of
        them is gone."""
        if self._desk is None:
            raise Lost("the group has ended")
        try:
            ray.get(self._desk.tell.remote(name, arguments))
        except RayError as error:
            raise Lost(f"the group's desk is gone: {error}") from None
        return self._answers()[0]

    def stop(self) -> None:
        """End the ranks, and give back what they took."""
        thread, desk = self._thread, self._desk
        self._thread = self._desk = None
        if thread is None:
            return
        with contextlib.suppress(RayError):
            ray.get(desk.tell.remote("stop", ()), timeout=STOP_SECONDS)
        thread.join(STOP_SECONDS)
        if thread.is_alive():  # they wait for each other: Ray Train ends what is left of them
            for facts in self._facts:
                ray.kill(facts["actor"])
            thread.join(STOP_SECONDS)
        self._facts = []
        ray.kill(desk)

    def _answers(self, seconds: float = float("inf")) -> list[Any]:
        """What all ranks have to tell, by rank."""
        desk, thread = self._desk, self._thread
        assert thread is not None
        end, given_up = time.monotonic() + seconds, float("inf")
        while True:
            if not self._facts:  # it waits for room, and Ray may know only now who is dead
                _free_orphans()
            alive = thread.is_alive()  # looked at first: the last answers came before the end
            try:
                answers = ray.get(desk.answers.remote(LOOK_SECONDS))
                failures = [a for a in answers.values() if isinstance(a, Exception)]
                if len(answers) == self.ranks and not failures:
                    return [ray.get(answers[rank][0]) for rank in range(self.ranks)]
            except RayError as error:
                self.stop()
                raise Lost(f"a rank's answer is gone: {error}") from None
            if len(answers) == self.ranks:
                break
            if not alive:
                self.stop()
                raise Lost(self._reason)
            if failures:
                given_up = min(given_up, time.monotonic() + STUCK_SECONDS)
            if time.monotonic() > given_up:
                break
            if time.monotonic() > end:
                raise Lost(f"no room for {self.ranks} ranks in {seconds:.0f} s")
        worst = min(failures, key=_hearsay)
        if len(answers) < self.ranks or isinstance(worst, RankFailed):  # may be out of step
            self.stop()
        raise worst

    def _fit(self, desk: Any) -> None:
        """Run the ranks to their end."""
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources: dict[str, float] = {"CPU": self._cpus}
        if self._gpu:
            resources["GPU"] = 1
        try:
            # Ray Train wants a place for checkpoints, which nobody writes there.
            with tempfile.TemporaryDirectory(prefix="rungfold-group-") as scratch:
                TorchTrainer(
                    self.SERVE,
                    train_loop_config={"context": self._context, "desk": desk},
                    scaling_config=ScalingConfig(
                        num_workers=self.ranks,
                        use_gpu=self._gpu,
                        resources_per_worker=resources,
                    ),
                    run_config=RunConfig(  # type: ignore[call-arg]  # mypy sees version 1
                        name="group",
                        storage_path=scratch,
                        # Who comes back has forgotten what it was told.
                        failure_config=FailureConfig(  # type: ignore[call-arg]
                            max_failures=0, max_preemption_failures=0
                        ),
                        logging_config=LoggingConfig(log_level="ERROR"),
                    ),
                ).fit()
            self._reason = "the group has ended"
        except Exception as error:
            self._reason = _reason(error)


def _hearsay(error: Exception) -> bool:
    """Whether a rank only says that another one failed."""
    from search.train.parallel import PeerFailed

    return isinstance(error, PeerFailed)


def _reason(error: Exception) -> str:
    """Ray Train's error in a line: which rank died, and of what."""
    told = "the group broke off"
    for rank, failure in getattr(error, "worker_failures", {}).items():
        told, error = f"rank {rank} is gone", getattr(failure, "health_check_failure", failure)
        break
    return f"{told}: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"


def _free_orphans() -> None:
    """Give back what groups of this run hold whose worker was killed. Ray lets them have it until
    the run ends, and Ray Train's own cleaner needs the dashboard."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for data in state._connect_and_get_accessor().get_placement_group_table():
        held = PlacementGroupTableData.FromString(data)
        ours = held.creator_job_id.hex() == job and held.state != PlacementGroupTableData.REMOVED
        # Those of the driver, Tune's, have no actor, which Ray takes for a dead one.
        by_actor = not ray.ActorID(held.creator_actor_id).is_nil()
        if ours and by_actor and held.creator_actor_dead:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(held.placement_group_id)))
