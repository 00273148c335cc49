"""What can be said of an image without looking where its pixels lie: statistics of its colours.

Shapes: N images, H and W pixels, C channels, P pixels of an image, F statistics, V views of a row.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Reals = NDArray[np.floating[Any]]
Images = NDArray[np.uint8]

# What haematoxylin, eosin and DAB absorb in red, green and blue (Ruifrok and Johnston 2001).
_HED = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_UNMIX = np.linalg.inv(_HED / np.linalg.norm(_HED, axis=1, keepdims=True)).astype(np.float32)
_BLOCK = 64  # images held as floats at a time
_SIDE = 64  # larger images are thinned out to about this many pixels a side: colour needs no more
_MOST = 500  # statistics of one row: a ridge on more of them is slow, and tells no more


def image_statistics(images_NHWC: Images) -> Floats:
    """(N, F) colour statistics of ordinary images, channel statistics of others."""
    of = colour_statistics if images_NHWC.shape[-1] == 3 else channel_statistics
    return of(images_NHWC)


def colour_statistics(images_NHWC: Images) -> Floats:
    """53 statistics of each image's colours, (N, 53).

    Mean, deviation, skewness and five percentiles of red, green and blue; hue (as a direction),
    saturation and value; haematoxylin, eosin and the rest of the optical density; correlations
    of channels; shares of bare and of dark pixels.
    """
    return _in_blocks(images_NHWC, _colours, 3)


def channel_statistics(images_NHWC: Images) -> Floats:
    """Mean, deviation, skewness and five percentiles of each channel, and the correlation of each
    pair, (N, 8 C + C (C - 1) / 2)."""
    return _in_blocks(images_NHWC, _channels, images_NHWC.shape[-1])


def join_views(x_NF: Floats, views: int) -> Floats:
    """The statistics of a row's images, which stand one after the other, as one: side by side, or
    where those are too many their mean and highest. Raises ValueError for rows that lack views."""
    if len(x_NF) % views:
        raise ValueError(f"{len(x_NF)} images are no rows of {views} views; each needs all of them")
    if views == 1:
        return x_NF
    x_NVF = x_NF.reshape(len(x_NF) // views, views, x_NF.shape[1])
    if views * x_NF.shape[1] <= _MOST:
        return x_NVF.reshape(len(x_NVF), -1)
    return np.concatenate([x_NVF.mean(axis=1), x_NVF.max(axis=1)], axis=1)


def _in_blocks(images_NHWC: Images, of: Callable[[Reals], Reals], channels: int) -> Floats:
    """`of` maps (n, P, C) values in [0, 1] to (n, F)."""
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] != channels or images_NHWC.dtype != np.uint8:
        raise ValueError(
            f"images are {images_NHWC.dtype} {images_NHWC.shape}; they must be uint8 "
            f"(N, H, W, {channels})"
        )
    step = tuple(max(1, side // _SIDE) for side in images_NHWC.shape[1:3])

    def block(start: int) -> Floats:
        thin = images_NHWC[start : start + _BLOCK, :: step[0], :: step[1]]
        pixels_NPC = thin.reshape(len(thin), -1, channels).astype(np.float32) / 255
        return of(pixels_NPC).astype(np.float32)

    if not len(images_NHWC):
        return np.empty((0, of(np.zeros((1, 1, channels), dtype=np.float32)).shape[1]), np.float32)
    with ThreadPoolExecutor() as pool:  # numpy's sorts and arithmetic release the GIL
        return np.concatenate(list(pool.map(block, range(0, len(images_NHWC), _BLOCK))))


def _colours(rgb_NPC: Reals) -> Reals:
    high, low = rgb_NPC.max(axis=2), rgb_NPC.min(axis=2)
    saturation = (high - low) / np.maximum(high, 1 / 255)
    # Hue as a direction in the plane across the grey axis, so that red has no jump.
    east = rgb_NPC[..., 0] - (rgb_NPC[..., 1] + rgb_NPC[..., 2]) / 2
    north = (rgb_NPC[..., 1] - rgb_NPC[..., 2]) * np.float32(np.sqrt(3) / 2)

    density_NPC = -np.log(np.maximum(rgb_NPC, 1 / 255))
    stain_NPC = density_NPC @ _UNMIX
    columns = [
        *_spread(rgb_NPC),  # 3 + 3 + 3 + 15
        *(_pair(x) for x in (east, north, saturation, high)),  # 8
        _percentiles(saturation[..., None], (10, 90)),  # 2
        stain_NPC.mean(axis=1), stain_NPC.std(axis=1),  # 6
        _percentiles(stain_NPC[..., :2], (10, 50, 90)),  # 6
        _correlation(rgb_NPC, ((0, 1), (0, 2), (1, 2))),  # 3
        _correlation(stain_NPC, ((0, 1),)),  # 1
        (low > 0.8).mean(axis=1)[:, None], (high < 0.4).mean(axis=1)[:, None],  # 2
        density_NPC.sum(axis=2).std(axis=1)[:, None],  # 1
    ]  # fmt: skip
    return np.concatenate(columns, axis=1)


def _channels(x_NPC: Reals) -> Reals:
    columns = _spread(x_NPC)
    if pairs := list(combinations(range(x_NPC.shape[2]), 2)):
        columns.append(_correlation(x_NPC, pairs))
    return np.concatenate(columns, axis=1)


def _spread(x_NPC: Reals) -> list[Reals]:
    """Mean, deviation, skewness and percentiles of each channel."""
    mean, std = x_NPC.mean(axis=1), x_NPC.std(axis=1)
    skew = ((x_NPC - mean[:, None]) ** 3).mean(axis=1) / (std + 1e-3) ** 3
    return [mean, std, skew, _percentiles(x_NPC, (5, 25, 50, 75, 95))]


def _pair(x_NP: Reals) -> Reals:
    return np.stack([x_NP.mean(axis=1), x_NP.std(axis=1)], axis=1)


def _percentiles(x_NPC: Reals, cuts: Sequence[int]) -> Reals:
    values = np.percentile(x_NPC, cuts, axis=1).transpose(1, 0, 2)
    return values.reshape(len(x_NPC), -1).astype(np.float32)


def _correlation(x_NPC: Reals, pairs: Sequence[tuple[int, int]]) -> Reals:
    x = x_NPC - x_NPC.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(x).mean(axis=1)) + 1e-3  # a flat tile has no correlation
    columns = [(x[..., i] * x[..., j]).mean(axis=1) / (norm[:, i] * norm[:, j]) for i, j in pairs]
    return np.stack(columns, axis=1)
