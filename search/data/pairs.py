"""Pairs of samples: each row of a batch mixed with its neighbour in the shuffled batch.

Letters: R rows of a batch, V views of a row, B = R*V images, T outputs, C channels, H height,
W width. What is random is drawn on the CPU, per row, for all its views and its targets.
"""

import numpy as np
import torch
from torch import Tensor

from search.data.augment import to_async
from spaces.recipe import Augment


def mix(
    images_BCHW: Tensor,
    targets_RT: Tensor,
    augment: Augment,
    generator: torch.Generator,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix, as `augment` says; with both, a coin decides for the batch."""
    heads = bool(augment.cutmix)
    if augment.mixup and augment.cutmix:
        heads = bool(torch.rand((), generator=generator) < 0.5)
    if heads:
        return cutmix(images_BCHW, targets_RT, augment.cutmix, generator, views)
    return mixup(images_BCHW, targets_RT, augment.mixup, generator, views)


def mixup(
    images_BCHW: Tensor,
    targets_RT: Tensor,
    alpha: float,
    generator: torch.Generator,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """Each row mixed with its neighbour, the share drawn per row from Beta(alpha, alpha); 0
    changes nothing. Zhang et al. 2018."""
    if not alpha:
        return images_BCHW, targets_RT
    share = _numpy(generator).beta(alpha, alpha, len(targets_RT))
    share_R = to_async(torch.from_numpy(share).float(), images_BCHW.device)
    images_RVHWC = _by_row(images_BCHW, views)
    mixed_RVHWC = torch.lerp(
        images_RVHWC, images_RVHWC.roll(1, 0), share_R[:, None, None, None, None]
    )
    return _by_image(mixed_RVHWC), _shared(targets_RT, share_R)


def cutmix(
    images_BCHW: Tensor,
    targets_RT: Tensor,
    alpha: float,
    generator: torch.Generator,
    views: int = 1,
) -> tuple[Tensor, Tensor]:
    """In each row a box, the same in all its views, holds the neighbour's pixels; the share of its
    area is drawn from Beta(alpha, alpha), its centre anywhere, and what lies outside the image is
    cut off. Targets are mixed by the area that is left. 0 changes nothing. Yun et al. 2019."""
    if not alpha:
        return images_BCHW, targets_RT
    rng, rows, side_2 = _numpy(generator), len(targets_RT), np.array(images_BCHW.shape[2:])
    half_R1 = np.sqrt(rng.beta(alpha, alpha, rows))[:, None] / 2
    centre_R2 = rng.random((rows, 2))
    low_R2, high_R2 = (
        np.rint(np.clip(edge_R2, 0, 1) * side_2)
        for edge_R2 in (centre_R2 - half_R1, centre_R2 + half_R1)
    )
    share = torch.from_numpy((high_R2 - low_R2).prod(1) / side_2.prod()).float()
    share_R = to_async(share, images_BCHW.device)
    box_R4 = to_async(torch.from_numpy(np.hstack((low_R2, high_R2))).long(), images_BCHW.device)
    line_H, line_W = (torch.arange(int(n), device=images_BCHW.device) for n in side_2)
    tall_RH = (line_H >= box_R4[:, 0, None]) & (line_H < box_R4[:, 2, None])
    wide_RW = (line_W >= box_R4[:, 1, None]) & (line_W < box_R4[:, 3, None])
    inside_RHW = tall_RH[:, :, None] & wide_RW[:, None, :]
    images_RVHWC = _by_row(images_BCHW, views)
    mixed_RVHWC = torch.where(
        inside_RHW[:, None, :, :, None], images_RVHWC.roll(1, 0), images_RVHWC
    )
    return _by_image(mixed_RVHWC), _shared(targets_RT, share_R)


def _numpy(generator: torch.Generator) -> np.random.Generator:
    """torch samples no Beta from a generator of its own, so numpy is seeded by ours."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))


def _by_row(images_BCHW: Tensor, views: int) -> Tensor:
    return images_BCHW.permute(0, 2, 3, 1).unflatten(0, (-1, views))


def _by_image(images_RVHWC: Tensor) -> Tensor:
    return images_RVHWC.flatten(0, 1).permute(0, 3, 1, 2)


def _shared(targets_RT: Tensor, share_R: Tensor) -> Tensor:
    return torch.lerp(targets_RT, targets_RT.roll(1, 0), share_R[:, None])
