"""Statistics of images agree with numpy and scipy, and do not see where pixels lie."""

import numpy as np
import pytest
from scipy.stats import skew

from search.data.image_statistics import (
    channel_statistics,
    colour_statistics,
    image_statistics,
    join_views,
)


def tiles(count=5, side=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_described_as_numpy_and_scipy_describe_them(channels):
    images_NHWC = tiles(channels=channels)
    images_NHWC[..., -1] //= 3
    x_NPC = images_NHWC.reshape(5, -1, channels) / 255
    cuts = np.percentile(x_NPC, (5, 25, 50, 75, 95), axis=1).transpose(1, 0, 2).reshape(5, -1)
    pairs = [np.atleast_2d(np.corrcoef(x.T))[np.triu_indices(channels, 1)] for x in x_NPC]
    expected = [x_NPC.mean(axis=1), x_NPC.std(axis=1), skew(x_NPC, axis=1), cuts, pairs]
    got_NF = channel_statistics(images_NHWC)
    assert got_NF.shape == (5, 8 * channels + channels * (channels - 1) // 2)
    # Deviations get a small number added, so that flat images have finite statistics.
    assert got_NF == pytest.approx(np.concatenate(expected, axis=1), abs=0.02)


def test_statistics_of_three_channels_begin_with_those_of_any_channels():
    images_NHWC = tiles()
    colours, channels = colour_statistics(images_NHWC), channel_statistics(images_NHWC)
    assert colours.shape == (5, 53)
    assert np.array_equal(colours[:, :24], channels[:, :24])
    assert np.array_equal(colours[:, 46:49], channels[:, 24:])
    assert np.array_equal(image_statistics(images_NHWC), colours)
    assert image_statistics(images_NHWC[..., :1]).shape == (5, 8)


def test_colour_statistics_are_those_of_the_first_version():
    """Runs that are resumed, and figures that were published, hang on them."""
    y, x = np.mgrid[:32, :32]
    tile = np.stack([7 * x % 256, (5 * y + 3 * x) % 256, (x * y) % 251], axis=-1).astype(np.uint8)
    got_F = colour_statistics(np.stack([tile, tile]))[1]
    golden = {
        0: 0.42549, 4: 0.21113, 8: 0.37807, 12: 0.21275, 20: 0.60882, 24: -0.01045, 27: 0.23608,
        30: 0.59943, 33: 0.93523, 36: 1.62177, 39: 2.01127, 42: 0.91959, 45: 0.15653, 47: 0.31216,
        49: -0.68706, 50: 0.00488, 51: 0.21387, 52: 2.65131,
    }  # fmt: skip
    assert got_F[list(golden)] == pytest.approx(list(golden.values()), abs=1e-4)


@pytest.mark.parametrize("of", [colour_statistics, channel_statistics])
def test_where_pixels_lie_plays_no_part(of):
    images_NHWC = tiles()
    moved = images_NHWC[:, ::-1].swapaxes(1, 2)
    assert of(moved) == pytest.approx(of(images_NHWC), abs=1e-3)


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flat_images_have_finite_statistics(value, channels):
    assert np.isfinite(image_statistics(np.full((2, 8, 8, channels), value, np.uint8))).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_no_image_has_no_statistics_but_as_many_columns(channels):
    empty, one = (image_statistics(tiles(count, channels=channels)) for count in (0, 1))
    assert empty.shape == (0, one.shape[1])


def test_large_images_and_many_are_described_in_blocks():
    images_NHWC = tiles(count=130, side=8)
    whole = colour_statistics(images_NHWC)
    each = np.concatenate([colour_statistics(images_NHWC[i : i + 1]) for i in range(130)])
    assert whole == pytest.approx(each, abs=1e-6)
    large = tiles(count=1, side=512)
    assert np.array_equal(colour_statistics(large), colour_statistics(large[:, ::8, ::8]))


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match="must be uint8"):
        colour_statistics(images)


def test_views_stand_side_by_side_or_as_mean_and_highest_where_they_are_many():
    x_NF = np.random.default_rng(0).random((12, 53)).astype(np.float32)
    assert join_views(x_NF, 1) is x_NF
    assert np.array_equal(join_views(x_NF, 3)[2], x_NF[6:9].ravel())
    joined = join_views(x_NF, 12)
    assert joined.shape == (1, 106)
    assert joined[0] == pytest.approx(np.r_[x_NF.mean(axis=0), x_NF.max(axis=0)])
    with pytest.raises(ValueError, match="12 images are no rows of 5 views"):
        join_views(x_NF, 5)
