"""Batches: rows of an image store as normalised, augmented batches on the device.

Letters: N rows, V views of a row, R rows of a batch, B = R*V its images, T outputs, C channels,
H height, W width. A store holds N*V images, those of row r at r*V .. r*V + V-1.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from search.data.augment import (
    Draws,
    brighten,
    colour_map,
    dihedral_each,
    draw,
    hue,
    recolour,
    to_async,
    warp,
)
from search.data.pairs import mix
from search.data.stain import hed_jitter, normalise_stain
from spaces.recipe import Augment

WHITE = 255.0  # a store's brightest value
STEP = 1 / WHITE  # least deviation that pixels are divided by: one grey level
STATISTICS = 512  # images that a fold's statistics are taken from, at most
BLOCK = 64  # images of them held as numbers at a time
PIECE = 2**18  # pixels that a CPU prepares at a time; measured: docs/decisions.md


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


def channel_statistics(
    images_NHWC: np.ndarray | Tensor, rows: np.ndarray, views: int, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation in [0, 1] of the first `channels` over all pixels of the rows' images, or
    of STATISTICS images evenly spread among them; the same numbers on every device."""
    images_NHWC = images_NHWC if isinstance(images_NHWC, Tensor) else as_tensor(images_NHWC)
    index = (np.asarray(rows, dtype=np.int64)[:, None] * views + np.arange(views)).ravel()
    taken = np.linspace(0, len(index) - 1, min(len(index), STATISTICS)).round().astype(np.int64)
    first, second = torch.zeros(2, channels, dtype=torch.int64)
    for part in torch.from_numpy(index[taken]).to(images_NHWC.device).split(BLOCK):
        pixels_BHWC = images_NHWC.index_select(0, part)[..., :channels].to(torch.int32)
        first += pixels_BHWC.sum((0, 1, 2)).cpu()  # sums of whole numbers are exact
        second += pixels_BHWC.square().sum((0, 1, 2)).cpu()
    count = len(taken) * images_NHWC.shape[1] * images_NHWC.shape[2]
    mean = first.double() / count
    std = (second.double() / count - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / WHITE).tolist()), tuple((std / WHITE).clamp(min=STEP).tolist())


class Batches:
    """Some rows of a store with their targets.

    `images_NHWC` is uint8, a memory map or what `to_device` made of it; `targets_NT` float32, and
    `rows` index it. Images are square; they are resized on the device when `image_size` is not the
    store's, antialiased when it is smaller. The first `channels` of the store's are read.

    `normalise` "image" takes each image's own mean and deviation per channel in place of `mean`
    and `std`; every other word uses those. `stain` other than "none" needs RGB. `mirror_views` and
    `mirror_targets` say which view, and which target, of a row takes the place of each when left
    and right change; None: each keeps its own. `weights_N` are the rows' chances to be drawn.
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
        *,
        views: int = 1,
        channels: int = 3,
        normalise: str = "imagenet",
        stain: str = "none",
        mirror_views: Sequence[int] | None = None,
        mirror_targets: Sequence[int] | None = None,
        weights_N: np.ndarray | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.images_NHWC = (
            images_NHWC if isinstance(images_NHWC, Tensor) else as_tensor(images_NHWC)
        )
        self.targets_NT = targets_NT.to(self.device)
        self.rows = torch.from_numpy(np.array(rows, dtype=np.int64))
        self.image_size, self.views, self.channels = image_size, views, channels
        self.stain, self.own_statistics = stain, normalise == "image"
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        if self.own_statistics:
            self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self._check()
        self._mirror_views = None if mirror_views is None else _swaps(mirror_views, views, "view")
        self._mirror_targets = None
        if mirror_targets is not None and targets_NT.ndim == 2:  # else rows are only predicted
            places_T = _swaps(mirror_targets, targets_NT.shape[1], "target")
            self._mirror_targets = places_T.to(self.device)
        self._weights_N = _weights(weights_N, len(self.rows))
        # One row of pixels wide: an inner dimension of 3 would keep the CPU from vectorising.
        gain = 1 / torch.tensor(self.std, dtype=torch.float64)
        offset = -torch.tensor(self.mean, dtype=torch.float64) * gain
        self._gain = gain.float().repeat(image_size).to(self.device)
        self._offset = offset.float().repeat(image_size).to(self.device)

    def _check(self) -> None:
        stored = self.images_NHWC.shape[3]
        if self.channels > stored:
            raise ValueError(f"channels is {self.channels}; the stored images have {stored}")
        if not len(self.mean) == len(self.std) == self.channels:
            given = f"{len(self.mean)} means and {len(self.std)} deviations"
            raise ValueError(f"{given} are given for {self.channels} channels")
        if self.stain != "none" and self.channels != 3:
            raise ValueError(f"stain is {self.stain!r}; {self.channels} channels are not RGB")

    def epoch(
        self,
        batch_size: int,
        augment: Augment,
        generator: torch.Generator,
        drop_last: bool = False,
        share: Callable[[int], slice] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of `batch_size` rows: images_BCHW normalised float32 channels_last, the
        views of a row one after another, and targets_RT; augmented and, where `augment` says so,
        mixed in pairs. The CPU generator alone decides them. Given as many rows as a batch has,
        `share` says which of them are wanted; None: all.

        A last batch of one sample is left out, since batch norm cannot train on it; another
        sample will be the last next time. Rows fewer than `batch_size` make one batch. With
        weights as many rows are drawn as there are, and put back each time.
        """
        if augment.mirror and self._mirror_views is None and self._mirror_targets is None:
            raise ValueError("mirror is on, but nothing says which views or targets change places")
        order = self.rows[self._shuffle(generator)]
        for cut in _cuts(len(order), batch_size, drop_last):
            part = order[cut]
            draws = draw(augment, len(part), generator, self.views)
            images = self._images(part, draws.mirror_R)
            rows, draws = to_async(part, self.device), draws.to(self.device)
            targets_RT = self._targets(rows, draws.mirror_R)
            wanted = slice(0, len(part)) if share is None else share(len(part))
            mixed = augment.mixup or augment.cutmix
            needed = _with_neighbour(wanted, len(part)) if mixed else [wanted]
            images_BCHW = self._prepare(images, draws, needed)
            images_BCHW, targets_RT = mix(images_BCHW, targets_RT, augment, generator, self.views)
            yield images_BCHW[self._images_of(wanted)], targets_RT[wanted]

    def ordered(self, batch_size: int) -> Iterator[Tensor]:
        """The images_BCHW of `batch_size` rows at a time, without augmentation, in the order of
        `rows`, none left out."""
        for part in self.rows.split(batch_size):
            yield self._prepare(self._images(part), Draws(), [slice(0, len(part))])

    def _shuffle(self, generator: torch.Generator) -> Tensor:
        count = len(self.rows)
        if self._weights_N is None:
            return torch.randperm(count, generator=generator)
        return torch.multinomial(self._weights_N, count, replacement=True, generator=generator)

    def _images(self, part: Tensor, mirror_R: Tensor | None = None) -> Tensor:
        """Where the store holds the views of `part` of the rows, on the CPU."""
        if self.views == 1:
            return part
        view_V = torch.arange(self.views)
        if mirror_R is not None and self._mirror_views is not None:
            view_V = torch.where(mirror_R[:, None], self._mirror_views, view_V)
        return (part[:, None] * self.views + view_V).flatten()

    def _targets(self, rows: Tensor, mirror_R: Tensor | None) -> Tensor:
        targets_RT = self.targets_NT.index_select(0, rows)
        if mirror_R is None or self._mirror_targets is None:
            return targets_RT
        mirrored_RT = targets_RT.index_select(1, self._mirror_targets)
        return torch.where(mirror_R[:, None], mirrored_RT, targets_RT)

    def _read(self, images: Tensor) -> Tensor:
        """Those images' uint8 pixels_BHWC on the device.

        The steps that use them are only queued on a GPU, so the host reads a batch while the
        device still works on the one before.
        """
        if self.images_NHWC.device.type == self.device.type:
            pixels_BHWC = self.images_NHWC.index_select(0, to_async(images, self.device))
        else:
            shape = (len(images), *self.images_NHWC.shape[1:])
            pinned = self.device.type == "cuda"
            pixels_BHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            torch.index_select(self.images_NHWC, 0, images, out=pixels_BHWC)
            pixels_BHWC = pixels_BHWC.to(self.device, non_blocking=pinned)
        return pixels_BHWC[..., : self.channels].contiguous()

    def _images_of(self, rows: slice) -> slice:
        """Where the images of a batch's rows are among its images."""
        return slice(rows.start * self.views, rows.stop * self.views)

    def _prepare(self, images: Tensor, draws: Draws, needed: Sequence[slice]) -> Tensor:
        """Normalised float32 channels_last images_BCHW of those images of the store; what stands
        for rows that are not needed has no meaning.

        A CPU takes a few images through all steps before the next few: what lies between the steps
        then stays in its cache and in memory that the process already has.
        """
        size, count = self.image_size, len(images)
        out_BHWC = torch.empty((count, size, size, self.channels), device=self.device)
        step = count
        if self.device.type == "cpu":
            step = max(PIECE // max(size, self.images_NHWC.shape[1]) ** 2, 1)
        map_B37 = self._colour_map(draws)
        for rows in needed:
            span = self._images_of(rows)
            for start in range(span.start, span.stop, step):
                part = slice(start, min(start + step, span.stop))
                own_B37 = None if map_B37 is None else map_B37[part]
                self._fill(out_BHWC[part], self._read(images[part]), draws.part(part), own_B37)
        return out_BHWC.permute(0, 3, 1, 2)

    def _colour_map(self, draws: Draws) -> Tensor | None:
        """What brightness, contrast and saturation do to RGB images, if anything; where nothing
        follows them, normalising included."""
        if draws.colour_B3 is None or self.channels != 3:
            return None
        mean, std = self._scale(draws)
        return colour_map(draws.colour_B3, white=WHITE, mean=mean, std=std)

    def _scale(self, draws: Draws) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation that RGB images are normalised with when their colours change."""
        return (self.mean, self.std) if draws.hue_B is None else ((0.0,) * 3, (1.0,) * 3)

    def _fill(
        self, out_BHWC: Tensor, pixels_BHWC: Tensor, draws: Draws, map_B37: Tensor | None
    ) -> None:
        """Write uint8 pixels, augmented and normalised, to `out_BHWC`."""
        side, size = pixels_BHWC.shape[1], self.image_size
        if size < side:
            pixels_BHWC = resize(pixels_BHWC, size)
        if self.stain != "none":
            pixels_BHWC = normalise_stain(pixels_BHWC, self.stain)
        if size > side and draws.warp_B23 is None:
            pixels_BHWC = resize(pixels_BHWC, size)
        if draws.dihedral_B is not None:
            pixels_BHWC = dihedral_each(pixels_BHWC, draws.dihedral_B)
        self._colour(out_BHWC, pixels_BHWC, draws, map_B37)
        if self.own_statistics:
            standardise(out_BHWC.permute(0, 3, 1, 2))
        if draws.keep_B is not None:
            out_BHWC *= draws.keep_B[:, None, None, None]

    def _colour(
        self, out_BHWC: Tensor, pixels_BHWC: Tensor, draws: Draws, map_B37: Tensor | None
    ) -> None:
        """Write the pixels, warped, changed in colour and normalised by `mean` and `std`."""
        rgb = self.channels == 3
        hed_B34, hue_B = (draws.hed_B34, draws.hue_B) if rgb else (None, None)
        out_BCHW, images_BCHW = (x.permute(0, 3, 1, 2) for x in (out_BHWC, pixels_BHWC))
        if draws.warp_B23 is not None:  # enlarges in the same interpolation; gives planes
            images_BCHW = warp(images_BCHW.float(), draws.warp_B23, self.image_size)
        elif draws.colour_B3 is not None or hed_B34 is not None or hue_B is not None:
            # Planes: the matrix product takes a CPU a fraction of the time that it takes on
            # interleaved channels.
            images_BCHW = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
        if hed_B34 is not None:
            images_BCHW = hed_jitter(images_BCHW, hed_B34, WHITE)
        if map_B37 is not None:
            mean, std = self._scale(draws)
            images_BCHW = recolour(images_BCHW, map_B37, mean=mean, std=std)
            if hue_B is None:
                out_BCHW.copy_(images_BCHW)
                return
            images_BCHW = hue(images_BCHW, hue_B).mul_(WHITE)
        elif hue_B is not None:
            images_BCHW = hue(images_BCHW / WHITE, hue_B).mul_(WHITE)
        elif draws.colour_B3 is not None:
            images_BCHW = brighten(images_BCHW, draws.colour_B3, WHITE)
        out_BCHW.copy_(images_BCHW)
        lines_BHQ = out_BHWC.view(*out_BHWC.shape[:2], -1)  # Q = W*C
        torch.addcmul(self._offset, lines_BHQ, self._gain, value=1 / WHITE, out=lines_BHQ)


def standardise(images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] with mean 0 and deviation 1 in each channel, in place; where they deviate
    by less than a grey level, that much divides them."""
    var_BC11, mean_BC11 = torch.var_mean(images_BCHW, (2, 3), correction=0, keepdim=True)
    return images_BCHW.sub_(mean_BC11).mul_(var_BC11.clamp_(min=STEP**2).rsqrt_())


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


def _with_neighbour(rows: slice, count: int) -> list[slice]:
    """Some rows of a batch of `count`, and the one before them, which the first is mixed with."""
    if rows.start:
        return [slice(rows.start - 1, rows.stop)]
    return [rows] if rows.stop == count else [rows, slice(count - 1, count)]


def _swaps(places: Sequence[int], count: int, noun: str) -> Tensor:
    """The permutation of `count` views or targets, checked to be its own inverse."""
    given = list(places)
    if sorted(given) != list(range(count)) or any(given[given[i]] != i for i in range(count)):
        raise ValueError(f"{noun}s change places as {given}; each of {count} must swap or stay")
    return torch.tensor(given)


def _weights(weights_N: np.ndarray | None, rows: int) -> Tensor | None:
    """Chances of the rows, checked."""
    if weights_N is None:
        return None
    weights = np.asarray(weights_N, dtype=np.float64)
    if weights.shape != (rows,) or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"weights of shape {weights.shape} must be {rows} finite numbers >= 0")
    if not weights.any():
        raise ValueError("all sampling weights are 0; one at least must be positive")
    return torch.from_numpy(weights)
