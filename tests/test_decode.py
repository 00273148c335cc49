from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.data.decode import ImageFacts, UnreadableImage, decode, decode_image, examine, size_of
from spaces.errors import UserError
from tests.datafolder import bomb, png, truncate

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def facts(path: Path) -> ImageFacts:
    """What the file holds; its pixels are those that are decoded."""
    found, image_HW3 = examine(path.read_bytes())
    assert np.array_equal(image_HW3, decode(path, None))
    assert size_of(path) == (found.width, found.height) == image_HW3.shape[1::-1]
    return found


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_rgb_files_come_back_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    smooth = np.repeat(np.arange(12, dtype=np.uint8)[:, None] * 20, 10, axis=1)
    rgb = np.dstack([smooth, smooth, smooth])
    Image.fromarray(rgb).save(path)
    image = decode(path, None)
    assert image.shape == (12, 10, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - rgb).max() <= (4 if suffix == "jpg" else 0)
    found = facts(path)
    assert (found.width, found.height, found.mode, found.conversions) == (10, 12, "RGB", ())


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", None), np.repeat(RGB[..., :1], 3, axis=2))
    assert facts(tmp_path / "a.png").conversions == ("grey",)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    alpha = np.zeros((12, 10), dtype=np.uint8)
    alpha[:6] = 255
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png", None)
    opaque = np.asarray(Image.fromarray(RGB).convert(mode.removesuffix("A")).convert("RGB"))
    assert np.array_equal(out[:6], opaque[:6]) and (out[6:] == 255).all()
    assert "alpha" in facts(tmp_path / "a.png").conversions


def test_a_palette_is_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(16)
    image.save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", None), np.asarray(image.convert("RGB")))
    assert facts(tmp_path / "a.png").conversions == ("palette",)


def test_a_colour_that_stands_for_nothing_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    out = decode(tmp_path / "a.png", None)
    assert out[0, 0].tolist() == [255, 255, 255] and out[1, 1].tolist() == [9, 8, 7]
    assert facts(tmp_path / "a.png").conversions == ("alpha", "palette")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    assert np.array_equal(decode(path, None)[..., 1], values // 257)
    found = facts(path)
    assert found.conversions == ("grey", "16 bit") and found.peak == 65535


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_colour_is_read_and_told(tmp_path: Path, channels: int) -> None:
    values = np.full((5, 6, channels), 40000, dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(values))
    assert np.abs(decode(tmp_path / "a.png", None).astype(int) - 40000 // 257).max() <= 1
    assert "16 bit" in facts(tmp_path / "a.png").conversions


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (10, 12), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = decode(tmp_path / "a.jpg", None)
    assert red[..., 0].min() > 200 and red[..., 1:].max() < 60
    assert facts(tmp_path / "a.jpg").conversions == ("CMYK",)


def test_a_size_squeezes_to_a_square_without_aliasing(tmp_path: Path) -> None:
    stripes = np.zeros((64, 32, 3), dtype=np.uint8)
    stripes[::2] = 255  # finer than the small image can show: must come out grey
    Image.fromarray(stripes).save(tmp_path / "a.png")
    small = decode(tmp_path / "a.png", 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small[1:-1].astype(int) - 127).max() < 20


def test_the_rotation_flag_of_a_camera_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg", None).shape == (12, 10, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_truncated_file_is_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    truncate(path)
    for read in (facts, lambda p: decode(p, 8)):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        assert str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a" + bytes(40)])
def test_what_is_no_image_of_a_known_kind_is_unreadable(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"empty|none of PNG, JPEG, TIFF"):
        facts(tmp_path / "a.png")


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(tmp_path / "a.png", 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9500, 60000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side))
    with pytest.raises(UnreadableImage, match="pixels"):
        decode(tmp_path / "a.png", 8)


def test_floats_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RNG.random((8, 8)).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="32 bit floats"):
        facts(tmp_path / "a.tif")


def test_only_the_first_page_of_a_tiff_is_read_and_that_is_told(tmp_path: Path) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode(tmp_path / "a.tif", None), RGB)
    assert facts(tmp_path / "a.tif").conversions == ("first page only",)


def test_one_file_is_decoded_as_ever_and_several_become_channels(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)
    Image.fromarray(RGB).save(tmp_path / "colour.png")
    Image.fromarray(RGB[..., 1]).save(tmp_path / "grey.png")
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(np.repeat(RGB[..., 2:], 3, axis=2)).save(tmp_path / "equal.png")
    files = ["grey.png", "wide.png", "equal.png", "colour.png"]
    one = decode_image(tmp_path, files[:1], 8)
    assert np.array_equal(one, decode(tmp_path / "grey.png", 8)) and one.shape == (8, 8, 3)
    image_HWC = decode_image(tmp_path, files, None)
    assert image_HWC.shape == (12, 10, 4) and image_HWC.dtype == np.uint8
    luminance = np.round(RGB @ np.array([0.299, 0.587, 0.114]))
    assert np.array_equal(image_HWC[..., 0], RGB[..., 1])
    assert np.array_equal(image_HWC[..., 1], wide // 257)
    assert np.array_equal(image_HWC[..., 2], RGB[..., 2])
    assert np.abs(image_HWC[..., 3] - luminance).max() <= 1
    small_HWC = decode_image(tmp_path, files, 8)
    for channel, file in enumerate(files[:3]):
        assert np.array_equal(small_HWC[..., channel], decode(tmp_path / file, 8)[..., 0])


def test_channels_of_different_sizes_are_both_named(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "red.png")
    Image.fromarray(RGB[:7]).save(tmp_path / "blue.png")
    with pytest.raises(UnreadableImage, match=r"10 x 7 .* red\.png has 10 x 12") as caught:
        decode_image(tmp_path, ["red.png", "blue.png"], 8)
    assert caught.value.file == "blue.png"


@pytest.mark.parametrize("files", [["a.png"], ["a.png", "b.png"]])
def test_cleaning_sees_whole_images_and_may_crop_them(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        Image.fromarray(RGB).save(tmp_path / file)
    seen = []

    def clean(image_HWC: np.ndarray) -> np.ndarray:
        seen.append(image_HWC.shape)
        return image_HWC[2:6, 2:6]

    channels = 3 if len(files) == 1 else len(files)
    image_HWC = decode_image(tmp_path, files, 4, clean)
    assert seen == [(12, 10, channels)] and image_HWC.shape == (4, 4, channels)
    assert np.array_equal(image_HWC, decode_image(tmp_path, files, None)[2:6, 2:6])


def test_the_size_of_a_file_that_is_no_image_is_a_fault_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    for name, reason in (("a.png", "none of PNG"), ("b.png", "No such file")):
        with pytest.raises(UserError, match=rf"{name} is unreadable: .*{reason}"):
            size_of(tmp_path / name)
