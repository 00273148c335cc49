"""report.html in a real browser: it draws, sorts, switches, prints and fits, without an error."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
Open = Callable[..., Any]

# Text whose contrast with what lies under it is too low, as WCAG 2 asks: 4.5, large text 3.
# Colours that a parent has are looked for up to the page's own.
PALE = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => v / 255)
      .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const under = (e) => { for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > .5) return c.slice(0, 3); }
    return parse(getComputedStyle(document.body).backgroundColor).slice(0, 3); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim(), e = walk.currentNode.parentElement;
    if (!text || !e.getClientRects().length || e.closest("script, style, .hidden, .skip")) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    // Numbers in the cells of a matrix lie on the cell, which Plotly contrasts them with.
    if (svg && e.closest(".heatmaplayer, .hm")) continue;
    const ink = parse(svg ? style.fill : style.color).slice(0, 3);
    const [low, high] = [light(ink), light(under(e))].sort((a, b) => a - b);
    const large = parseFloat(style.fontSize) >= 24;
    const ratio = (high + .05) / (low + .05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found; }"""


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Open]:
    """Opens the report; at the end there must have been no error and no request but for itself."""
    wrong: list[str] = []
    contexts = []

    def open_page(size: dict[str, int] = DESK, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport=size, color_scheme=scheme, has_touch=size is PHONE, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: _note(wrong, message))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: _foreign(wrong, request.url))
        page.goto(report.as_uri())
        page.wait_for_function("window.Plotly")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong, "\n".join(wrong)


def _note(wrong: list[str], message: Any) -> None:
    if message.type in ("error", "warning"):
        wrong.append(f"{message.type}: {message.text}")


def _foreign(wrong: list[str], url: str) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        wrong.append(f"request: {url}")


def draw_all(page: Any) -> None:
    """Scroll through the page, so that every chart is drawn."""
    for plot in page.query_selector_all(".plot"):
        plot.scroll_into_view_if_needed()
        page.wait_for_function("plot => plot.querySelector('svg.main-svg')", arg=plot)


def column(page: Any, title: str) -> list[str]:
    """The cells of a column of the leaderboard, as they stand."""
    cells: list[str] = page.evaluate(
        """title => { const table = document.querySelector('#leaderboard-table table');
          const i = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === title);
          return [...table.tBodies[0].rows].map(row => row.cells[i].textContent); }""",
        title,
    )
    return cells


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_every_picture_is_drawn_and_the_page_fits(
    opened: Open, size: dict[str, int], scheme: str
) -> None:
    page = opened(size, scheme)
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drawn = page.query_selector_all(".plot .main-svg:first-of-type")
    assert len(drawn) == len(page.query_selector_all("figure.chart")) > 10
    assert page.evaluate("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth)")


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_link_leads_to_its_section(opened: Open, size: dict[str, int]) -> None:
    """Pictures and charts that are drawn on the way do not move it away again."""
    page = opened(size)
    for name in ("targets", "ensemble", "reproduce", "curves"):
        page.evaluate("id => document.querySelector(`nav a[href='#${id}']`).click()", name)
        page.wait_for_timeout(700)
        top, end = page.evaluate(
            "id => [document.getElementById(id).getBoundingClientRect().top,"
            " document.documentElement.scrollHeight - scrollY - innerHeight]", name,
        )  # fmt: skip
        assert 0 <= top < size["height"] / 4 or end < 2, (name, top)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened: Open, scheme: str) -> None:
    page = opened(DESK, scheme)
    draw_all(page)
    assert page.evaluate(PALE) == []


def test_a_change_of_scheme_recolours_what_is_drawn(opened: Open) -> None:
    page = opened(DESK, "light")
    draw_all(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate(PALE) == []


def test_a_click_sorts_the_leaderboard_and_another_turns_it_round(opened: Open) -> None:
    page = opened()
    before = column(page, "trial")
    head = page.locator("#leaderboard-table th button", has_text="time").first
    head.click()
    times = column(page, "trial")
    assert sorted(times) == sorted(before)
    assert page.get_attribute("#leaderboard-table th[aria-sort]", "aria-sort") == "descending"
    seconds = "[...document.querySelectorAll('#leaderboard-table tbody tr')].map(row => Number(" \
              "row.cells[[...document.querySelectorAll('#leaderboard-table th')]" \
              ".findIndex(c => c.textContent === 'time')].dataset.value))"  # fmt: skip
    found = page.evaluate(seconds)
    assert found == sorted(found, reverse=True)
    head.click()
    assert page.get_attribute("#leaderboard-table th[aria-sort]", "aria-sort") == "ascending"
    found = page.evaluate(seconds)
    assert found == sorted(found)


def test_keys_sort_the_leaderboard_too(opened: Open) -> None:
    page = opened()
    page.locator("#leaderboard-table th button", has_text="model").first.focus()
    page.keyboard.press("Enter")
    names = column(page, "model")
    assert names == sorted(names, key=str.lower)
    page.keyboard.press("Space")
    assert column(page, "model") == sorted(names, key=str.lower, reverse=True)


def test_what_is_typed_filters_the_leaderboard(opened: Open) -> None:
    page = opened()
    page.fill("input.filter", "baseline")
    shown = page.locator("#leaderboard-table tbody tr:visible")
    assert shown.count() == 2


def test_a_trial_is_switched_off_and_on_in_all_folds(opened: Open) -> None:
    page = opened()
    draw_all(page)
    box = page.locator("input[data-key^=t]").first
    key = box.get_attribute("data-key")
    visible = """key => [...document.querySelectorAll('#curves .plot')].flatMap(p => p.data)
        .filter(t => t.meta && t.meta.key === key).map(t => t.visible ?? true)"""
    before = page.evaluate(visible, key)
    assert before and all(before)
    box.focus()
    page.keyboard.press("Space")
    assert page.evaluate(visible, key) == [False] * len(before)
    page.keyboard.press("Space")
    assert page.evaluate(visible, key) == [True] * len(before)


def test_a_trial_that_is_switched_off_stays_off_where_it_is_drawn_later(opened: Open) -> None:
    page = opened({"width": 390, "height": 300})
    box = page.locator("input[data-key^=t]").first
    box.uncheck()
    draw_all(page)
    key = box.get_attribute("data-key")
    hidden = page.evaluate(
        """key => [...document.querySelectorAll('#curves .plot')].flatMap(p => p.data)
        .filter(t => t.meta && t.meta.key === key).map(t => t.visible)""", key,
    )  # fmt: skip
    assert hidden and not any(hidden)


def test_paper_has_every_picture_in_light_colours(opened: Open, tmp_path: Path) -> None:
    page = opened(DESK, "dark")
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    plots = "[...document.querySelectorAll('.plot')]"
    assert page.evaluate(f"{plots}.every(plot => plot.dataset.drawn)")
    inks = page.evaluate(f"{plots}.map(plot => plot.layout.font.color)")
    assert set(inks) == {"#1b2128"}
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert set(page.evaluate(f"{plots}.map(plot => plot.layout.font.color)")) == {"#e6e9ee"}
