"""Frames and captions are found where they were drawn, and nowhere else."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from search.data.borders import (
    Box,
    clean,
    crop_border,
    find_border,
    find_captions,
    mask_captions,
)
from spaces.samples.tissue import SLIDES, draw_tile, draw_tissue

WHITE, BLACK, YELLOW = (255, 255, 255), (0, 0, 0), (255, 255, 0)


def x_ray(side, seed=0):
    """Two dark lungs in a soft body on a dark ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = 60 + 120 * np.exp(-((x / 0.9) ** 6))
    for centre in (-0.45, 0.45):
        body -= 90 * np.exp(-(((x - centre) / 0.3) ** 2) - (y / 0.6) ** 2)
    grey = np.clip(body + rng.normal(0, 3, body.shape), 0, 255)
    return grey[..., None].repeat(3, 2).astype(np.uint8)


def vessels(side, seed=0):
    """A dark tree on a light, uneven ground, as an angiogram shows it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    grey = 150 + 20 * x + 15 * np.cos(3 * y)
    for _ in range(6):
        a, b, c = rng.uniform(-1, 1, 3)
        grey -= 90 * np.exp(-(((y - a * x - 0.4 * np.sin(3 * x + b) - c) / 0.03) ** 2))
    return np.clip(grey, 0, 255)[..., None].repeat(3, 2).astype(np.uint8)


def tissue(side, seed=0):
    rng = np.random.default_rng(seed)
    tile = draw_tile(rng, draw_tissue(rng, SLIDES[0]), SLIDES[0])
    return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC))


def gland(side):
    """An object on black, as a mask is rendered."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    grey = np.where((x - 0.5 * y) ** 2 / 0.1 + y**2 / 0.4 < 1, 130, 0)
    return grey[..., None].repeat(3, 2).astype(np.uint8)


KINDS = {"X-ray": x_ray, "vessels": vessels, "tissue": tissue}


def framed(image, top, bottom, left, right, colour=0):
    widths = ((top, bottom), (left, right), (0, 0))
    return np.pad(image, widths, constant_values=colour)


def written(image, colour, corner, size=10, text="LI-A 12"):
    """The image with text in a corner, and where its ink is."""
    picture = Image.fromarray(image.copy())
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    _, _, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = 2 if corner % 2 == 0 else picture.width - right - 2
    y = 2 if corner < 2 else picture.height - bottom - 2
    pen.text((x, y), text, fill=colour, font=font)
    after = np.asarray(picture)
    return after, (after != image).any(axis=2)


def covered(boxes, ink_HW):
    under_HW = np.zeros(ink_HW.shape, bool)
    for box in boxes:
        under_HW[box.slices] = True
    return (under_HW & ink_HW).sum() / ink_HW.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("widths", [(12, 12, 12, 12), (20, 20, 0, 0), (0, 0, 0, 9), (5, 30, 8, 3)])
def test_a_frame_is_found_to_the_pixel(kind, colour, widths):
    image = KINDS[kind](128)
    box = find_border(framed(image, *widths, colour=colour))
    top, _, left, _ = widths
    assert box == Box(top=top, bottom=top + 128, left=left, right=left + 128)
    assert np.array_equal(crop_border(framed(image, *widths, colour=colour), box), image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [28, 64, 256])
def test_clean_images_stay_as_they_are(kind, side):
    for seed in range(5):
        image = tissue(side, seed) if kind == "tissue" else KINDS[kind](side)
        after, found = clean(image, True, True)
        assert after is image
        assert found.border is None and found.captions == ()


def test_an_object_on_black_has_no_border():
    assert find_border(gland(64)) is None
    assert find_border(gland(200)) is None


def test_glass_beside_tissue_is_no_border():
    image = tissue(128)
    y, x = np.mgrid[:128, :128]
    image = np.where((y < 30 + 12 * np.sin(x / 9))[..., None], np.uint8(243), image)
    assert find_border(image) is None


def test_an_empty_margin_with_noise_is_no_border():
    noise = np.random.default_rng(0).normal(0, 2.5, (128, 128, 1))
    image = np.clip(np.where(np.arange(128)[:, None, None] < 30, 9, 90) + noise, 0, 255)
    assert find_border(image.astype(np.uint8)) is None
    image[:30] = 9
    assert find_border(image.astype(np.uint8)) == Box(top=30, bottom=128, left=0, right=128)


def test_a_black_frame_on_a_dark_noisy_ground_is_found():
    noise = np.random.default_rng(0).normal(9, 2.5, (128, 128, 4))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    assert find_border(image) is None
    assert find_border(framed(image, 12, 12, 12, 12)) == Box(top=12, bottom=140, left=12, right=140)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_image_has_neither(value):
    after, found = clean(np.full((64, 64, 3), value, np.uint8), True, True)
    assert after.shape == (64, 64, 3)
    assert found.border is None and found.captions == ()


def test_a_frame_that_was_saved_as_jpeg_is_found(tmp_path):
    Image.fromarray(framed(vessels(200), 16, 16, 16, 16)).save(tmp_path / "a.jpg", quality=75)
    box = find_border(np.asarray(Image.open(tmp_path / "a.jpg")))
    assert box is not None
    assert np.allclose([box.top, box.bottom, box.left, box.right], [16, 216, 16, 216], atol=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("side", "size"), [(64, 10), (128, 10), (256, 14), (1024, 10), (1024, 32)])
def test_a_caption_is_found_in_every_corner(kind, side, size):
    image = KINDS[kind](side)
    ground = image.mean()
    colour = WHITE if ground < 140 else BLACK
    text = "LI-A 12" if side > 64 else "LI-A"
    for corner in range(4):
        after, ink_HW = written(image, colour, corner, size, text)
        boxes = find_captions(after)
        assert covered(boxes, ink_HW) >= 0.9, corner
        assert sum((b.bottom - b.top) * (b.right - b.left) for b in boxes) < 0.35 * side**2


def test_a_caption_in_one_strong_colour_is_found():
    after, ink_HW = written(x_ray(128), YELLOW, 0)
    assert covered(find_captions(after), ink_HW) >= 0.9


def test_a_masked_caption_is_gone():
    image = x_ray(128)
    after, ink_HW = written(image, WHITE, 0)
    masked = mask_captions(after, find_captions(after))
    before = np.abs(after.astype(int) - image)[ink_HW].mean()
    assert np.abs(masked.astype(int) - image)[ink_HW].mean() < 0.25 * before
    assert find_captions(masked) == []
    assert np.array_equal(after, written(image, WHITE, 0)[0])  # the input is not written to


def test_a_caption_in_the_border_does_not_hide_the_border():
    inside = vessels(160)
    image = framed(inside, 20, 20, 20, 20)
    after, _ = written(image, WHITE, 0)
    cleaned, found = clean(after, True, True)
    assert len(found.captions) == 1
    assert found.border == Box(top=20, bottom=180, left=20, right=180)
    assert np.array_equal(cleaned, inside)
    assert clean(after, False, False)[0] is after


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["pneumonia/train/train_data", "her2st/train", "adrenal/train_set"]
)
def test_at_most_one_real_image_in_a_hundred_is_flagged(data_root, name):
    paths = sorted((data_root / name).glob("*.png"))
    paths = paths[:: max(1, len(paths) // 600)]
    found = [clean(np.asarray(Image.open(p).convert("RGB")), True, True)[1] for p in paths]
    assert np.mean([f.border is not None for f in found]) <= 0.01
    assert np.mean([len(f.captions) > 0 for f in found]) <= 0.01
