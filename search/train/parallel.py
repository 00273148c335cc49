"""What a rank is: one of several processes, each with a device, that train the same fold together.

All hold the same network. Of every batch each trains a share of the rows; then their gradients are
added up, so that all take the step that one device would take with the whole batch. Every message
between ranks is an operation that all take part in, in the same order: one that fails must not
leave the others waiting.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from search.model.memory import out_of_memory

Result = TypeVar("Result")
_STATISTICS = ("running_mean", "running_var")  # of batch norms
_FULL, _FAILED = -2, -1  # places of the counts of ranks that failed, in what is added up
_MARKS = 2


class PeerFailed(RuntimeError):
    """Another rank could not go on; there the reason is raised."""


class PeerFull(MemoryError):
    """Another rank ran out of memory."""


class Rank:
    """The place of this process among those that train together; as it is, the only one."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @classmethod
    def here(cls) -> "Rank":
        """This process's place in torch's default process group."""
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, rows: int) -> slice:
        """Which of so many rows are this rank's. Shares differ by a row at most."""
        return slice(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def largest_share(self, rows: int) -> int:
        """Rows of the rank that has most of them."""
        return -(-rows // self.count)

    def gather(self, compute: Callable[[], Result]) -> list[Result]:
        """What `compute` gives on each rank, by rank. When it fails on one, all raise: that one
        its own error, the others PeerFailed."""
        if self.count == 1:
            return [compute()]
        found: list[Any] = [None] * self.count
        try:
            mine = compute()
        except Exception:
            dist.all_gather_object(found, (False, None))
            raise
        dist.all_gather_object(found, (True, mine))
        if not all(well for well, _ in found):
            raise PeerFailed("another rank failed")
        return [value for _, value in found]

    @torch.no_grad()
    def equalise(self, network: nn.Module) -> None:
        """Give every rank the first one's weights: random numbers and files of theirs may differ
        from host to host."""
        if self.count == 1:
            return
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                held = tensor.contiguous()
                dist.broadcast(held, 0)
                tensor.copy_(held)


class Peers:
    """The ranks on their way through the epochs of one network.

    Gradients are added up in one piece after the backward pass, not by DistributedDataParallel
    during it: a rank that ran out of memory in between would leave the others waiting for ever.
    Here it takes part with zeros and a mark, until the others look at the marks and undo the epoch
    with it. They look after steps 1, 2, 4, 8 and so on, and after the last: a look waits for the
    device, and this way at most as many steps again are taken in vain as were taken before.
    """

    def __init__(self, network: nn.Module, rank: Rank | None = None) -> None:
        self.rank = Rank() if rank is None else rank
        self._taken = self._steps = 0  # of this epoch
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._statistics = [
            b for name, b in network.named_buffers() if name.rpartition(".")[2] in _STATISTICS
        ]
        if self.rank.count == 1:
            return
        tensors = [*self._parameters, *self._statistics]
        size = sum(tensor.numel() for tensor in tensors)
        self._sum = torch.zeros(size + _MARKS, device=tensors[0].device)
        self._loss = torch.zeros(1 + _MARKS, device=tensors[0].device)
        # Each tensor's part of the sum, laid out in memory as the tensor is.
        parts = self._sum[:size].split([tensor.numel() for tensor in tensors])
        views = [p.as_strided(t.shape, t.stride()) for p, t in zip(parts, tensors, strict=True)]
        self._gradient_views = views[: len(self._parameters)]
        self._statistic_views = views[len(self._parameters) :]

    @contextlib.contextmanager
    def epoch(self, steps: int) -> Iterator[None]:
        """An epoch of so many steps, all of whose sums are made in here.

        Raises on all ranks when one fails: there its own error, on the others PeerFull when it ran
        out of memory, else PeerFailed.
        """
        self._taken, self._steps = 0, steps
        if self.rank.count > 1:
            self._sum[-_MARKS:] = 0
        try:
            yield
        except (PeerFull, PeerFailed):
            raise
        except Exception as error:
            if self.rank.count > 1:
                self._fall_out(_FULL if out_of_memory(error) else _FAILED)
            raise

    def sum_gradients(self) -> None:
        """Give every parameter the sum of its gradients on all ranks, which must have gradients of
        the same parameters, and batch norms the mean of their statistics."""
        if self.rank.count == 1:
            return
        views, held = self._statistic_views, self._statistics
        targets, sources = list(views), list(held)
        for view, parameter in zip(self._gradient_views, self._parameters, strict=True):
            if parameter.grad is not None:
                targets.append(view)
                sources.append(parameter.grad)
        with torch.no_grad():
            torch._foreach_copy_(targets, sources)
            self._add_up(self._sum)
            for view, parameter in zip(self._gradient_views, self._parameters, strict=True):
                if parameter.grad is not None:
                    parameter.grad = view
            if held:
                torch._foreach_div_(views, self.rank.count)
                torch._foreach_copy_(held, views)

    def sum_loss(self, loss: Tensor) -> float:
        """The sum of the ranks' losses, after the last step of an epoch."""
        if self.rank.count == 1:
            return float(loss)
        self._loss.zero_()
        self._loss[0] = loss
        self._add_up(self._loss)
        return float(self._loss[0])

    def _add_up(self, numbers: Tensor) -> None:
        dist.all_reduce(numbers)
        self._taken += 1
        if self._taken & (self._taken - 1) == 0 or self._taken > self._steps:
            full, failed = numbers[-_MARKS:].tolist()
            if failed:
                raise PeerFailed("another rank failed")
            if full:
                raise PeerFull("another rank is out of memory")

    def _fall_out(self, mark: int) -> None:
        """Take part in what the others add up until they look at the marks."""
        with contextlib.suppress(PeerFull, PeerFailed):
            while True:
                numbers = self._sum if self._taken < self._steps else self._loss
                numbers.zero_()
                numbers[mark] = 1
                self._add_up(numbers)
