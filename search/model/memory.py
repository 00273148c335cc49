"""Running out of memory: the batch halves. In training the effective batch stays."""

import contextlib
import logging
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# What the CPU's allocator, Apple's GPUs and pinned memory raise is a plain RuntimeError.
_WORDS = ("can't allocate memory", "out of memory")


class OutOfMemory(RuntimeError):
    """Memory does not hold the model with a single sample."""


def with_halving(
    attempt: Callable[[int], Result], batch: int, undo: Callable[[], None], device: str
) -> tuple[Result, int]:
    """Run attempt(batch), halving the batch as long as memory runs out.

    `undo` is called after each failure and must leave no trace of it. Returns the result and the
    batch that served; a smaller one is logged, once. Raises OutOfMemory when a batch of 1 fails.
    """
    given, reason = batch, ""
    while True:
        try:
            result = attempt(batch)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if isinstance(error, OutOfMemory) or not out_of_memory(error):
                raise
            reason = str(error).split(". ")[0]
        else:
            if batch < given:
                logger.warning("out of memory (%s): batches of %d, not %d", reason, batch, given)
            return result, batch
        # Outside the except clause: the traceback holds the failed attempt's tensors.
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        undo()
        if batch == 1:
            raise OutOfMemory(f"a batch of 1 does not fit in memory ({reason})")
        batch = (batch + 1) // 2


def pieces(rows: int, micro_batch: int) -> list[slice]:
    """Cut a batch of `rows` into as few parts as the micro-batch allows, of near equal size: a
    last part of one row would break batch statistics."""
    count = -(-rows // micro_batch)
    bounds = [rows * i // count for i in range(count + 1)]
    return [slice(bounds[i], bounds[i + 1]) for i in range(count)]


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out, whoever raised it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def reset_peak(device: str) -> None:
    """Begin to look for the most memory that is held from now on."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # only Linux can forget an earlier peak
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Bytes of the device since `reset_peak`; on the CPU, of this process, where the system tells
    it without the files that it maps: images and libraries, which processes share."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines)
        peak, files, shared = (int(told[n].split()[0]) for n in ("VmHWM", "RssFile", "RssShmem"))
        return (peak - files - shared) * 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
