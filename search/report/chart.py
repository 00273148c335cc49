"""Charts as plain data for Plotly: no module here needs Plotly itself, the browser draws.

Colours stand out from a light and from a dark page alike (contrast 3.2 and more), since a figure
does not know on which it lies; text, grid and background are set by the page's script.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.report.markup import Html, el

BLUE, ORANGE, GREEN, PURPLE, PINK, TEAL, GOLD, GREY, RED = (
    "#3f7fd0", "#d0711c", "#2e9960", "#8f68d0", "#cc5599", "#1c96a3", "#a8861a", "#7f8895",
    "#dd4f4f",
)  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, PINK, TEAL, GOLD, RED)
# Of matrices: cells hold their own numbers, in black or white by their colour.
SHADES = [[0.0, "#eef4fb"], [0.5, "#7fb0e0"], [1.0, "#174a84"]]
DIVERGING = [[0.0, "#b4491d"], [0.5, "#f4f4f2"], [1.0, "#1f5c9e"]]
_LABEL = 40  # characters of a string from data


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture: Plotly's traces and layout, and what it shows for those who cannot see it."""

    data: list[dict[str, Any]]
    label: str  # says what there is to see, with its numbers
    layout: dict[str, Any] = field(default_factory=dict)
    caption: object = ""
    height: int = 320  # pixels
    least_width: int = 0  # pixels; a narrower page scrolls the picture sideways

    def html(self) -> Html:
        """A figure that the page's script draws when it comes near the window."""
        held = {"data": self.data, "layout": {**_LAYOUT, **self.layout, "height": self.height}}
        wide = f"min-width:{self.least_width}px;" if self.least_width else ""
        return el(
            "figure",
            el(
                "div",
                el("div", class_="plot", role="img", aria_label=self.label,
                   style=f"{wide}height:{self.height}px"),
                class_="across", tabindex=0 if wide else None,
                role="region" if wide else None, aria_label=self.label if wide else None,
            ),
            el("script", Html(script_json(held)), type="application/json"),
            el("figcaption", self.caption) if self.caption else None,
            class_="chart",
        )  # fmt: skip


_LAYOUT: dict[str, Any] = {
    "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
    "hovermode": "closest",
    "showlegend": False,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
}


def script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it, whatever strings there are."""
    written = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII alone
    for sign in "<>&":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written


def words(value: object, limit: int = _LABEL) -> str:
    """A string from data as Plotly shows it: Plotly reads tags in labels, so there are none."""
    plain = str(value).encode("utf-8", "replace").decode()
    return html.escape(plain if len(plain) <= limit else f"{plain[: limit - 1]}…", quote=False)


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False, **more}


def names_axis(names: Sequence[str], limit: int = 24) -> dict[str, Any]:
    """An axis of names, the first above: places 0, 1, ... with labels, since two names that are
    cut to the same would be one category."""
    return axis("", tickvals=list(range(len(names))), ticktext=[words(n, limit) for n in names],
                autorange="reversed", showgrid=False)  # fmt: skip


def numbers(values: Iterable[Any], digits: int = 5) -> list[float | int | None]:
    """Plain numbers of five digits, which is more than a picture of scores can show; null for what
    is not finite."""
    plain: list[float | int | None] = []
    for value in values:
        if value is None or not math.isfinite(value):
            plain.append(None)
        elif isinstance(value, int):
            plain.append(value)
        else:
            plain.append(float(f"{value:.{digits}g}"))
    return plain


def thin(count: int, most: int) -> list[int]:
    """Positions of at most `most` of `count` things, evenly spread, the first and the last
    among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def room(values: Sequence[float], low: float = 0.02) -> list[float] | None:
    """The range of an axis that leaves out the lowest share `low` of the values: who diverged would
    squeeze all others into a line. None: as Plotly has it."""
    finite = sorted(value for value in values if math.isfinite(value))
    if len(finite) < 20:
        return None
    bottom, top = finite[int(low * len(finite))], finite[-1]
    pad = 0.05 * (top - bottom)
    return numbers([bottom - pad, top + pad]) if pad > 0 else None  # type: ignore[return-value]
