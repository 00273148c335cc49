"""Groups are found where slides were stained, scanned or corrected apart, and nowhere else."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.data.groups import (
    CLEAR,
    auto_groups,
    explained,
    how_different,
    stain_features,
    target_offsets,
)
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


def grey_images(mean, spread, count=40, side=16, seed=0):
    grey = np.random.default_rng(seed).normal(mean, spread, (count, side, side, 1))
    return grey.clip(0, 255).round().astype(np.uint8).repeat(3, axis=3)


def test_grey_images_of_two_scanners_are_found():
    found = auto_groups(np.concatenate([grey_images(60, 5), grey_images(190, 15)]), seed=0)
    assert found.evidence == "scanner"
    assert agreement(found.labels, np.repeat([0, 1], 40)) == 1
    assert len(found.sizes) == 2 and "scanner" in found.reason


def test_grey_images_of_one_scanner_are_not_split():
    rng = np.random.default_rng(0)
    images = np.concatenate([grey_images(rng.normal(120, 15), 5, 1, seed=s) for s in range(80)])
    found = auto_groups(images, seed=0)
    assert found.labels is None and found.evidence == "scanner"
    assert found.silhouette < CLEAR


def test_groups_are_of_rows_where_rows_have_views():
    """Two kinds of views must not become two groups, nor may a row lie in two."""
    views = [(60, 5), (190, 15)]
    rows = [grey_images(*view, 1, seed=s) for s in range(60) for view in views]
    found = auto_groups(np.concatenate(rows), seed=0, views=2)
    assert found.labels is None
    other = [grey_images(m - 40, 25, 1, seed=s) for s in range(60) for m, _ in views]
    found = auto_groups(np.concatenate(rows + other), seed=0, views=2)
    assert len(found.labels) == 120
    assert agreement(found.labels, np.repeat([0, 1], 60)) == 1


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


def corrected(rng, sizes, genes=60, silent=0.7):
    """Targets with a constant per slide where a gene is silent, and the slide of each row."""
    slide_N = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    offset_TS = rng.normal(0, 0.001, (genes, len(sizes))).astype(np.float32)
    targets_TN = rng.gamma(2, 0.5, (genes, len(slide_N))).astype(np.float32)
    silent_TN = rng.random(targets_TN.shape) < rng.uniform(silent, 0.95, (genes, 1))
    return np.where(silent_TN, offset_TS[:, slide_N], targets_TN), slide_N


def test_constants_of_the_targets_tell_the_slides():
    targets_TN, slide_N = corrected(np.random.default_rng(0), (90, 60, 50))
    labels = target_offsets(targets_TN)
    assert agreement(labels, slide_N) == 1
    assert np.bincount(labels).tolist() == [90, 60, 50]


def test_a_gene_that_is_expressed_everywhere_or_odd_does_no_harm():
    rng = np.random.default_rng(1)
    targets_TN, slide_N = corrected(rng, (90, 60, 50))
    targets_TN[::3] = rng.normal(0, 1, (20, 200))
    targets_TN[1] = np.where(rng.random(200) < 0.5, 0.1, 0.2)  # divides the rows in its own way
    assert agreement(target_offsets(targets_TN), slide_N) == 1


@pytest.mark.parametrize("kind", ["one slide", "zeros", "counts", "classes", "halves", "noise"])
def test_other_targets_tell_no_slides(kind):
    rng = np.random.default_rng(0)
    targets_TN = {
        "one slide": corrected(rng, (200,))[0],
        "zeros": np.log1p(rng.poisson(0.3, (60, 200)) * rng.uniform(1, 2, 200)),
        "counts": rng.poisson(0.5, (60, 200)).astype(float),
        "classes": np.eye(4)[rng.integers(0, 4, 200)].T,
        "halves": rng.integers(0, 4, (60, 200)) / 2 + 0.25,
        "noise": rng.normal(0, 1, (60, 200)),
    }[kind]
    assert target_offsets(targets_TN.astype(np.float32)) is None


def test_targets_go_before_images_and_the_reason_says_so(three):
    images_NHWC, _ = three
    targets_TN, slide_N = corrected(np.random.default_rng(0), (80, 60, 40))
    found = auto_groups(images_NHWC, seed=0, targets_TN=targets_TN)
    assert found.evidence == "targets" and "targets" in found.reason
    assert agreement(found.labels, slide_N) == 1
    noise_TN = np.random.default_rng(0).normal(0, 1, (9, 180))
    fallen_back = auto_groups(images_NHWC, seed=0, targets_TN=noise_TN)
    assert fallen_back.evidence == "stain"
    assert np.array_equal(fallen_back.labels, auto_groups(images_NHWC, seed=0).labels)


def test_what_differs_between_groups_is_told():
    images = np.concatenate([grey_images(60, 4, 10), grey_images(190, 12, 5)])
    images[:10, :, :, 0] += 20
    low, high = how_different(images, np.repeat([0, 1], [10, 5]))
    assert (low["group"], low["rows"], high["rows"]) == (0, 10, 5)
    assert low["red"] == pytest.approx(80, abs=1) and low["blue"] == pytest.approx(60, abs=1)
    # The noise that was drawn is what is measured.
    assert low["noise"] == pytest.approx(4, rel=0.15)
    assert high["noise"] == pytest.approx(12, rel=0.15)
    assert how_different(images[:10], np.zeros(5, int), views=2)[0]["rows"] == 5


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "word"), [("her2st", "stain"), ("pneumonia", "scanner")])
def test_real_images_of_one_laboratory_are_not_split(data_root, name, word):
    if name == "her2st":
        paths = [data_root / name / p for p in pd.read_csv(data_root / name / "train.csv")["path"]]
    else:
        paths = sorted((data_root / name).rglob("*.png"))
    images = [np.array(Image.open(path).convert("RGB")) for path in paths[:400]]
    found = auto_groups(np.stack(images), seed=0)
    assert found.labels is None
    assert "no clear clusters" in found.reason
    assert found.evidence == word


def test_explained_is_the_share_of_a_class_that_groups_tell():
    labels = np.repeat((0, 1), 50)
    same, half = labels[None].astype(np.float32), np.tile((0, 1), 50)[None].astype(np.float32)
    assert explained(labels, same) == pytest.approx(1)
    assert explained(labels, half) == pytest.approx(0, abs=1e-9)
    assert explained(labels, np.concatenate([half, same])) == pytest.approx(1)
    assert explained(labels, np.zeros((2, 100), np.float32)) == 0
