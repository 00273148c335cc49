"""Images of rows for the page: small JPEGs inside the file itself.

Shapes: H W C height, width and channels, X images of the store: the views of a row one after the
other, train rows first.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.data.cache import load_store
from search.report.facts import Facts, Nothing
from search.report.markup import Html, el, text
from spaces.errors import UserError

Pixels = NDArray[np.uint8]
SIDE = 128  # pixels of a stored picture; smaller images keep their own
_QUALITY = 85


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """The run's decoded images."""

    images_XHWC: NDArray[np.uint8]
    views: int

    @classmethod
    def open(cls, facts: Facts) -> Self:
        """Raises Nothing when they are gone."""
        if "store" not in facts.about:
            raise Nothing("The run keeps no images.")
        try:
            store = load_store(Path(facts.about["store"]))
        except UserError as error:
            raise Nothing(f"The decoded images are gone: {error}") from None
        views = int(facts.data.get("views", 0)) or views_of(facts)
        return cls(images_XHWC=store.images_NHWC, views=views)

    def __len__(self) -> int:
        """Rows, those of the test among them."""
        return len(self.images_XHWC) // self.views

    def row(self, row: int, view: int = 0) -> Pixels:
        """(H, W, C) of one view of a row."""
        return np.asarray(self.images_XHWC[row * self.views + view])


def views_of(facts: Facts) -> int:
    """Images per row, as the run's layout says."""
    layout = facts.about.get("layout", {})
    return len(layout.get("views", ())) or len(layout.get("image_columns", ())) or 1


def coloured(image_HWC: Pixels) -> Pixels:
    """(H, W, 3): the first three channels as red, green and blue, or the first as grey."""
    if image_HWC.shape[-1] >= 3:
        return np.ascontiguousarray(image_HWC[..., :3])
    return np.repeat(image_HWC[..., :1], 3, axis=2)


def picture(image_HWC: Pixels, alt: str, side: int = SIDE) -> Html:
    """A picture of at most `side` pixels."""
    image = Image.fromarray(coloured(image_HWC))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    held = io.BytesIO()
    image.save(held, "JPEG", quality=_QUALITY, subsampling=0)
    return _img("jpeg", held.getvalue(), image.size, alt)


def sheet(path: Path, alt: str) -> Html:
    """A PNG that the run keeps."""
    with Image.open(path, formats=("PNG",)) as image:
        size = image.size
    return _img("png", path.read_bytes(), size, alt, class_="sheet")


def _img(kind: str, content: bytes, size: tuple[int, int], alt: str, **more: object) -> Html:
    """Its size is told, so that the page does not move when it is drawn."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return el("img", src=source, alt=alt, loading="lazy", decoding="async", width=size[0],
              height=size[1], **more)  # fmt: skip


def card(images: Sequence[Html], *lines: object) -> Html:
    """One or more pictures side by side, with lines of text below."""
    shown = [el("span", text(line)) for line in lines if line is not None]
    return el("figure", el("div", list(images), class_="pair"), el("figcaption", shown),
              class_="card")  # fmt: skip


def gallery(cards: Sequence[Html]) -> Html:
    return el("div", list(cards), class_="gallery")
