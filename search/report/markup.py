"""HTML as values: whatever is put into an element is escaped, unless it is HTML already.

So nothing that comes from data (ids, notes, file names, backbones) can become markup.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_VOID = ("br", "img", "input", "meta")  # elements without an end
UNKNOWN = "\u2013"  # a dash


class Html(str):
    """Text that is markup already."""


def text(value: object) -> Html:
    """Any value as HTML. What no file in UTF-8 can hold (half of a surrogate pair) becomes "?"."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode().replace("\0", "?")))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(text(part) for part in parts if part is not None))


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Lists among the children are taken apart, None is left out; of attributes a
    trailing "_" goes and others become "-", True stands alone, None and False are left out."""
    head = [name]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            head.append(label)
        elif value is not None and value is not False:
            head.append(f'{label}="{text(value)}"')
    opened = f"<{' '.join(head)}>"
    if name in _VOID:
        return Html(opened)
    inner = "".join(
        join(child) if isinstance(child, list | tuple) else text(child)
        for child in children
        if child is not None
    )
    return Html(f"{opened}{inner}</{name}>")


def known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table; its cells come as values, by which the page sorts."""

    title: str
    form: Callable[[Any], object] = str  # a value that is known -> what is shown
    right: bool = True  # numbers are aligned to the right
    meaning: str = ""  # of the title, as a tooltip
    wide: bool = False  # sentences, which want room

    @property
    def style(self) -> str | None:
        return "right" if self.right else "wide" if self.wide else None


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    *,
    states: Sequence[str] = (),  # a class of each row
    **attributes: object,
) -> Html:
    """A table that a click, Enter or Space on a head sorts; None and NaN stay below."""
    heads = [
        el(
            "th",
            el("button", column.title, type="button", title=column.meaning or None),
            scope="col", class_=column.style,
        )
        for column in columns
    ]  # fmt: skip
    body = [
        el("tr", _cells(columns, row), class_=states[i] if states else None)
        for i, row in enumerate(rows)
    ]
    inside = el("table", el("caption", caption), el("thead", el("tr", heads)), el("tbody", body))
    # A wide table scrolls by itself; a region that scrolls has to be reached by keys.
    return el(
        "div", inside, class_="scroll", role="region", aria_label=caption, tabindex=0, **attributes
    )


def _cells(columns: Sequence[Column], row: Sequence[Any]) -> list[Html]:
    cells = []
    for column, value in zip(columns, row, strict=True):
        there = known(value)
        number = there and isinstance(value, int | float) and not isinstance(value, bool)
        cells.append(
            el(
                "td",
                column.form(value) if there else UNKNOWN,
                class_=column.style,
                data_value=(f"{value:.9g}" if number else None) if there else "",
            )
        )
    return cells


def facts_list(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they stand for."""
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in pairs])


def details(summary: str, *children: object) -> Html:
    return el("details", el("summary", summary), *children)


def paragraphs(sentences: Iterable[object]) -> Html:
    return join(el("p", sentence) for sentence in sentences)
