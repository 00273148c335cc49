"""Masks as Kaggle's HPA single-cell competition reads them: COCO run lengths, zlib, base64."""

import base64
import zlib
from collections.abc import Sequence
from functools import cache


@cache
def whole_mask(width: int, height: int) -> str:
    """The mask that covers a whole image. Seam for masks of cells: only the counts differ."""
    return encode([0, width * height])


def encode(counts: Sequence[int]) -> str:
    """Run lengths of alternately 0 and 1, column by column, as a PredictionString holds them."""
    return base64.b64encode(zlib.compress(_coco(counts), zlib.Z_BEST_COMPRESSION)).decode()


def _coco(counts: Sequence[int]) -> bytes:
    """COCO's text of run lengths: from the third on the difference to the one two before; five
    bits a character, lowest first, the sixth bit saying that more follow (pycocotools'
    rleToString)."""
    text = bytearray()
    for number, count in enumerate(counts):
        rest = count - counts[number - 2] if number > 2 else count
        while True:
            five, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if five & 0x10 else 0)
            text.append((five | 0x20 if more else five) + 48)
            if not more:
                break
    return bytes(text)
