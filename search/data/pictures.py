"""Pictures for the report on the data: contact sheets as small PNG files.

Shapes: N images of (H, W, C); one channel is drawn grey, of more the first three are drawn.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from search.run_folder import write_file

Pixels = NDArray[np.uint8]
MOST_BYTES = 300_000
_SIDE = 96  # pixels of a drawn image
_GAP, _LINE = 4, 13  # pixels between images, and for a line of text
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def grid(
    images: Sequence[Pixels], captions: Sequence[str], path: Path, columns: int = 8, most: int = 64
) -> None:
    """The first `most` images in rows, each with its caption below; captions are cut to fit."""
    cells = list(zip(images, captions, strict=True))[:most]
    if not cells:
        return
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    step_x, step_y = _SIDE + _GAP, _SIDE + _LINE + _GAP
    page = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(10)
    for i, (image_HWC, caption) in enumerate(cells):
        x, y = _GAP + i % columns * step_x, _GAP + i // columns * step_y
        drawn = _drawn(image_HWC)
        page.paste(drawn, (x + (_SIDE - drawn.width) // 2, y + (_SIDE - drawn.height) // 2))
        pen.text((x, y + _SIDE), _cut(caption, font), fill=_INK, font=font)
    _save(page, path)


def before_after(
    pairs: Sequence[tuple[Pixels, Pixels]], path: Path, most: int = 16, names: Sequence[str] = ()
) -> None:
    """Each image as it was and as it is used, side by side, four to a row."""
    images = [image for pair in pairs[:most] for image in pair]
    texts = [
        f"{names[i] + ' ' if i < len(names) else ''}{word}"
        for i in range(min(most, len(pairs)))
        for word in ("before", "after")
    ]
    grid(images, texts, path, most=2 * most)


def clusters(
    images: Sequence[Pixels] | Pixels,
    labels: NDArray[np.integer],
    path: Path,
    each: int = 8,
    seed: int = 0,
) -> None:
    """A row of images drawn at random from each cluster, with the cluster's number and size."""
    rng = np.random.default_rng(seed)
    shown: list[Pixels] = []
    texts: list[str] = []
    for label in np.unique(labels)[:12]:
        members = np.flatnonzero(labels == label)
        chosen = np.sort(rng.permutation(members)[:each])
        shown += [images[i] for i in chosen] + [_blank()] * (each - len(chosen))
        texts += [f"group {label}: {len(members)}", *[""] * (each - 1)]
    grid(shown, texts, path, columns=each, most=len(shown))


def duplicates(
    images: Sequence[Pixels] | Pixels,
    pairs: Sequence[tuple[int, int]],
    path: Path,
    most: int = 16,
    names: Sequence[str] = (),
) -> None:
    """Pairs of images side by side, named, or numbered where there are no names."""
    shown = [i for pair in pairs[:most] for i in pair]
    texts = [names[i] if names else str(i) for i in shown]
    grid([images[i] for i in shown], texts, path, most=2 * most)


def _drawn(image_HWC: Pixels) -> Image.Image:
    """Fitted into the square of a cell; small images stay pixelated, which is what they are."""
    channels = image_HWC[..., :3] if image_HWC.shape[-1] >= 3 else image_HWC[..., 0]
    image = Image.fromarray(np.ascontiguousarray(channels)).convert("RGB")
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    return image.resize(size, way)


def _blank() -> Pixels:
    return np.full((1, 1, 3), 255, np.uint8)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a long caption: file names differ there."""
    if font.getlength(text) <= _SIDE:
        return text
    while text and font.getlength("…" + text) > _SIDE:
        text = text[1:]
    return "…" + text


def _save(page: Image.Image, path: Path) -> None:
    """As PNG of at most MOST_BYTES: fewer colours, then fewer pixels, until it fits."""

    def write(temporary: Path) -> None:
        page.save(temporary, "PNG", optimize=True)
        width, height = page.size
        while temporary.stat().st_size > MOST_BYTES and min(width, height) > 64:
            page.resize((width, height)).quantize(128).save(temporary, "PNG", optimize=True)
            width, height = width * 4 // 5, height * 4 // 5

    write_file(path, write)
