"""Augmentation of whole batches on their device, drawn anew for every sample.

Letters: R rows of a batch, V views of a row, B = R*V images, C channels, H height, W width,
P = H*W. What is random is drawn on the CPU, as a few numbers per row, so that runs agree between
devices and no step waits for the host. All views of a row share their numbers, since information
lies between them; only which views are blanked is drawn for each.

Order: mirror, flips and quarter turns, affine, crop, stains, brightness, contrast, saturation, hue.
Flips, turns, affine and crop are one map of coordinates, so at most one interpolation. Brightness,
contrast and saturation are, given an image's grey mean, one affine map of its RGB values: one small
matrix product, clipped to [0, 1] once at the end, where torchvision clips after each of the three.
The two agree wherever nothing is clipped in between; ours keeps what a later factor brings back.
Stains, saturation and hue are of RGB images, and left out for any other number of channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from search.data.stain import hed_jitter, hed_map
from spaces.recipe import Augment

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, the digits that torchvision uses
FLIPS, TURNS = (0, 1, 2, 3), (0, 5, 3, 6)  # of `dihedral`'s k; a turn is a transpose and a flip
ASPECT = 4 / 3  # widest side ratio of a random crop, as in torchvision's RandomResizedCrop


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """The random numbers of one batch; None: that kind is off."""

    # bool: rows whose views and targets change sides; the two below hold what it does to pixels
    mirror_R: Tensor | None = None
    dihedral_B: Tensor | None = None  # int64, which of the 8
    warp_B23: Tensor | None = None  # output -> source coordinates, flips and turns included
    hed_B34: Tensor | None = None  # affine map of optical densities
    colour_B3: Tensor | None = None  # factors of brightness, contrast, saturation
    hue_B: Tensor | None = None  # turns of the colour circle
    keep_B: Tensor | None = None  # bool: views that are not blanked

    def to(self, device: torch.device) -> "Draws":
        """The same on `device`, without waiting for it."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return Draws(**{k: None if v is None else to_async(v, device) for k, v in held.items()})

    def part(self, images: slice) -> "Draws":
        """What concerns the pixels of some of the images."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mirror_R"}
        return Draws(**{k: None if v is None else v[images] for k, v in held.items()})


def to_async(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def draw(augment: Augment, rows: int, generator: torch.Generator, views: int = 1) -> Draws:
    """Random numbers for `rows` of `views` images each, on the CPU; the generator lives there."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    def per_image(values_R: Tensor | None) -> Tensor | None:
        return values_R if values_R is None or views == 1 else values_R.repeat_interleave(views, 0)

    mirror_R = dihedral_R = warp_R23 = hed_R34 = colour_R3 = hue_R = keep_B = None
    if augment.flip or augment.rot90:
        options = range(8) if augment.flip and augment.rot90 else FLIPS if augment.flip else TURNS
        choice_R = torch.randint(len(options), (rows,), generator=generator)
        dihedral_R = torch.tensor(options)[choice_R]
    if augment.mirror:
        mirror_R = torch.rand(rows, generator=generator) < 0.5
        still_R = torch.zeros(rows, dtype=torch.int64)
        dihedral_R = _mirrored(still_R if dihedral_R is None else dihedral_R, mirror_R)
    if augment.rotate or augment.scale or augment.shift or augment.crop < 1:
        warp_R23 = affine_matrix(
            uniform(rows) * augment.rotate,
            uniform(rows, 2) * augment.shift,
            1 + uniform(rows) * augment.scale,
        )
        if augment.crop < 1:
            warp_R23 = compose(warp_R23, _crop_matrix(rows, augment.crop, generator))
        if dihedral_R is not None:
            warp_R23 = compose(_dihedral_matrix(dihedral_R), warp_R23)
            dihedral_R = None
    if augment.hed:
        factor_R3 = 1 + uniform(rows, 3) * augment.hed
        hed_R34 = hed_map(factor_R3, uniform(rows, 3) * augment.hed)
    if augment.brightness or augment.contrast or augment.saturation:
        widths = torch.tensor((augment.brightness, augment.contrast, augment.saturation))
        colour_R3 = 1 + uniform(rows, 3) * widths
    if augment.hue:
        hue_R = uniform(rows) * augment.hue
    if augment.view_drop and views > 1:
        luck_RV = torch.rand(rows, views, generator=generator)
        luckiest_RV = luck_RV == luck_RV.amax(1, keepdim=True)
        keep_B = ((luck_RV >= augment.view_drop) | luckiest_RV).flatten()
    return Draws(
        mirror_R=mirror_R, dihedral_B=per_image(dihedral_R), warp_B23=per_image(warp_R23),
        hed_B34=per_image(hed_R34), colour_B3=per_image(colour_R3), hue_B=per_image(hue_R),
        keep_B=keep_B,
    )  # fmt: skip


def augment_batch(images_BCHW: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Augment float images in [0, 1], one per row: all that `augment` asks of a row's pixels."""
    draws = draw(augment, len(images_BCHW), generator).to(images_BCHW.device)
    if draws.dihedral_B is not None:
        images_BHWC = images_BCHW.permute(0, 2, 3, 1)
        images_BCHW = dihedral_each(images_BHWC, draws.dihedral_B).permute(0, 3, 1, 2)
    if draws.warp_B23 is not None:
        images_BCHW = warp(images_BCHW, draws.warp_B23, images_BCHW.shape[-1])
    if images_BCHW.shape[1] != 3:
        factors_B3 = draws.colour_B3
        return images_BCHW if factors_B3 is None else brighten(images_BCHW, factors_B3)
    if draws.hed_B34 is not None:
        images_BCHW = hed_jitter(images_BCHW, draws.hed_B34)
    if draws.colour_B3 is not None:
        images_BCHW = colour(images_BCHW, *draws.colour_B3.unbind(1))
    if draws.hue_B is not None:
        images_BCHW = hue(images_BCHW, draws.hue_B)
    return images_BCHW


# --- flips and quarter turns


def dihedral(images_BCHW: Tensor, k: int) -> Tensor:
    """All images in the k-th of 8 positions: bit 4 of k transposes, then bit 1 flips left-right
    and bit 2 top-bottom. So 0 is the identity and 0 to 3 are flips only."""
    if k & 4:
        images_BCHW = images_BCHW.transpose(2, 3)
    axes = [axis for bit, axis in ((1, 3), (2, 2)) if k & bit]
    return images_BCHW.flip(axes) if axes else images_BCHW


def dihedral_each(images_BHWC: Tensor, k_B: Tensor) -> Tensor:
    """Each square image in its own of the 8 positions of `dihedral`, in one gather of pixels."""
    batch, side, _, channels = images_BHWC.shape
    line = torch.arange(side, device=k_B.device)
    row_BH = torch.where((k_B & 2).bool()[:, None], side - 1 - line, line)
    column_BW = torch.where((k_B & 1).bool()[:, None], side - 1 - line, line)
    transposed_B1 = (k_B & 4).bool()[:, None]
    start_B1 = torch.arange(batch, device=k_B.device)[:, None] * (side * side)
    row_BH = torch.where(transposed_B1, row_BH, row_BH * side) + start_B1
    column_BW = torch.where(transposed_B1, column_BW * side, column_BW)
    pixels = (row_BH[:, :, None] + column_BW[:, None, :]).reshape(-1)
    return images_BHWC.reshape(-1, channels).index_select(0, pixels).view(images_BHWC.shape)


def _mirrored(k_R: Tensor, mirror_R: Tensor) -> Tensor:
    """The positions that images take which are flipped left-right first, where `mirror` says so;
    after a transpose that is a flip top-bottom."""
    return torch.where(mirror_R, k_R ^ torch.where((k_R & 4) > 0, 2, 1), k_R)


# --- maps of coordinates: (x, y) in [-1, 1], from an output pixel to where it is read


def affine_matrix(angle_B: Tensor, shift_B2: Tensor, zoom_B: Tensor) -> Tensor:
    """(B, 2, 3) of a turn by `angle` degrees and a zoom about the centre, then a shift by a
    fraction of the side; signs as in torchvision's `affine`."""
    radians_B = angle_B * (math.pi / 180)
    cos_B, sin_B = torch.cos(radians_B) / zoom_B, torch.sin(radians_B) / zoom_B
    turn_B22 = torch.stack((cos_B, sin_B, -sin_B, cos_B), 1).view(-1, 2, 2)
    return torch.cat((turn_B22, turn_B22 @ (-2 * shift_B2[:, :, None])), 2)


def compose(outer_B23: Tensor, inner_B23: Tensor) -> Tensor:
    """The map that applies `inner` to a coordinate and then `outer`."""
    product_B23 = outer_B23[:, :, :2] @ inner_B23
    product_B23[:, :, 2] += outer_B23[:, :, 2]
    return product_B23


def _dihedral_matrix(k_B: Tensor) -> Tensor:
    x_B, y_B = 1.0 - 2 * (k_B & 1), 1.0 - (k_B & 2)
    straight_B, zero_B = (k_B & 4) == 0, torch.zeros(len(k_B))
    entries = (
        torch.where(straight_B, x_B, zero_B), torch.where(straight_B, zero_B, y_B), zero_B,
        torch.where(straight_B, zero_B, x_B), torch.where(straight_B, y_B, zero_B), zero_B,
    )  # fmt: skip
    return torch.stack(entries, 1).view(-1, 2, 3)


def _crop_matrix(batch: int, smallest: float, generator: torch.Generator) -> Tensor:
    """A box of area in [smallest, 1] and aspect in [3/4, 4/3], anywhere inside the image."""
    area_B, aspect_B, x_B, y_B = torch.rand(4, batch, generator=generator).unbind(0)
    side_B = torch.sqrt(smallest + (1 - smallest) * area_B)
    root_B = torch.exp((aspect_B - 0.5) * math.log(ASPECT))  # square root of width / height
    root_B = torch.minimum(torch.maximum(root_B, side_B), 1 / side_B)  # the box fits
    width_B, height_B = side_B * root_B, side_B / root_B
    zero_B = torch.zeros(batch)
    entries = (
        width_B, zero_B, (2 * x_B - 1) * (1 - width_B),
        zero_B, height_B, (2 * y_B - 1) * (1 - height_B),
    )  # fmt: skip
    return torch.stack(entries, 1).view(-1, 2, 3)


def warp(images_BCHW: Tensor, map_B23: Tensor, size: int) -> Tensor:
    """(B, C, size, size): bilinear reads at the mapped coordinates, mirrored at the borders."""
    line = torch.linspace(1 / size - 1, 1 - 1 / size, size, device=map_B23.device)
    x_2B1, y_2B1, shift_2B1 = map_B23.transpose(0, 1).split(1, 2)
    x_2BW, y_2BH = x_2B1 * line, torch.addcmul(shift_2B1, y_2B1, line)
    grid_2BHW = x_2BW[:, :, None, :] + y_2BH[:, :, :, None]
    return F.grid_sample(
        images_BCHW, grid_2BHW.permute(1, 2, 3, 0), padding_mode="reflection", align_corners=False
    )


# --- colours


def colour(
    images_BCHW: Tensor,
    brightness_B: Tensor,
    contrast_B: Tensor,
    saturation_B: Tensor,
    *,
    white: float = 1.0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Images whose values lie in [0, white], changed in brightness, then contrast, then saturation,
    clipped to [0, 1] and normalised; all in one matrix product. Contiguous (B, C, H, W)."""
    factors_B3 = torch.stack((brightness_B, contrast_B, saturation_B), 1)
    map_B37 = colour_map(factors_B3, white=white, mean=mean, std=std)
    return recolour(images_BCHW, map_B37, mean=mean, std=std)


def colour_map(
    factors_B3: Tensor, *, white: float, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(B, 3, 7): what factors of brightness, contrast and saturation do to RGB values in
    [0, white], normalised: a matrix for the pixel, one for the image's mean, and what is added."""
    brightness_B, contrast_B, saturation_B = factors_B3.unbind(1)
    # x -> b x -> c b x + (1 - c) b grey_mean =: y -> s y + (1 - s) grey(y)
    factor_B = brightness_B / white
    own_B = saturation_B * contrast_B * factor_B
    shared_B = (1 - saturation_B) * contrast_B * factor_B
    mean_B = (1 - contrast_B) * factor_B * (saturation_B + (1 - saturation_B) * sum(GREY))
    zero_B = torch.zeros_like(factor_B)
    rows = []
    for c in range(3):
        pixel = [shared_B * weight + (own_B if k == c else 0) for k, weight in enumerate(GREY)]
        row = [*pixel, *(mean_B * weight for weight in GREY), zero_B - mean[c]]
        rows.append(torch.stack(row, 1) / std[c])
    return torch.stack(rows, 1)


def recolour(
    images_BCHW: Tensor, map_B37: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """RGB images changed as `colour_map` says, of the same `mean` and `std`, and clipped where
    values before normalising leave [0, 1]. Contiguous (B, C, H, W)."""
    images_BCP = images_BCHW.flatten(2)
    pixel_B33, mean_B33, added_B31 = map_B37.split((3, 3, 1), 2)
    offset_B31 = torch.baddbmm(added_B31, mean_B33, images_BCP.mean(2, keepdim=True))
    out_BCP = torch.baddbmm(offset_B31, pixel_B33, images_BCP)
    for c in range(3):
        out_BCP[:, c].clamp_(-mean[c] / std[c], (1 - mean[c]) / std[c])
    return out_BCP.view(images_BCHW.shape)


def brighten(images_BCHW: Tensor, factors_B3: Tensor, white: float = 1.0) -> Tensor:
    """Images of any channels in [0, white], changed in brightness, then contrast about the mean of
    all channels, clipped once; the third factor, of saturation, is not used."""
    brightness_B, contrast_B, _ = factors_B3.unbind(1)
    constant_B = (1 - contrast_B) * brightness_B * images_BCHW.mean((1, 2, 3))
    factor_B111 = (contrast_B * brightness_B)[:, None, None, None]
    return (images_BCHW * factor_B111).add_(constant_B[:, None, None, None]).clamp_(0, white)


def hue(images_BCHW: Tensor, shift_B: Tensor) -> Tensor:
    """Images in [0, 1] with each pixel's hue shifted by a fraction of the colour circle."""
    red, green, blue = images_BCHW.unbind(1)
    value = images_BCHW.amax(1)
    chroma = value - images_BCHW.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixth = sixth + 6 * shift_B[:, None, None]
    return torch.stack([_channel(sixth + n, value, chroma) for n in (5, 3, 1)], 1)


def _channel(sixth: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """One of R, G, B from hue (in sixths of the circle, plus the channel's 5, 3 or 1)."""
    sixth = sixth.remainder(6)
    return value - chroma * torch.minimum(sixth, 4 - sixth).clamp(0, 1)
