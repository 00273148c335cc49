"""Masks as the HPA competition's readers decode them: base64, zlib, COCO's run lengths."""

import base64
import zlib

import numpy as np
import pytest

from ensemble.masks import encode, whole_mask


def counts_of(text: bytes) -> list[int]:
    """COCO's run lengths as pycocotools reads them (rleFrString)."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            character = text[place] - 48
            assert 0 <= character < 64
            value |= (character & 0x1F) << (5 * shift)
            more = bool(character & 0x20)
            place, shift = place + 1, shift + 1
            if not more and character & 0x10:
                value |= -1 << (5 * shift)
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
    return counts


def decoded(mask: str) -> list[int]:
    return counts_of(zlib.decompress(base64.b64decode(mask, validate=True)))


def mask_of(counts: list[int], width: int, height: int) -> np.ndarray:
    """(H, W) of run lengths that go down the columns."""
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape((height, width), order="F")


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (5, 3), (15, 1), (16, 1), (31, 33), (512, 512), (3072, 2048)]
)
def test_a_whole_mask_covers_the_image(width: int, height: int) -> None:
    mask_HW = mask_of(decoded(whole_mask(width, height)), width, height)
    assert mask_HW.shape == (height, width) and mask_HW.all()


def test_the_competitions_own_mask_of_a_whole_square() -> None:
    """pycocotools' text of the mask of 1 that covers 2048 x 2048: no zeros, then 4194304 ones."""
    assert zlib.decompress(base64.b64decode(whole_mask(2048, 2048))) == b"0PPPP4"


@pytest.mark.parametrize("seed", range(20))
def test_many_runs_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Of all lengths: differences to the run two before go up and down by several characters.
    counts = (10 ** rng.uniform(0, 6, rng.integers(1, 40))).astype(int).tolist()
    assert decoded(encode(counts)) == counts


@pytest.mark.parametrize("height", [7, 32, 100])
def test_a_drawn_mask_comes_back(height: int) -> None:
    rng = np.random.default_rng(height)
    mask_HW = rng.random((height, 60)) > 0.7
    flat = mask_HW.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    np.testing.assert_array_equal(mask_of(decoded(encode(counts)), 60, height), mask_HW)
