"""Stains agree with slow references in numpy, and no tile, however odd, comes out wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.stain import (
    HE_HIGHEST,
    HE_REFERENCE,
    HED,
    LAB_MEAN,
    LAB_STD,
    METHODS,
    RGB_TO_LMS,
    SAMPLE,
    hed_jitter,
    hed_map,
    normalise_stain,
)

SIDE = 40  # fewer pixels than SAMPLE, so that statistics are those of all
EOSIN, HAEMATOXYLIN = (0.10, 0.95, 0.28), (0.62, 0.70, 0.36)


def tissue(
    seed: int = 0,
    haematoxylin: tuple[float, float, float] = HAEMATOXYLIN,
    eosin: tuple[float, float, float] = EOSIN,
    strength: float = 1.0,
) -> np.ndarray:
    """A float tile (SIDE, SIDE, 3) in [0, 255] of two stains, as Beer and Lambert have it."""
    rng = np.random.default_rng(seed)
    amounts = strength * (0.45 + rng.gamma(2.0, 0.25, (SIDE, SIDE, 2)))
    density = amounts @ np.array([haematoxylin, eosin]) + rng.normal(0, 0.005, (SIDE, SIDE, 3))
    return np.clip(240 * np.exp(-density) - 1, 0, 255)


def macenko(tile: np.ndarray) -> np.ndarray:
    """Macenko et al. 2009 step by step, in float64."""
    density = -np.log((tile.reshape(-1, 3) + 1) / 240)
    inside = density[(density >= 0.15).all(axis=1)]
    _, vectors = np.linalg.eigh(np.cov(inside.T))
    plane = vectors[:, 1:] * np.where(vectors[:, 1:].sum(axis=0) < 0, -1, 1)
    angle = np.arctan2(*(inside @ plane).T[::-1])
    ends = [
        plane @ (np.cos(a), np.sin(a)) for a in (np.percentile(angle, 1), np.percentile(angle, 99))
    ]
    stains = np.array(ends if ends[0][0] > ends[1][0] else ends[::-1]).T
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    amounts *= (np.array(HE_HIGHEST) / np.percentile(amounts, 99, axis=1))[:, None]
    return np.clip(240 * np.exp(-(np.array(HE_REFERENCE) @ amounts).T), 0, 255).reshape(tile.shape)


def to_lab(tile: np.ndarray) -> np.ndarray:
    log_lms = np.log(np.maximum(tile.reshape(-1, 3), 1) @ np.array(RGB_TO_LMS).T)
    return log_lms @ mixing().T


def mixing() -> np.ndarray:
    return np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ [[1, 1, 1], [1, 1, -2], [1, -1, 0]]


def reinhard(tile: np.ndarray) -> np.ndarray:
    """Reinhard et al. 2001 of a tile that is tissue everywhere, in float64."""
    lab = to_lab(tile)
    lab = (lab - lab.mean(axis=0)) / lab.std(axis=0) * LAB_STD + LAB_MEAN
    rgb = np.exp(lab @ np.linalg.inv(mixing()).T) @ np.linalg.inv(RGB_TO_LMS).T
    return np.clip(rgb, 0, 255).reshape(tile.shape)


REFERENCES = {"macenko": macenko, "reinhard": reinhard}


def batch(*tiles: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(tiles)).float()


def as_uint8(tile: np.ndarray) -> torch.Tensor:
    return batch(tile).round().to(torch.uint8)


def test_every_method_of_a_recipe_is_known() -> None:
    from spaces.recipe import STAINS

    assert set(METHODS) == set(STAINS) - {"none"}
    assert SIDE * SIDE <= SAMPLE


@pytest.mark.parametrize("method", METHODS)
def test_each_tile_of_a_batch_is_the_reference_s(method: str) -> None:
    tiles = [
        tissue(0),
        tissue(1, strength=0.7),
        tissue(2, (0.5, 0.75, 0.42), (0.2, 0.9, 0.38)),
        tissue(3, (0.5, 0.5, 0.7), (0.3, 0.9, 0.3)),  # the angle runs the other way
    ]
    if method == "macenko":
        tiles.append(tissue(4, strength=0.35))  # glass in some channels of some pixels
        clear = (-np.log((tiles[-1] + 1) / 240) < 0.15).reshape(-1, 3)
        assert clear.any(axis=1).mean() > 0.05 and not clear.all(axis=1).any()
    ours = normalise_stain(batch(*tiles), method).numpy()
    for tile, out in zip(tiles, ours, strict=True):
        assert np.abs(out - REFERENCES[method](tile)).max() < 0.2
        assert np.abs(out - tile).mean() > 3


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_the_rounded_floats(method: str) -> None:
    pixels = as_uint8(tissue())
    ours = normalise_stain(pixels, method)
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    assert torch.equal(ours, normalise_stain(pixels.float(), method).round().to(torch.uint8))


@pytest.mark.parametrize("method", METHODS)
def test_tiles_of_the_same_tissue_become_alike_whatever_the_stains(method: str) -> None:
    tiles = batch(
        tissue(0), tissue(0, strength=0.75), tissue(0, (0.55, 0.72, 0.42), (0.18, 0.92, 0.34))
    )
    before, after = ((x[1:] - x[0]).abs().mean() for x in (tiles, normalise_stain(tiles, method)))
    assert after < before / 2


def test_macenko_leaves_a_tile_of_the_reference_s_own_stains() -> None:
    amounts = np.random.default_rng(0).uniform(0.8, 1.0, (SIDE * SIDE, 2))
    amounts[:100, 0] = amounts[100:200, 1] = 0  # pure stains, by which they are found
    amounts *= np.array(HE_HIGHEST) / np.percentile(amounts, 99, axis=0)
    tile = (240 * np.exp(-amounts @ np.array(HE_REFERENCE).T)).reshape(SIDE, SIDE, 3)
    assert (normalise_stain(batch(tile - 1), "macenko") - batch(tile)).abs().max() < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass(method: str) -> None:
    tile = tissue()
    tile[:, SIDE // 2 :] = 244
    out = normalise_stain(batch(tile), method)
    assert (out[0, :, SIDE // 2 :] - 244).abs().max() < (1e-3 if method == "reinhard" else 6)
    assert (out[0, :, : SIDE // 2] - batch(tile)[0, :, : SIDE // 2]).abs().mean() > 3


def little_eosin() -> np.ndarray:
    """So few pixels of it that its 99th percentile is glass."""
    amounts = np.zeros((SIDE * SIDE, 2))
    amounts[:154, 0] = amounts[154:160, 1] = 2.0
    amounts[:160] += np.random.default_rng(0).uniform(0, 0.02, (160, 2))
    density = amounts @ np.array([HAEMATOXYLIN, (0.2, 0.9, 0.38)])
    return (240 * np.exp(-density)).reshape(SIDE, SIDE, 3)


def no_stains_but_colours() -> np.ndarray:
    """Densities that vary across their mean, not along it."""
    across = np.array([(1, -1, 0), (1, 1, -2)]) / np.sqrt([[2], [6]])
    density = 0.8 + np.random.default_rng(0).normal(0, 0.1, (SIDE, SIDE, 2)) @ across
    return 240 * np.exp(-density)


def nearly_grey() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(60, 180, (SIDE, SIDE, 1)) + rng.uniform(-1, 1, (SIDE, SIDE, 3))


ODD = {
    "white": np.full((SIDE, SIDE, 3), 255.0),
    "glass": np.random.default_rng(0).normal(243, 2, (SIDE, SIDE, 3)).clip(0, 255),
    "black": np.zeros((SIDE, SIDE, 3)),
    "one colour": np.broadcast_to((180.0, 90.0, 150.0), (SIDE, SIDE, 3)),
    "grey": np.random.default_rng(0).uniform(0, 200, (SIDE, SIDE, 1)).repeat(3, 2),
    "nearly grey": nearly_grey(),
    "a crumb": np.where(np.arange(SIDE * SIDE).reshape(SIDE, SIDE, 1) < 30, tissue(), 250.0),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_stains_comes_back_as_it_is_and_spoils_no_neighbour(
    method: str, kind: str
) -> None:
    odd, pixels = torch.cat((as_uint8(ODD[kind]), as_uint8(tissue()))), as_uint8(tissue())
    out = normalise_stain(odd, method)
    assert torch.equal(out[0], odd[0])
    assert (out[1].int() - normalise_stain(pixels, method)[0].int()).abs().max() <= 1


@pytest.mark.parametrize("tile", [little_eosin(), no_stains_but_colours()])
def test_macenko_leaves_alone_what_shows_no_two_stains(tile: np.ndarray) -> None:
    assert torch.equal(normalise_stain(as_uint8(tile), "macenko"), as_uint8(tile))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.integers(1, 12),
    low=st.integers(0, 255),
    high=st.integers(0, 255),
    levels=st.integers(1, 6),
    channels=st.sampled_from((1, 3)),
    method=st.sampled_from(sorted(METHODS)),
)
def test_no_tile_gives_anything_but_pixels(
    seed: int, side: int, low: int, high: int, levels: int, channels: int, method: str
) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, levels, (3, side, side, channels)) / levels
    tiles = np.broadcast_to(low + (high - low) * steps, (3, side, side, 3))
    out = normalise_stain(torch.from_numpy(tiles.copy()).float(), method)
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 255


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_around_it_changes_nothing(method: str) -> None:
    pixels = as_uint8(tissue())
    expected = normalise_stain(pixels, method)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(normalise_stain(pixels, method), expected)


def test_a_large_tile_s_sample_stands_for_all_its_pixels() -> None:
    tile = np.tile(tissue(), (4, 4, 1))
    small, large = (normalise_stain(batch(x), "macenko") for x in (tile[:SIDE, :SIDE], tile))
    assert (large[0, :SIDE, :SIDE] - small[0]).abs().mean() < 3


# --- jitter


def test_jitter_scales_and_shifts_each_stain() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 6, 6, generator=generator) * 0.7 + 0.15
    factor_B3 = 1 + 0.2 * (torch.rand(4, 3, generator=generator) - 0.5)
    offset_B3 = 0.1 * (torch.rand(4, 3, generator=generator) - 0.5)
    ours = hed_jitter(images, hed_map(factor_B3, offset_B3))
    stains = np.array(HED) / np.linalg.norm(HED, axis=1, keepdims=True)
    for i in range(4):
        pixels = images[i].permute(1, 2, 0).double().numpy()
        amounts = -np.log((pixels * 255 + 1) / 256) @ np.linalg.inv(stains)
        amounts = amounts * factor_B3[i].numpy() + offset_B3[i].numpy()
        expected = np.clip((256 * np.exp(-amounts @ stains) - 1) / 255, 0, 1)
        assert np.allclose(ours[i].permute(1, 2, 0), expected, atol=1e-5)


def test_more_haematoxylin_darkens_red_most_among_its_counterparts() -> None:
    pink = torch.tensor((0.9, 0.6, 0.8)).view(1, 3, 1, 1)
    one, nothing = torch.ones(1, 3), torch.zeros(1, 3)
    blue = hed_jitter(pink, hed_map(one, torch.tensor([[0.3, 0.0, 0.0]]))) / pink
    red = hed_jitter(pink, hed_map(one, torch.tensor([[0.0, 0.3, 0.0]]))) / pink
    assert blue[0, 0] < 0.85 and red[0, 0] > 0.97  # eosin hardly takes red light
    assert red[0, 1] < 0.77
    assert torch.allclose(hed_jitter(pink, hed_map(one, nothing)), pink, atol=1e-6)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_the_widest_jitter_stays_in_range(white: float) -> None:
    images = torch.rand(8, 3, 5, 5) * white
    images[0], images[1] = 0, white
    for factor in (0.5, 1.5):
        for offset in (-0.5, 0.5):
            given = torch.full((8, 3), factor), torch.full((8, 3), offset)
            out = hed_jitter(images, hed_map(*given), white)
            assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= white
