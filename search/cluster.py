"""Connecting to Ray: a local instance of its own, or the cluster at an address; always quiet."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from search.exchange import Keeper, Keeps, Unreachable
from search.plan import Plan, Resources
from spaces.errors import UserError

# Set before ray is imported: it reads them at import or when it starts its processes.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",  # hospitals: nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # every result is judged when it comes
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the journal is the truth, not Ray's state
    "TUNE_WARN_THRESHOLD_S": "1000000",
}
# What trainings need is imported by Ray's processes as they start, before a trial asks for them.
PRELOAD = {
    "RAY_preload_python_modules": "torch,timm,ray.tune,search.train.fold",
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",  # decoding may take long
}
ROOM_SECONDS = 3.0  # between two looks at what a cluster has
AGAIN_SECONDS = 2.0  # until a call is tried again that a hiccup of the network broke off,
TRIES = 10  # at most so often
OBJECT_STORE_BYTES = 200 * 2**20  # reports are small; images come from the store on disk
LAUNCHER = "ray_bootstrap_config.yaml"  # of `ray up`, in the head's home; JSON
KNOCK_SECONDS = 5.0
KEEPER_THREADS = 8  # workers whose files are read and written at the same time
LOGS: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def local_resources() -> Resources:
    """The CPU cores and GPUs that this process may use, and the memory that is free."""
    import psutil

    gpus = 0
    # Importing torch costs seconds: only where there is a driver to ask.
    if any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        import torch

        gpus = torch.cuda.device_count()
    return Resources(
        cpus=len(os.sched_getaffinity(0)),
        gpus=gpus,
        memory_bytes=psutil.virtual_memory().available,
    )


def start(resources: Resources, workers: int, cpus: int) -> None:
    """Ray started here for so many workers of `cpus` CPUs each, unless it runs already. Called
    early: while the driver looks at the data, workers' processes import what trainings need. Not in
    a thread: Ray forks, which hangs while another thread computes."""
    ray = _import_ray()
    if ray.is_initialized():
        return
    os.environ.pop("RAY_ADDRESS", None)
    if not resources.gpu and cpus == 1:  # Ray starts a process for each CPU: here all are workers
        os.environ.update(PRELOAD)
    ray.init(
        num_cpus=resources.cpus if resources.gpu else workers * cpus,
        num_gpus=resources.gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **LOGS,
    )
    # A worker that asks for variables of its own gets a new process, never one that waits. This one
    # keeps PyTorch Lightning from forking, which nobody here does.
    from ray.tune.execution.class_cache import DEFAULT_ENV_VARS

    DEFAULT_ENV_VARS.pop("PL_DISABLE_FORK", None)


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """The cluster at `address` joined, or with None what `start` started here kept; left, or shut
    down, in the end.

    Raises UserError when nothing answers at the address.
    """
    # A head of Ray 2.60 asks for the token in this file, but a driver sends it only when told to,
    # and that before ray is imported.
    if address is not None and (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    ray = _import_ray()
    try:
        if address is not None:
            _join(address)
        yield
    finally:
        ray.shutdown()


def _import_ray() -> ModuleType:
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # lost workers are told by us
    # Lost hosts as well, which Ray prints however its logs are set.
    ray._private.worker.print_to_stdstream = lambda *told, **how: None
    return ray


def _join(address: str) -> None:
    import ray

    if address.startswith("ray://"):
        raise UserError(
            f"--address is {address!r}; the search runs on a host of the cluster: give --address "
            "auto there, or submit it with `ray job submit` (docs/cluster.md)"
        )
    try:
        _knock(address)
        ray.init(address=address, **LOGS)
    except (OSError, ValueError) as error:  # ConnectionError and TimeoutError are OSErrors
        first = str(error).splitlines()[0]
        raise UserError(
            f"no Ray cluster answers at {address!r} ({first}); start one with `ray up "
            "cluster.yaml`, or leave --address out to use this machine alone"
        ) from None


def _knock(address: str) -> None:
    """Raises OSError within seconds when nobody listens at HOST:PORT; Ray takes over a minute."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def cluster_resources() -> Resources:
    """What the connected cluster has, or may grow to when its autoscaler says so."""
    import ray

    have = ray.cluster_resources()
    grow = _may_grow_to(Path.home() / LAUNCHER)
    return Resources(
        cpus=int(max(have.get("CPU", 0), grow.get("CPU", 0))),
        gpus=int(max(have.get("GPU", 0), grow.get("GPU", 0))),
        memory_bytes=int(have.get("memory", 0)),
        hosts=tuple(
            (int(host["Resources"].get("CPU", 0)), int(host["Resources"].get("GPU", 0)))
            for host in ray.nodes()
            if host["Alive"]
        ),
    )


def _may_grow_to(settings: Path) -> dict[str, int]:
    """CPUs and GPUs of all workers that the launcher may start, by its settings, which `ray up`
    leaves on the head: Ray tells them to no driver. Empty where there are none."""
    try:
        told = json.loads(settings.read_text(encoding="utf-8"))
        left, total = int(told["max_workers"]), dict[str, int]()
        for name, kind in told["available_node_types"].items():
            if name == told["head_node_type"]:
                continue
            count = min(int(kind["max_workers"]), left)
            left -= count
            for resource, amount in kind["resources"].items():
                total[resource] = total.get(resource, 0) + count * int(amount)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return total


def room(plan: Plan) -> Callable[[], int]:
    """How many workers the connected cluster has room for, or would have if it grew: asked often,
    as hosts come and go, and looked up now and then. At least one: without any it is waited for."""
    looked, found = -ROOM_SECONDS, plan.workers

    def workers() -> int:
        nonlocal looked, found
        if time.monotonic() - looked > ROOM_SECONDS:
            places = cluster_resources().places(plan.cpus_per_trial, plan.gpus_per_trial)
            looked, found = time.monotonic(), max(1, places)
        return found

    return workers


class _Calls:
    """A Keeper on another host."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def size(self, path: str) -> int | None:
        found: int | None = _call(self._keeper.size, path)
        return found

    def read(self, path: str, offset: int) -> bytes:
        return bytes(_call(self._keeper.read, path, offset))

    def write(self, path: str, offset: int, piece: bytes, last: bool) -> None:
        _call(self._keeper.write, path, offset, piece, last)


def _call(method: Any, *arguments: Any) -> Any:
    """Raises Unreachable when the keeper or its host is gone, or silent for long."""
    import ray
    from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

    for left in reversed(range(TRIES)):
        try:
            return ray.get(method.remote(*arguments))
        except ActorUnavailableError as error:
            if not left:
                raise Unreachable(f"the driver's host does not answer: {error}") from None
            time.sleep(AGAIN_SECONDS)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise Unreachable(f"the driver's host is gone: {error}") from None


def start_keeper(run: str, others: Sequence[str]) -> Keeps:
    """A keeper of the run's files on this host, which ends with this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = ray.remote(Keeper).options(
        num_cpus=0, max_concurrency=KEEPER_THREADS, scheduling_strategy=here
    )
    return _Calls(keeper.remote(run, others))
