"""How many trials share a GPU: as many as its memory, measured, and the CPU cores allow. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

HEADROOM = 0.1  # share of a GPU's memory that is left free
MOST = 8  # trials on a GPU
HOST_BYTES = 3 * 10**9  # memory of a process with torch and a CUDA context
STORE_SHARE = 0.4  # of a worker's share of a GPU's memory that the image store may take
UNIT = 10_000  # Ray counts shares of a GPU in so many parts


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How many trials share a GPU, and why."""

    trials: int  # on each GPU
    reason: str

    @property
    def gpus_per_trial(self) -> float:
        """Their share, rounded down: `trials` of them must not exceed a GPU."""
        return UNIT // self.trials / UNIT


def pack(
    peak_bytes: Mapping[str, int],
    store_bytes: int,
    total_bytes: int,
    *,
    cpus_per_gpu: int,
    cpus_per_trial: int = 1,
    memory_per_gpu: int,
) -> Packing:
    """As many trials on a GPU as it holds of the largest one.

    `peak_bytes` is what a worker takes of the GPU's `total_bytes` with each backbone; a store that
    may lie in the GPU's memory is held by every worker, and stays small enough to be held.
    `memory_per_gpu` is the machine's own memory in bytes, shared among its GPUs like its cores.
    """
    largest = max(peak_bytes, key=lambda backbone: peak_bytes[backbone])
    held = store_bytes if store_bytes <= STORE_SHARE * total_bytes else 0
    each = peak_bytes[largest] + held
    limits = {
        "its memory": int((1 - HEADROOM) * total_bytes // each),
        f"{cpus_per_gpu} CPU cores for each GPU": cpus_per_gpu // cpus_per_trial,
        f"{_gb(memory_per_gpu)} of the machine's memory": memory_per_gpu // HOST_BYTES,
        f"at most {MOST}": MOST,
    }
    if held:
        limits["room for a copy of the image store each"] = int(STORE_SHARE * total_bytes // held)
    limit = min(limits, key=lambda name: limits[name])
    trials = max(1, limits[limit])
    store = f" and {_gb(held)} for the image store" if held else ""
    return Packing(
        trials=trials,
        reason=(
            f"trials on a GPU {trials}: {largest} was measured to take {_gb(peak_bytes[largest])}"
            f"{store}, of {_gb(total_bytes)} less {HEADROOM:.0%}; limited by {limit}"
        ),
    )


def store_budget(total_bytes: int, free_bytes: int, gpus: float) -> int:
    """Bytes that the image store may take in the memory of a worker with a share of a GPU, or with
    `gpus` of them: of its share, so that it does not matter which worker comes first, and never
    more of what is free than of a share."""
    return int(STORE_SHARE * min(total_bytes * min(gpus, 1), free_bytes))


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
