"""Compiled steps of training: the same numbers from fewer and larger kernels."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
Forward = Callable[[Tensor], Tensor]  # images_XCHW -> raw outputs_BT


class CompiledNetwork:
    """The forward pass of a network in training, compiled when it is first run.

    The network itself stays as it is: its state has the same names, and who evaluates it, or an
    average of it, runs it uncompiled.
    """

    def __init__(self, network: nn.Module, device: str, batch: int) -> None:
        """`batch`: rows of an optimiser step that this device takes."""
        self._network, self._batch = network, batch
        self._cuda = torch.device(device).type == "cuda"
        self._micro_batch = 0  # that `_forward` is for
        self._forward: Forward = network

    def at(self, micro_batch: int) -> Forward:
        """The forward pass for steps of micro-batches of so many rows."""
        if micro_batch != self._micro_batch:
            forget()
            options: dict[str, Any] = {
                "fallback_random": True,  # dropout draws as it does uncompiled
                "compile_threads": torch.get_num_threads(),  # those of the worker, not all cores
                # What a graph leaves in its memory is lost when it is replayed, gradients too, so
                # they could not be accumulated.
                "triton.cudagraphs": self._cuda and micro_batch >= self._batch,
            }
            self._forward = torch.compile(self._network, dynamic=False, options=options)
            self._micro_batch = micro_batch
        return self._forward


def give_up(error: Exception) -> None:
    """Say why a compiled network did not run."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    logger.warning("--compile failed (%s); the fold is trained without it", reason)
    forget()


def forget() -> None:
    """Free all that this process has compiled: a worker would keep the memory of its graphs for
    ever, and compile no more after eight networks."""
    torch.compiler.reset()
