"""Contact sheets: small, whole, and with the right images in the right places."""

import numpy as np
import pytest
from PIL import Image

from search.data.pictures import MOST_BYTES, before_after, clusters, duplicates, grid

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30))


def plain(colour, height=40, width=40):
    return np.full((height, width, 3), colour, np.uint8)


def colours_of(path):
    """Colours that cover at least a hundredth of the picture, without paper."""
    page = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(page, axis=0, return_counts=True)
    return {tuple(c) for c in found[counts > len(page) / 100].tolist()} - {(255, 255, 255)}


def test_every_image_is_on_the_sheet_in_order(tmp_path):
    grid([plain(c) for c in COLOURS], ["a", "b", "c", "d"], tmp_path / "grid.png", columns=2)
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    half_y, half_x = page.shape[0] // 2, page.shape[1] // 2
    for i, colour in enumerate(COLOURS):
        y, x = i // 2 * half_y + half_y // 2 - 5, i % 2 * half_x + half_x // 2
        assert tuple(page[y, x].tolist()) == colour
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_noise_stays_a_small_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 200, 150, 3), dtype=np.uint8)
    grid(list(noise), ["a very long file name of an image.png"] * 64, tmp_path / "noise.png")
    assert 10_000 < (tmp_path / "noise.png").stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (300, 40), (9, 500)])
def test_images_of_any_shape_are_drawn(tmp_path, channels, height, width):
    image = np.full((height, width, channels), 100, np.uint8)
    grid([image], ["x"], tmp_path / "one.png")
    assert (100, 100, 100) in colours_of(tmp_path / "one.png")


def test_nothing_to_draw_writes_nothing(tmp_path):
    grid([], [], tmp_path / "none.png")
    duplicates([], [], tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_before_and_after_stand_side_by_side(tmp_path):
    pairs = [(plain(COLOURS[0]), plain(COLOURS[1]))]
    before_after(pairs, tmp_path / "pairs.png", names=["first.png"])
    page = np.asarray(Image.open(tmp_path / "pairs.png"))
    row = page[40]
    assert tuple(row[len(row) // 4].tolist()) == COLOURS[0]
    assert tuple(row[3 * len(row) // 4].tolist()) == COLOURS[1]


def test_each_cluster_has_a_row_of_its_own(tmp_path):
    labels = np.array([0] * 10 + [1] * 3 + [2] * 5)
    images = np.stack([plain(COLOURS[k]) for k in labels])
    clusters(images, labels, tmp_path / "clusters.png")
    page = np.asarray(Image.open(tmp_path / "clusters.png"))
    third = page.shape[0] / 3
    for k in range(3):
        line = page[int(third * (k + 0.4))]
        assert {tuple(p) for p in line.tolist()} == {COLOURS[k], (255, 255, 255)}
    assert colours_of(tmp_path / "clusters.png") == set(COLOURS[:3])


def test_the_images_of_a_pair_are_shown(tmp_path):
    images = [plain(c) for c in COLOURS]
    duplicates(images, [(0, 2)], tmp_path / "pairs.png", names=list("abcd"))
    assert colours_of(tmp_path / "pairs.png") == {COLOURS[0], COLOURS[2]}
