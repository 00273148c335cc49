"""Image files as arrays: whatever PNG, JPEG or TIFF holds, converted the same way everywhere.

Shapes: H, W pixels, C channels: the colours of one file, or one grey file each.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from spaces.errors import UserError

FORMATS = ("PNG", "JPEG", "TIFF")
# What a decoded image may hold at most: Pillow's own limit against decompression bombs. Pillow only
# warns up to twice this size; here it is refused, since 89 million pixels are no tile.
MAX_PIXELS = 89_478_485
# (H, W, C) uint8 -> the same with other pixels: borders cropped, captions blackened, ...
Clean = Callable[[np.ndarray], np.ndarray]
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow's modes of 16 bit grey


class UnreadableImage(ValueError):
    """The file is no whole image of a known kind; the message says why. `file` is which it is,
    where an image has several."""

    def __init__(self, reason: str, file: str = "") -> None:
        super().__init__(reason)
        self.file = file


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What is in the file, before conversion."""

    width: int
    height: int
    mode: str  # Pillow's, with ";16" behind it for 16 bit colour, e.g. "L", "RGBA", "RGB;16"
    format: str
    transparent: bool = False  # an alpha channel, or a colour that stands for none
    frames: int = 1  # pages of a TIFF; only the first is read
    peak: int | None = None  # largest value of a 16 bit grey image

    @property
    def conversions(self) -> tuple[str, ...]:
        """What is done to make 8 bit RGB of it; empty for what is that already."""
        mode = self.mode.removesuffix(";16")
        grey = mode in ("1", "L", "LA", "La") or mode in _WIDE or self.mode.startswith("I")
        steps = {
            "grey": grey,
            "alpha": self.transparent,
            "palette": mode in ("P", "PA"),
            "16 bit": self.mode.endswith(";16") or self.mode in _WIDE,
            "first page only": self.frames > 1,
        }
        found = tuple(step for step, needed in steps.items() if needed)
        return found if found or mode == "RGB" else (mode,)


def examine(data: bytes) -> tuple[ImageFacts, np.ndarray]:
    """What the bytes of a file hold, decoded fully, so that a truncated one is noticed; and the
    image as uint8 RGB (H, W, 3), see `decode`. Raises UnreadableImage."""
    image, found = _open(data)
    if found.mode in _WIDE:
        # A 12 bit camera's picture in a 16 bit file comes out almost black: the report shows it.
        values_HW = np.asarray(image)
        low, high = int(values_HW.min()), int(values_HW.max())
        if low < 0 or high > 65535:
            raise UnreadableImage(f"its values span {low} to {high}; save it with 8 or 16 bits")
        found = replace(found, peak=high)
    return found, np.asarray(_converted(image, found.mode, "RGB"))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as the file's header tells. Raises UserError."""
    try:
        with open(path, "rb") as file:
            return _identify(file).size
    except OSError as error:
        reason = error.strerror or str(error)
    except UnreadableImage as error:
        reason = str(error)
    raise UserError(f"{path} is unreadable: {reason}; replace it")


def check_header(path: Path) -> None:
    """A quick look: is it there, and does it begin like an image that may be read? The pixels are
    not touched. Raises UnreadableImage."""
    try:
        with open(path, "rb") as file:
            _identify(file)
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None


def decode(path: Path, size: int | None) -> np.ndarray:
    """The image as uint8 RGB (H, W, 3), squeezed to size x size pixels unless `size` is None.

    Grey is repeated, alpha is laid on white (a slide's background), 16 bit values are divided by
    257 (65535 becomes 255: the same for every image, so brightness stays comparable), palettes and
    CMYK are resolved. EXIF is ignored: a rotation flag of a camera has no meaning for a tile.
    Raises UnreadableImage.
    """
    return np.asarray(_squeeze(_load(path, "RGB"), size))


def salvage(path: Path) -> np.ndarray | None:
    """What a file that is no whole image still shows, as `decode` gives it, for people to look at;
    what is missing is grey or black. None where nothing can be seen.

    Not beside decoding threads: Pillow is patient for the whole process or not at all.
    """
    patient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        return decode(path, None)
    except UnreadableImage:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = patient


def decode_image(
    root: Path, files: Sequence[str], size: int | None, clean: Clean | None = None
) -> np.ndarray:
    """An image as uint8 (H, W, C): its only file as `decode` gives it, or several files as grey
    channels of one size. `clean` changes the pixels before they are squeezed.

    A coloured file among channels counts by its luminance. Raises UnreadableImage.
    """
    images = []
    for file in files:
        try:
            images.append(_load(root / file, "RGB" if len(files) == 1 else "L"))
        except UnreadableImage as error:
            raise UnreadableImage(str(error), file) from None
        if images[-1].size != images[0].size:
            reason = (
                f"it has {_side(images[-1])} pixels, but {files[0]} has {_side(images[0])}, and "
                "the channels of an image must agree"
            )
            raise UnreadableImage(reason, file)
    if clean:
        image_HWC = clean(np.dstack([np.asarray(image) for image in images]))
        planes = [image_HWC] if len(files) == 1 else np.moveaxis(image_HWC, 2, 0)
        images = [Image.fromarray(plane) for plane in planes]
    # Channels one by one: Pillow would take four for colours with transparency.
    squeezed = [np.asarray(_squeeze(image, size)) for image in images]
    return squeezed[0] if len(files) == 1 else np.dstack(squeezed)


def _load(path: Path, mode: str) -> Image.Image:
    """The image in `mode`, "RGB" or "L". Raises UnreadableImage."""
    image, found = _open(_read(path))
    return _converted(image, found.mode, mode)


def _converted(image: Image.Image, found: str, mode: str) -> Image.Image:
    """An image of the mode `found` (see ImageFacts) in `mode`. Raises UnreadableImage."""
    try:
        image = _plain(image, found)
        return image if image.mode == mode else image.convert(mode)
    except Exception as error:
        raise UnreadableImage(_reason(error)) from None


def _squeeze(image: Image.Image, size: int | None) -> Image.Image:
    if size is None or image.size == (size, size):
        return image
    # Pillow's bicubic widens its kernel when it shrinks, which is antialiasing.
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _side(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None


def _open(data: bytes) -> tuple[Image.Image, ImageFacts]:
    """The decoded image and its facts. Raises UnreadableImage."""
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        image = _identify(io.BytesIO(data))
        # Pillow reads 16 bit colour as 8 bit; only the raw mode of the tiles tells.
        raw = [str(getattr(tile, "args", "")) for tile in getattr(image, "tile", ())]
        frames = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        image.load()
    except UnreadableImage:
        raise
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise UnreadableImage(_reason(error)) from None
    if image.mode == "F":
        raise UnreadableImage("its values are 32 bit floats of no known range; save 8 or 16 bits")
    wide_colour = image.mode not in _WIDE and any(";16" in args for args in raw)
    return image, ImageFacts(
        width=image.width,
        height=image.height,
        mode=f"{image.mode};16" if wide_colour else image.mode,
        format=str(image.format),
        transparent=_transparent(image),
        frames=frames,
    )


def _identify(file: IO[bytes]) -> Image.Image:
    """The image, its header read. Raises UnreadableImage."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UnreadableImage(f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise UnreadableImage(_reason(error)) from None
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(
            f"it claims {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read"
        )
    return image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image with 8 bits a colour and nothing transparent."""
    if mode in _WIDE:
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8))
    if _transparent(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
