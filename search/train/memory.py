"""Running out of device memory: the micro-batch halves, the effective batch stays."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """The device's memory does not hold the model with a single sample."""


def with_halving(
    attempt: Callable[[int], Result], micro_batch: int, undo: Callable[[], None], device: str
) -> tuple[Result, int]:
    """Run attempt(micro_batch), halving the micro-batch as long as memory runs out.

    `undo` is called after each failure and must leave no trace of it. Returns the result and the
    micro-batch that served. Raises OutOfMemory when a micro-batch of 1 fails.
    """
    while True:
        try:
            return attempt(micro_batch), micro_batch
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside the except clause: the traceback holds the failed attempt's tensors.
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        undo()
        if micro_batch == 1:
            raise OutOfMemory(f"a micro-batch of 1 does not fit in memory ({reason})")
        micro_batch = (micro_batch + 1) // 2
        logger.warning("out of memory (%s); micro-batch is now %d", reason, micro_batch)


def pieces(rows: int, micro_batch: int) -> list[slice]:
    """Cut a batch of `rows` into as few parts as the micro-batch allows, of near equal size: a
    last part of one row would break batch statistics."""
    count = -(-rows // micro_batch)
    bounds = [rows * i // count for i in range(count + 1)]
    return [slice(bounds[i], bounds[i + 1]) for i in range(count)]
