"""Batches: rows of an image store as normalised, augmented batches on the device.

Letters: N store rows, B batch, T outputs, C channels, H height, W width.
"""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.data.augment import Draws, colour, dihedral_each, draw, hue, mixup, to_async, warp
from spaces.recipe import Augment

WHITE = 255.0  # a store's brightest value


def as_tensor(images_NHWC: np.ndarray) -> Tensor:
    """The store's memory as a tensor; nothing here writes to a read-only map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(np.asarray(images_NHWC))


def to_device(
    images_NHWC: np.ndarray, device: torch.device | str, budget_bytes: int
) -> np.ndarray | Tensor:
    """The store as a tensor in `device`'s memory when that is not the CPU and the store takes at
    most `budget_bytes`; else unchanged, to be read batch by batch."""
    device = torch.device(device)
    if device.type == "cpu" or images_NHWC.nbytes > budget_bytes:
        return images_NHWC
    return as_tensor(images_NHWC).to(device)


class Batches:
    """Some rows of a store with their targets.

    `images_NHWC` is uint8, a memory map or what `to_device` made of it; `targets_NT` float32 and
    `rows` index the same N. Images are square; they are resized on the device when `image_size`
    is not the store's, antialiased when it is smaller.
    """

    def __init__(
        self,
        images_NHWC: np.ndarray | Tensor,
        targets_NT: Tensor,
        rows: np.ndarray,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.images_NHWC = (
            images_NHWC if isinstance(images_NHWC, Tensor) else as_tensor(images_NHWC)
        )
        self.targets_NT = targets_NT.to(self.device)
        self.rows = torch.from_numpy(np.array(rows, dtype=np.int64))
        self.image_size = image_size
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        # One row of pixels wide: an inner dimension of 3 would keep the CPU from vectorising.
        gain = 1 / torch.tensor(self.std, dtype=torch.float64)
        offset = -torch.tensor(self.mean, dtype=torch.float64) * gain
        self._gain = gain.float().repeat(image_size).to(self.device)
        self._offset = offset.float().repeat(image_size).to(self.device)

    def epoch(
        self,
        batch_size: int,
        augment: Augment,
        generator: torch.Generator,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches (images_BCHW normalised float32 channels_last, targets_BT), augmented
        and, where `augment` says so, mixed up. The CPU generator alone decides them.

        A last batch of one sample is left out, since batch norm cannot train on it; another
        sample will be the last next time. Rows fewer than `batch_size` make one batch.
        """
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        for cut in _cuts(len(order), batch_size, drop_last):
            rows, pixels_BHWC = self._read(order[cut])
            draws = draw(augment, len(rows), generator).to(self.device)
            images_BCHW = self._prepare(pixels_BHWC, draws)
            targets_BT = self.targets_NT.index_select(0, rows)
            yield mixup(images_BCHW, targets_BT, augment.mixup, generator)

    def ordered(self, batch_size: int) -> Iterator[Tensor]:
        """Batches images_BCHW without augmentation, in the order of `rows`, none left out."""
        for part in self.rows.split(batch_size):
            yield self._prepare(self._read(part)[1], Draws())

    def _read(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """`part` of the rows and their uint8 pixels_BHWC, both on the device.

        The steps that use them are only queued on a GPU, so the host reads a batch while the
        device still works on the one before.
        """
        rows = to_async(part, self.device)
        if self.images_NHWC.device.type == self.device.type:
            return rows, self.images_NHWC.index_select(0, rows)
        shape = (len(part), *self.images_NHWC.shape[1:])
        pinned = self.device.type == "cuda"
        pixels_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self.images_NHWC, 0, part, out=pixels_BHWC)
        return rows, pixels_BHWC.to(self.device, non_blocking=pinned)

    def _prepare(self, pixels_BHWC: Tensor, draws: Draws) -> Tensor:
        """Normalised float32 channels_last images_BCHW of uint8 pixels."""
        side, size = pixels_BHWC.shape[1], self.image_size
        if size < side or (size > side and draws.warp_B23 is None):
            pixels_BHWC = resize(pixels_BHWC, size)
        if draws.dihedral_B is not None:
            pixels_BHWC = dihedral_each(pixels_BHWC, draws.dihedral_B)
        if draws.warp_B23 is None and draws.colour_B3 is None and draws.hue_B is None:
            return self._normalise(pixels_BHWC.float())
        # Planes: the matrix product and the interpolation take a CPU a fraction of the time that
        # they take on interleaved channels.
        images_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        if draws.warp_B23 is not None:  # enlarges in the same interpolation
            images_BCHW = warp(images_BCHW, draws.warp_B23, size)
        factors = None if draws.colour_B3 is None else draws.colour_B3.unbind(1)
        if draws.hue_B is not None:
            images_BCHW = (
                colour(images_BCHW, *factors, white=WHITE) if factors else images_BCHW / WHITE
            )
            images_BCHW = hue(images_BCHW, draws.hue_B) * WHITE
        elif factors:
            images_BCHW = colour(images_BCHW, *factors, white=WHITE, mean=self.mean, std=self.std)
            return images_BCHW.contiguous(memory_format=torch.channels_last)
        return self._normalise(images_BCHW.permute(0, 2, 3, 1).contiguous())

    def _normalise(self, values_BHWC: Tensor) -> Tensor:
        """(v / 255 - mean) / std of contiguous values in [0, 255], in place; channels_last."""
        batch, height, width, channels = values_BHWC.shape
        lines = values_BHWC.view(batch, height, width * channels)
        torch.addcmul(self._offset, lines, self._gain, value=1 / WHITE, out=lines)
        return values_BHWC.permute(0, 3, 1, 2)


def resize(pixels_BHWC: Tensor, size: int) -> Tensor:
    """uint8 images of side `size`, bilinear, antialiased when smaller."""
    images_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
    if pixels_BHWC.device.type == "cpu":  # in integers: 5 to 8 times as fast as in float32
        images_BCHW = F.interpolate(images_BCHW, (size, size), mode="bilinear", antialias=True)
    else:
        images_BCHW = images_BCHW.float()
        images_BCHW = F.interpolate(images_BCHW, (size, size), mode="bilinear", antialias=True)
        images_BCHW = images_BCHW.round_().clamp_(0, WHITE).to(torch.uint8)
    return images_BCHW.permute(0, 2, 3, 1).contiguous()


def _cuts(rows: int, batch_size: int, drop_last: bool) -> list[slice]:
    """Where an epoch of `rows` is cut into batches."""
    cuts = [slice(start, start + batch_size) for start in range(0, rows, batch_size)]
    rest = rows % batch_size
    if len(cuts) > 1 and (rest == 1 or (drop_last and rest)):
        cuts.pop()
    return cuts
