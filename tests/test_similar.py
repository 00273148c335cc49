"""Copies of an image are found however they were saved; images that only look alike are not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search.data.similar import (
    RADIUS,
    conflicts,
    hashes,
    joined_groups,
    near_duplicates,
    row_pairs,
    unite,
)
from spaces.samples.tissue import SLIDES, draw_tile, draw_tissue

BICUBIC = Image.Resampling.BICUBIC


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(image, share):
    picture = Image.fromarray(image)
    small = picture.resize((round(picture.width * share),) * 2, BICUBIC)
    return np.asarray(small.resize(picture.size, BICUBIC))


def cropped(image, left, right):
    picture = Image.fromarray(image)
    side = picture.width
    box = (left * side, left * side, side - right * side, side - right * side)
    return np.asarray(picture.resize(picture.size, BICUBIC, box=box))


COPIES = {
    "as it is": lambda image: image,
    "JPEG": lambda image: jpeg(image, 60),
    "resized": lambda image: resized(image, 0.6),
    "brighter": lambda image: np.clip(image * 1.08 + 5, 0, 255).astype(np.uint8),
    "cropped": lambda image: cropped(image, 0.01, 0.01),
    "cropped and saved": lambda image: jpeg(cropped(image, 0.01, 0.01), 60),
    "corner": lambda image: cropped(image, 0.015, 0),
}


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0)
    return np.stack([draw_tile(rng, draw_tissue(rng, SLIDES[0]), SLIDES[0]) for _ in range(120)])


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_nothing_else(tiles, kind):
    copies = np.stack([COPIES[kind](tile) for tile in tiles[:40]])
    found = near_duplicates(np.concatenate([tiles, copies]))
    true = [(i, 120 + i) for i in range(40)]
    assert set(found) <= set(true)
    assert len(found) >= 38
    assert found == sorted(found)


def test_two_copies_alone_are_found_and_two_images_are_not(tiles):
    assert near_duplicates(np.stack([tiles[0], jpeg(tiles[0], 75)])) == [(0, 1)]
    assert near_duplicates(tiles[:2]) == []
    assert near_duplicates(tiles[:1]) == near_duplicates(tiles[:0]) == []


def test_mirrored_images_and_blank_ones_are_no_copies(tiles):
    assert near_duplicates(np.concatenate([tiles[:50], tiles[:50, :, ::-1]])) == []
    rng = np.random.default_rng(0)
    glass = rng.normal(240, 1.5, (60, 32, 32, 3)).round().astype(np.uint8)
    assert near_duplicates(np.concatenate([glass, glass])) == []


def test_images_of_one_kind_are_told_apart_by_what_is_their_own():
    """Thumbnails correlate above .85; only the departure from the usual image tells."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    usual = 120 + 90 * np.cos(3 * x) * np.cos(2 * y)
    waves = np.stack([np.cos(a * x + b * y + c) for a, b, c in rng.uniform(1, 9, (24, 3))])
    own = np.tensordot(rng.normal(0, 3, (200, 24)), waves, 1)
    images = np.clip(usual + own, 0, 255)[..., None].repeat(3, 3).astype(np.uint8)
    correlations = np.corrcoef(images.reshape(200, -1))[np.triu_indices(200, 1)]
    assert np.percentile(correlations, 5) > 0.85
    again = np.stack([jpeg(image, 80) for image in images[:20]])
    assert near_duplicates(np.concatenate([images, again])) == [(i, 200 + i) for i in range(20)]


def test_hashes_of_copies_are_close_and_of_others_far(tiles):
    copies = np.stack([jpeg(tile, 70) for tile in tiles])
    hash_N = hashes(np.concatenate([tiles, copies]))
    bits = np.bitwise_count(hash_N[:120, None] ^ hash_N[None, 120:])
    assert np.diag(bits).max() <= RADIUS
    assert hash_N.dtype == np.uint64
    assert np.median(bits) >= 25


def test_grey_and_four_channel_images_are_compared(tiles):
    for channels in (1, 4):
        images = np.stack([tiles[:60, :, :, 0]] * channels, axis=3)
        assert near_duplicates(np.concatenate([images, images[:3]])) == [(0, 60), (1, 61), (2, 62)]


def test_views_are_compared_with_the_same_view(tiles):
    rows = tiles.reshape(40, 3, 64, 64, 3)
    again = rows[:2].copy()
    again[1] = again[1, ::-1]  # the first and last view have changed places
    pairs = near_duplicates(np.concatenate([rows, again]).reshape(-1, 64, 64, 3), views=3)
    assert pairs == [(0, 120), (1, 121), (2, 122), (4, 124)]
    assert row_pairs(pairs, 3) == [(0, 40)]


def test_half_of_the_views_make_a_pair_of_rows():
    assert row_pairs([(0, 4), (1, 5)], 4) == [(0, 1)]
    assert row_pairs([(0, 4)], 4) == []
    assert row_pairs([(0, 5), (1, 4)], 4) == []  # another view
    assert row_pairs([(0, 1), (2, 3)], 4) == []  # one row
    assert row_pairs([(3, 1), (0, 2)], 1) == [(0, 2), (1, 3)]


@settings(deadline=None)  # the first call imports scipy
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        )
    )
)
def test_components_are_those_of_scipy(drawn):
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, pairs = drawn
    i, j = np.array(pairs, int).reshape(-1, 2).T
    _, expected = connected_components(coo_matrix((np.ones(len(i)), (i, j)), (count, count)))
    labels = unite(pairs, count)
    same = labels[:, None] == labels[None]
    assert np.array_equal(same, expected[:, None] == expected[None])
    assert labels[0] == 0 and labels.max() + 1 == len(set(labels.tolist()))
    first = [labels.tolist().index(k) for k in range(labels.max() + 1)]
    assert first == sorted(first)


def test_groups_with_a_pair_across_become_one():
    assert joined_groups(["b", "a", "c", "b"], [(1, 3)], 4) == ("a", "a", "c", "a")
    assert joined_groups(["b", "a"], [], 2) == ("b", "a")
    assert joined_groups(None, [(0, 2)], 3) == ("row 0", "row 1", "row 0")


def test_conflicts_are_copies_with_other_labels():
    classes_TN = np.array([[1, 1, 0], [0, 0, 1]], np.float32)
    assert conflicts([(0, 1), (0, 2)], classes_TN, "multiclass") == [(0, 2)]
    rng = np.random.default_rng(0)
    values_TN = rng.normal(0, 1, (20, 50)) * np.arange(20)[:, None]
    values_TN[:, 1] = values_TN[:, 0] + 0.3 * np.arange(20)
    assert conflicts([(0, 1), (0, 2)], values_TN, "regression") == [(0, 2)]
    assert conflicts([], values_TN, "regression") == []


@pytest.mark.real_data
def test_chest_x_rays_are_paired_only_with_their_copies(data_root):
    paths = sorted((data_root / "pneumonia/train/train_data").glob("*.png"))
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    found = near_duplicates(images)
    equal = [pair for pair in found if np.array_equal(images[pair[0]], images[pair[1]])]
    _, counts = np.unique(images.reshape(len(images), -1), axis=0, return_counts=True)
    assert len(equal) == sum(n * (n - 1) // 2 for n in counts.tolist()) == 28
    assert len(found) - len(equal) <= 2


@pytest.mark.real_data
def test_tiles_of_one_slide_and_glands_are_not_paired(data_root):
    for name, views in (("her2st/train", 1), ("adrenal/train_set", 8)):
        paths = sorted((data_root / name).glob("*.png"))[: 8 * 400]
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        assert row_pairs(near_duplicates(images, views), views) == []
