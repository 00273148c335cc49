"""Groups are found where slides were stained apart, and nowhere else."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.data.groups import CLEAR, auto_groups, stain_features
from spaces.samples.tissue import SLIDES, draw_tile, draw_tissue


def tiles(slides, per_slide, seed=0):
    """Tiles of the given slides of the sample, (images, slide of each), shuffled."""
    rng = np.random.default_rng(seed)
    slide_N = rng.permutation(np.repeat(slides, per_slide))
    drawn = [draw_tile(rng, draw_tissue(rng, SLIDES[s]), SLIDES[s]) for s in slide_N]
    return np.stack(drawn), slide_N


@pytest.fixture(scope="module")
def three():
    return tiles([0, 1, 2], 60)


def agreement(labels, slide_N):
    """Share of tiles that lie with the majority slide of their group."""
    hits = [np.bincount(slide_N[labels == k]).max() for k in np.unique(labels)]
    return sum(hits) / len(labels)


def test_the_three_slides_of_the_sample_are_found(three):
    images_NHWC, slide_N = three
    found = auto_groups(images_NHWC, seed=0)
    assert len(found.sizes) == 3
    assert agreement(found.labels, slide_N) >= 0.97
    assert found.sizes == tuple(np.bincount(found.labels))
    assert list(found.sizes) == sorted(found.sizes, reverse=True)
    assert "3 groups" in found.reason


def test_the_same_seed_finds_the_same_groups(three):
    first, second = (auto_groups(three[0], seed=3) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert first.silhouette == second.silhouette


@pytest.mark.parametrize("slide", [0, 1, 2])
def test_one_slide_is_not_split(three, slide):
    images_NHWC, slide_N = three
    found = auto_groups(images_NHWC[slide_N == slide], seed=0)
    assert found.labels is None
    assert found.sizes == ()
    assert found.silhouette < CLEAR
    assert "no clear clusters" in found.reason


def test_stain_that_drifts_within_a_slide_is_not_split(three):
    images_NHWC, slide_N = three
    one = images_NHWC[slide_N == 0]
    drift = np.random.default_rng(0).normal(1, 0.06, (len(one), 1, 1, 3))
    drifted = 255 * (np.maximum(one, 1) / 255) ** drift
    assert auto_groups(drifted.round().astype(np.uint8), seed=0).labels is None


def test_noise_is_not_split():
    noise = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), dtype=np.uint8)
    assert auto_groups(noise, seed=0).labels is None


def test_grey_images_are_not_split_even_when_they_form_clusters():
    rng = np.random.default_rng(0)
    dark, light = (rng.normal(m, 5, (40, 16, 16, 1)) for m in (60, 190))
    grey = np.repeat(np.concatenate([dark, light]), 3, axis=3).round().astype(np.uint8)
    found = auto_groups(grey, seed=0)
    assert found.labels is None
    assert "grey" in found.reason


@pytest.mark.parametrize("shape", [(50, 1, 1, 3), (50, 8, 8, 3)])
@pytest.mark.parametrize("value", [(255, 255, 255), (0, 0, 0), (200, 100, 150)])
def test_blank_tiles_give_no_groups(shape, value):
    assert auto_groups(np.full(shape, value, np.uint8), seed=0).labels is None


def test_too_few_tiles_give_no_groups(three):
    found = auto_groups(three[0][:20], seed=0)
    assert found.labels is None
    assert "too few" in found.reason


def test_features_ignore_the_amount_of_stain_more_than_its_kind(three):
    images_NHWC, slide_N = three
    x_NF = stain_features(images_NHWC)
    means = np.stack([x_NF[slide_N == s].mean(axis=0) for s in range(3)])
    within = np.sqrt(np.mean([x_NF[slide_N == s].var(axis=0) for s in range(3)], axis=0))
    assert np.isfinite(x_NF).all()
    assert np.median(means.std(axis=0) / within) > 1.5


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "word"), [("her2st", "no clear clusters"), ("pneumonia", "grey")])
def test_real_images_of_one_laboratory_are_not_split(data_root, name, word):
    if name == "her2st":
        paths = [data_root / name / p for p in pd.read_csv(data_root / name / "train.csv")["path"]]
    else:
        paths = sorted((data_root / name).rglob("*.png"))
    images = [np.array(Image.open(path).convert("RGB")) for path in paths[:400]]
    found = auto_groups(np.stack(images), seed=0)
    assert found.labels is None
    assert word in found.reason
