"""Borders and burnt-in captions: what a scanner or a clerk put around and on the image.

Border: lines along a side of one colour, the colour of their outermost line. It counts where it is
at least 2 % of the side (2 pixels) and ends at once: within a few pixels, most of the line inside
must have another colour; and where one side has such lines but fades, there is no border at all.
Dark lungs, glass beside tissue and a mask on black fade: the first line that differs is still
mostly background. A border along one side alone must be free of noise, which an empty margin is
not. Beside a ground almost as dark, a border is found where it is of exactly one colour and the
ground is not: never around a mask on black. All channels of an image share their border.

Caption: a row of at least three thin strokes of one height on one baseline, in the upper or lower
quarter, drawn in nearly pure white, black or one strong colour. A pixel is compared with its
surroundings and the pure colour together, so thin letters with soft edges stay whole.

Share of images flagged (800 to 870 of each set; captions at 64, 128 and 256 px), and share of drawn
things found: frames of 3 and 15 % in black, grey and white round 40 images; captions of Pillow's
own font, 10 px, in any corner of 80 images of 256 px, of which 90 % of the pixels are covered. What
is missed is mostly text of the colour it stands on, such as black in an X-ray's black corner.

| images | border | caption | frames found | white, black, yellow text found |
|---|---|---|---|---|
| pneumonia, X-rays | 0.1 % | 0, 0, 0 % | 90 to 100 % | 94, 81, 100 % |
| her2st, H&E | 0 % | 0.4, 0, 0.1 % | 100 % | 68, 75, 97 % |
| adrenal, masks on black | 0 % | 0, 0, 0 % | 100 %, black 0 % | 100, none to see, 100 % |

Images with a side under 32 px are taken to have no border: 2 % are less than a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_LEAST = 0.02  # of the side
_SAME = 12  # grey levels within which a pixel has the border's colour
_EXACT = 2  # the same beside a ground almost as dark as the border, which then must be drawn
_FLAT = 0.85  # share of a drawn border's outermost line within _EXACT: it has no noise
_PURE = 0.98  # share of such pixels in a line of the border
_INSIDE = 0.4  # at most this share of them in the first line inside
_SMALL = 32  # pixels of a side below which nothing is said
_KEPT = 0.25  # of a side that must remain

_BAND = 0.25  # of the height, at the top and at the bottom, where captions are looked for
_SMALLEST, _LARGEST = 5, 0.1  # height of a letter: pixels, share of the image's height
_GLYPHS = 3
_INK = 0.4  # of the way from the surroundings to the pure colour, from where a pixel is ink
_CONTRAST = 45  # grey levels between the surroundings and the pure colour
_PEAK = 225  # of 255, reached by the purest pixel of most letters
_BLOCK = 16  # pixels of a side over which surroundings are taken, or a 16th of the image


@dataclass(frozen=True, kw_only=True)
class Box:
    """Rows top to bottom and columns left to right, ends excluded, as in slices."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What `clean` saw, in pixels of the image as it was."""

    border: Box | None = None  # what is inside
    captions: tuple[Box, ...] = ()


def clean(image_HWC: Pixels, crop_borders: bool, hide_captions: bool) -> tuple[Pixels, Found]:
    """The image without captions, then without borders (captions in a border must not hide it)."""
    captions = tuple(find_captions(image_HWC)) if hide_captions else ()
    image_HWC = mask_captions(image_HWC, captions)
    border = find_border(image_HWC) if crop_borders else None
    if border is not None:
        image_HWC = crop_border(image_HWC, border)
    return image_HWC, Found(border=border, captions=captions)


# --- borders


def find_border(image_HWC: Pixels) -> Box | None:
    """The inside of the border; None where there is none. All channels share it."""
    if min(image_HWC.shape[:2]) < _SMALL:
        return None
    return _inside(image_HWC, _SAME) or _inside(image_HWC, _EXACT)


def crop_border(image_HWC: Pixels, box: Box) -> Pixels:
    return np.ascontiguousarray(image_HWC[box.slices])


def _inside(image_HWC: Pixels, within: int) -> Box | None:
    """The inside of a border of one colour within so many grey levels."""
    height, width = image_HWC.shape[:2]
    sides = [_Side(_turned(image_HWC, side), within) for side in range(4)]
    depths = [side.run() for side in sides]
    ends = [_end(sides[k], depths[k], depths[k - 1], depths[(k + 1) % 4]) for k in range(4)]
    # A picture is a rectangle: where one side fades, the others only touch what lies inside.
    if not any(ends) or None in ends:
        return None
    # Along one side alone lies an empty margin more often than a border.
    drawn = [side for side, end in zip(sides, ends, strict=True) if end]
    if len(drawn) == 1 and not drawn[0].flat():
        return None
    top, right, bottom, left = (end or 0 for end in ends)
    box = Box(top=top, bottom=height - bottom, left=left, right=width - right)
    if box.bottom - box.top < _KEPT * height or box.right - box.left < _KEPT * width:
        return None
    return box


def _turned(image_HWC: Pixels, side: int) -> Pixels:
    """The image with side 0 top, 1 right, 2 bottom, 3 left on top, going clockwise."""
    return np.rot90(image_HWC, side)


@dataclass
class _Side:
    image_HWC: Pixels
    within: int

    def __post_init__(self) -> None:
        self.colour_C = np.median(self.image_HWC[0], axis=0).astype(np.int16)

    def same(self, line: int, start: int = 0, stop: int | None = None) -> float:
        """The share of the line's pixels that have the colour of the outermost line."""
        return self._share(self.image_HWC[line, start:stop], self.within)

    def flat(self) -> bool:
        """Whether the outermost line has no noise."""
        return self._share(self.image_HWC[0], _EXACT) >= _FLAT

    def _share(self, pixels: Pixels, within: int) -> float:
        return float((np.abs(pixels - self.colour_C).max(axis=1) <= within).mean())

    def run(self) -> int:
        """How many lines from the edge are of that colour throughout."""
        height = len(self.image_HWC)
        return next((y for y in range(height) if self.same(y) < _PURE), 0)


def _end(side: _Side, depth: int, left: int, right: int) -> int | None:
    """The first line inside a border that ends at once, None for one that fades, 0 for none or one
    too thin; `left` and `right` pixels at the ends of a line belong to the neighbouring sides."""
    height, width = side.image_HWC.shape[:2]
    if depth < max(2, _LEAST * height):
        return 0
    for line in range(depth, min(height, depth + max(3, round(0.015 * height)))):
        if side.same(line, left, max(width - right, left + 1)) <= _INSIDE:
            return line
    return None


# --- captions


def find_captions(image_HWC: Pixels) -> list[Box]:
    """Boxes around rows of letters, a little larger than the letters."""
    if image_HWC.shape[2] in (1, 3):
        grey_HW = image_HWC.mean(axis=2, dtype=np.float32)
        maps = [grey_HW, 255 - grey_HW]
    else:  # channels of a file each, which may be written on one by one
        planes = np.moveaxis(image_HWC, 2, 0).astype(np.float32)
        maps = [pure_HW for plane_HW in planes for pure_HW in (plane_HW, 255 - plane_HW)]
    if image_HWC.shape[2] == 3:
        maps.append((image_HWC.max(axis=2) - image_HWC.min(axis=2)).astype(np.float32))
    height = len(image_HWC)
    band = min(height, max(24, round(_BAND * height)))
    starts = sorted({0, height - band})
    return [
        replace(box, top=box.top + start, bottom=box.bottom + start)
        for pure_HW in maps
        for start in starts
        for box in _rows_of_letters(pure_HW[start : start + band], height)
    ]


def mask_captions(image_HWC: Pixels, boxes: Sequence[Box]) -> Pixels:
    """Each box filled from above to below, column by column: what lies next to a line of text is
    nearest there. At an edge of the image one side fills alone."""
    if not boxes:
        return image_HWC
    filled_HWC = image_HWC.copy()
    for box in boxes:
        above_HWC = filled_HWC[max(0, box.top - 3) : box.top, box.left : box.right]
        below_HWC = filled_HWC[box.bottom : box.bottom + 3, box.left : box.right]
        ends = [np.median(lines, axis=0) for lines in (above_HWC, below_HWC) if len(lines)]
        if not ends:
            continue  # as tall as the image, which no caption is
        share_H11 = np.linspace(0, 1, box.bottom - box.top)[:, None, None]
        filled = (1 - share_H11) * ends[0] + share_H11 * ends[-1]
        filled_HWC[box.slices] = filled.round().astype(np.uint8)
    return filled_HWC


def _rows_of_letters(pure_HW: NDArray[np.float32], full_height: int) -> list[Box]:
    """Rows in a band of an image, of which the map is 255 where the text's colour is pure."""
    if pure_HW.max() < _PEAK:
        return []
    from scipy import ndimage  # slow to import, and most runs have no captions to look for

    height, width = pure_HW.shape
    around_HW = _surroundings(pure_HW)
    ink_HW = pure_HW >= around_HW + _INK * (255 - around_HW)
    ink_HW &= around_HW <= 255 - _CONTRAST
    labels_HW, _ = ndimage.label(ink_HW, np.ones((3, 3), bool))
    tallest = max(2.5 * _SMALLEST, _LARGEST * full_height)
    letters = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels_HW), start=1):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if not (_SMALLEST <= tall <= tallest and wide <= 3 * tall):
            continue
        own_HW = np.pad(labels_HW[rows, columns] == number, 1)
        if ndimage.distance_transform_edt(own_HW).max() > 0.17 * tall + 0.7:
            continue  # a blob, not a stroke
        peak = pure_HW[rows, columns][own_HW[1:-1, 1:-1]].max()
        letters.append((rows.start, rows.stop, columns.start, columns.stop, peak))
    return [
        box
        for row in _aligned(sorted(letters, key=lambda letter: letter[2]))
        if (box := _box_of(row, height, width)) is not None
    ]


def _surroundings(pure_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """The median of each block of pixels, laid over the block."""
    height, width = pure_HW.shape
    block = max(_BLOCK, max(height, width) // 16)
    padded = np.pad(pure_HW, ((0, -height % block), (0, -width % block)), mode="edge")
    down, across = padded.shape[0] // block, padded.shape[1] // block
    blocks = padded.reshape(down, block, across, block).transpose(0, 2, 1, 3)
    thinned = blocks[:, :, ::2, ::2].reshape(down, across, -1)
    medians = np.median(thinned, axis=2)
    return medians.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]


_Letter = tuple[int, int, int, int, float]  # top, bottom, left, right, peak


def _aligned(letters: Sequence[_Letter]) -> list[list[_Letter]]:
    """Letters, from left to right, gathered into rows of one baseline and about one height."""
    rows: list[list[_Letter]] = []
    for letter in letters:
        top, bottom, left, _, _ = letter
        for row in rows:
            last = row[-1]
            heights = [bottom - top, *(other[1] - other[0] for other in row)]
            tall = max(bottom - top, last[1] - last[0])
            if (
                abs(bottom - last[1]) <= max(1, 0.12 * tall)
                and min(heights) >= 0.65 * max(heights)
                and -1 <= left - last[3] <= 1.5 * tall
            ):
                row.append(letter)
                break
        else:
            rows.append([letter])
    return rows


def _box_of(row: Sequence[_Letter], height: int, width: int) -> Box | None:
    """The box of a row that is a caption, with room for dots, commas and tails."""
    if len(row) < _GLYPHS or np.mean([letter[4] >= _PEAK for letter in row]) < 0.6:
        return None
    tops, bottoms, lefts, rights, _ = zip(*row, strict=True)
    tall = max(bottoms) - min(tops)
    return Box(
        top=max(0, round(min(tops) - 0.3 * tall)),
        bottom=min(height, round(max(bottoms) + 0.35 * tall)),
        left=max(0, round(min(lefts) - 0.7 * tall)),
        right=min(width, round(max(rights) + 0.7 * tall)),
    )
