"""Stains of H&E tiles, whole batches at a time on their device: one reference for all, and jitter.

Letters: B batch, H height, W width, P = H*W pixels, S pixels of a sample of them.

A reference is fixed, so that training and test rows are treated alike, whatever lies beside them.
Nothing waits for the device: torch.linalg.eigh would, since it checks whether it converged.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

WHITE = 255.0
SAMPLE = 2048  # pixels that a tile's statistics are taken from, at most, evenly spread
BARE = 0.05  # a tile with a smaller share of tissue is left alone
GAIN = 10.0  # so is one whose colour would have to be stretched by more: that is noise, or grey

# Macenko et al. 2009, as it is usually implemented: light that passes, density of bare glass,
# percentiles of angle and concentration; then the usual reference, haematoxylin and eosin.
LIGHT, GLASS, LOWEST, HIGHEST = 240.0, 0.15, 0.01, 0.99
HE_REFERENCE = ((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581))
HE_HIGHEST = (1.9705, 1.0308)
APART = math.sin(math.radians(5)) ** 2  # two stains whose colours are nearer are one, or none

# Reinhard et al. 2001: logarithms of cone responses, turned into lightness and two colours. The
# reference is the tissue of TCGA-A2-A3XS-DX1 (Amgad et al. 2019; also HistomicsTK's).
RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
LMS_TO_LAB = ((1.0, 1.0, 1.0), (1.0, 1.0, -2.0), (1.0, -1.0, 0.0))  # rows yet to be normalised
LAB_MEAN, LAB_STD = (8.74108109, -0.12440419, 0.0444982), (0.6135447, 0.10989545, 0.0286032)
BRIGHTEST = math.log(4 * WHITE)  # a cone's response, so that no stretched one overflows

# What haematoxylin, eosin and DAB absorb in red, green and blue (Ruifrok and Johnston 2001).
HED = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))


class _Constants(NamedTuple):
    """The above on a device."""

    he_32: Tensor
    he_highest_2: Tensor
    lab_mean_3: Tensor
    lab_std_3: Tensor
    rgb_to_lms: Tensor
    lms_to_rgb: Tensor
    lms_to_lab: Tensor
    lab_to_lms: Tensor


@cache
def _constants(device: torch.device) -> _Constants:
    with torch.inference_mode(False):
        exact = [
            torch.tensor(numbers, dtype=torch.float64)
            for numbers in (HE_REFERENCE, HE_HIGHEST, LAB_MEAN, LAB_STD, RGB_TO_LMS, LMS_TO_LAB)
        ]
        rgb_to_lms, lms_to_lab = exact[4], torch.nn.functional.normalize(exact[5])
        exact[4:] = [rgb_to_lms, rgb_to_lms.inverse(), lms_to_lab, lms_to_lab.T.contiguous()]
        return _Constants(*(tensor.float().to(device) for tensor in exact))


def normalise_stain(pixels_BHWC: Tensor, method: str) -> Tensor:
    """RGB tiles, uint8 or floats in [0, 255], brought to the reference of "macenko" or "reinhard".

    Tiles with hardly any tissue, and those without colour, come back as they are.
    """
    batch, height, width, _ = pixels_BHWC.shape
    with torch.autocast("cuda" if pixels_BHWC.is_cuda else "cpu", enabled=False):
        planes_B3P = pixels_BHWC.permute(0, 3, 1, 2).reshape(batch, 3, height * width).float()
        sample_B3S = planes_B3P[:, :, :: -(-height * width // SAMPLE)]
        out_B3P, found_B = METHODS[method](planes_B3P, sample_B3S)
    out_B3P = torch.where(found_B[:, None, None], out_B3P.clamp_(0, WHITE), planes_B3P)
    if pixels_BHWC.dtype == torch.uint8:
        out_B3P = out_B3P.round_().to(torch.uint8)
    return out_B3P.view(batch, 3, height, width).permute(0, 2, 3, 1).contiguous()


# --- Reinhard


def _reinhard(planes_B3P: Tensor, sample_B3S: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles whose tissue has the reference's mean and deviation of lightness and colours."""
    known = _constants(planes_B3P.device)
    lab_B3S = known.lms_to_lab @ _log_lms(sample_B3S)
    weight_BS = _tissue(lab_B3S)
    total_B1 = weight_BS.sum(1, keepdim=True)
    mean_B3 = (lab_B3S * weight_BS[:, None]).sum(2) / total_B1
    off_B3S = lab_B3S - mean_B3[:, :, None]
    std_B3 = ((off_B3S.square() * weight_BS[:, None]).sum(2) / total_B1).sqrt()
    found_B = (total_B1[:, 0] > BARE * weight_BS.shape[1]) & _within(known.lab_std_3, std_B3)

    gain_B3 = known.lab_std_3 / std_B3
    offset_B31 = (known.lab_mean_3 - gain_B3 * mean_B3)[:, :, None]
    lab_B3P = known.lms_to_lab @ _log_lms(planes_B3P)
    weight_BP = _tissue(lab_B3P)
    log_lms_B3P = known.lab_to_lms @ lab_B3P.mul_(gain_B3[:, :, None]).add_(offset_B31)
    out_B3P = known.lms_to_rgb @ log_lms_B3P.clamp_(max=BRIGHTEST).exp_()
    return torch.lerp(planes_B3P, out_B3P, weight_BP[:, None]), found_B


def _log_lms(planes_B3P: Tensor) -> Tensor:
    return (_constants(planes_B3P.device).rgb_to_lms @ planes_B3P.clamp(min=1)).log_()


def _tissue(lab_B3P: Tensor) -> Tensor:
    """How far each pixel is tissue: 0 for glass, 1 from the density GLASS on. Glass keeps its
    colour; what lies between is blended, so that tissue has no seam."""
    density_BP = math.log(WHITE) - lab_B3P[:, 0] / math.sqrt(3)
    return (density_BP * (2 / GLASS) - 1).clamp_(0, 1)


def _within(reference: Tensor, found: Tensor) -> Tensor:
    """(B,) whether no entry of `found` (B, n) must be stretched by more than GAIN."""
    return (found * GAIN > reference).all(1)


# --- Macenko


def _macenko(planes_B3P: Tensor, sample_B3S: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles whose haematoxylin and eosin have the reference's colours and 99th percentiles."""
    known = _constants(planes_B3P.device)
    sample_B3S = _density(sample_B3S)
    stains_B23, found_B = _two_stains(sample_B3S)
    own_B23 = _inverse(stains_B23)
    (highest_B2,) = _percentiles(own_B23 @ sample_B3S, (HIGHEST,))
    found_B = found_B & _within(known.he_highest_2, highest_B2)
    gain_B21 = (known.he_highest_2 / highest_B2)[:, :, None]
    density_B3P = (known.he_32 @ (gain_B21 * own_B23)) @ _density(planes_B3P)
    return density_B3P.neg_().exp_().mul_(LIGHT), found_B


def _density(planes_B3P: Tensor) -> Tensor:
    return ((planes_B3P + 1) / LIGHT).log_().neg_()


def _two_stains(density_B3S: Tensor) -> tuple[Tensor, Tensor]:
    """Unit densities of haematoxylin and eosin as rows (B, 2, 3), and whether there are two.

    They are the extreme directions in the plane of the two principal ones. Angles are counted
    from the mean density, which no percentile can lie opposite to.
    """
    inside_BS = (density_B3S >= GLASS).all(1)
    count_B = inside_BS.sum(1)
    weight_B1S = inside_BS[:, None].float()
    mean_B3 = (density_B3S * weight_B1S).sum(2) / count_B[:, None]
    off_B3S = (density_B3S - mean_B3[:, :, None]) * weight_B1S
    normal_B3 = _least_direction(off_B3S @ off_B3S.transpose(1, 2))
    up_B3 = mean_B3 - (mean_B3 * normal_B3).sum(1, keepdim=True) * normal_B3
    height_B = up_B3.norm(dim=1)
    up_B3 = up_B3 / height_B[:, None]
    side_B3 = torch.linalg.cross(up_B3, normal_B3)
    plane_B2S = torch.stack((up_B3, side_B3), 1) @ density_B3S
    angle_BS = torch.atan2(plane_B2S[:, 1], plane_B2S[:, 0])
    ends = [
        angle_B.cos()[:, None] * up_B3 + angle_B.sin()[:, None] * side_B3
        for angle_B in _percentiles(angle_BS, (LOWEST, HIGHEST), inside_BS)
    ]
    # Haematoxylin takes more of the red.
    first_B1 = (ends[0][:, 0] > ends[1][:, 0])[:, None]
    stains = torch.where(first_B1, ends[0], ends[1]), torch.where(first_B1, ends[1], ends[0])
    cos_B = (stains[0] * stains[1]).sum(1)
    found_B = (count_B > BARE * inside_BS.shape[1]) & (height_B > GLASS / 2)
    return torch.stack(stains, 1), found_B & (1 - cos_B.square() > APART)  # not a number: no


def _least_direction(scatter_B33: Tensor) -> Tensor:
    """The unit eigenvector (B, 3) of the least eigenvalue; not a number where two are 0.

    The adjugate has the same vectors, and for a value the product of the other two, so that its
    powers leave the one sought. Ties of the last two are not resolved, and need not be.
    """
    scatter_B33 = scatter_B33.double()
    scatter_B33 = scatter_B33 / _trace(scatter_B33)
    adjugate_B33 = torch.linalg.cross(scatter_B33.roll(-1, 1), scatter_B33.roll(-2, 1))
    power_B33 = torch.linalg.matrix_power(adjugate_B33 / _trace(adjugate_B33), 256)
    largest_B11 = power_B33.diagonal(dim1=1, dim2=2).argmax(1)[:, None, None]
    normal_B3 = power_B33.gather(1, largest_B11.expand(-1, 1, 3))[:, 0]
    return (normal_B3 / normal_B3.norm(dim=1, keepdim=True)).float()


def _trace(matrix_B33: Tensor) -> Tensor:
    return matrix_B33.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _inverse(stains_B23: Tensor) -> Tensor:
    """(B, 2, 3): concentrations from densities, by least squares, of two unit stains."""
    cos_B11 = (stains_B23[:, 0] * stains_B23[:, 1]).sum(1)[:, None, None]
    return (stains_B23 - cos_B11 * stains_B23.flip(1)) / (1 - cos_B11.square())


def _percentiles(
    values_S: Tensor, shares: Sequence[float], inside_S: Tensor | None = None
) -> list[Tensor]:
    """numpy's percentiles over the last dimension, of the values `inside` alone."""
    if inside_S is None:
        inside_S = torch.ones_like(values_S, dtype=torch.bool)
    ordered_S = values_S.masked_fill(~inside_S, math.inf).sort(-1).values
    last = (inside_S.sum(-1, keepdim=True) - 1).clamp_(min=0)
    found = []
    for share in shares:
        place = last * share
        low = place.long()
        values = ordered_S.gather(-1, low), ordered_S.gather(-1, torch.minimum(low + 1, last))
        found.append(torch.lerp(*values, place - low)[..., 0])
    return found


Method = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # -> tiles, and which (B,) are usable
METHODS: dict[str, Method] = {"macenko": _macenko, "reinhard": _reinhard}


# --- jitter


def hed_map(factor_B3: Tensor, offset_B3: Tensor) -> Tensor:
    """(B, 3, 4), on the CPU: the affine map of a pixel's optical densities that multiplies what
    it holds of haematoxylin, eosin and DAB by factors and adds offsets. Tellez et al. 2018."""
    stains_33 = torch.nn.functional.normalize(torch.tensor(HED, dtype=torch.float64))
    unmix_33 = stains_33.T.inverse()
    scaled_B33 = stains_33.T * factor_B3.double()[:, None, :]
    added_B31 = stains_33.T @ offset_B3.double()[:, :, None]
    return torch.cat((scaled_B33 @ unmix_33, added_B31), 2).float()


def hed_jitter(images_BCHW: Tensor, map_B34: Tensor, white: float = 1.0) -> Tensor:
    """RGB images in [0, white] with their optical densities (natural logarithms) mapped."""
    log_B3P = (images_BCHW.flatten(2) * (WHITE / white) + 1).div_(WHITE + 1).log_()
    # A logarithm is the negative of a density, so the offset is subtracted.
    log_B3P = torch.baddbmm(-map_B34[:, :, 3:], map_B34[:, :, :3], log_B3P)
    out_B3P = log_B3P.exp_().mul_(WHITE + 1).sub_(1).mul_(white / WHITE).clamp_(0, white)
    return out_B3P.view(images_BCHW.shape)
