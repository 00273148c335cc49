"""The page: all sections in one HTML file without a network, and its way to the disk."""

import base64
import gzip
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from search.report import (
    curves,
    data,
    drift,
    ensemble,
    errors,
    importance,
    leaderboard,
    pareto,
    reproduce,
    rungs,
    saliency,
    summary,
    targets,
)
from search.report.facts import Facts, Nothing
from search.report.markup import Html, el, join, text
from search.report.script import SCRIPT
from search.report.style import STYLE
from search.run_folder import RunFolder, write_text
from spaces.errors import UserError

log = logging.getLogger(__name__)
Body = Callable[[Facts], Html]
SECTIONS: tuple[tuple[str, str, Body], ...] = (
    ("summary", "Summary", summary.body),
    ("leaderboard", "Leaderboard", leaderboard.body),
    ("curves", "Learning curves", curves.body),
    ("rungs", "Rungs", rungs.body),
    ("parameters", "Parameters", importance.body),
    ("costs", "Time and cost", pareto.body),
    ("data", "Data and folds", data.body),
    ("targets", "Targets", targets.body),
    ("errors", "Errors", errors.body),
    ("saliency", "Where it looks", saliency.body),
    ("ensemble", "Ensemble", ensemble.body),
    ("drift", "Test-set drift", drift.body),
    ("reproduce", "Reproduce", reproduce.body),
)


def write_report(run: RunFolder) -> Path:
    """(Re)write RUN/report.html; its path. Raises UserError for a run that cannot be read."""
    page = render(Facts.read(run))
    write_text(run.report, page)
    return run.report


def render(facts: Facts) -> str:
    """The whole page. A section without anything to show, or whose files are damaged, says so."""
    sections = [
        el("section", el("h2", title, id=f"{name}-title"), _filled(body, facts),
           id=name, aria_labelledby=f"{name}-title")
        for name, title, body in SECTIONS
    ]  # fmt: skip
    plotly = _plotly()
    title = f"{facts.about.get('task', 'run')}: {facts.run.root.resolve().name}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_policy([plotly, SCRIPT])),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"Report of {title}"),
        el("style", Html(STYLE)),
    )
    links = [el("li", el("a", title, href=f"#{name}")) for name, title, _ in SECTIONS]
    body = el(
        "body",
        el("a", "Skip to the content", href="#summary", class_="skip"),
        el("header", el("h1", f"Run {facts.run.root.resolve().name}"), el("p", _subtitle(facts))),
        el("nav", el("ul", links), aria_label="Sections"),
        el(
            "main",
            el("noscript", el("p", "Pictures and sorting need JavaScript.")),
            el("p", "This browser is too old for the pictures.", id="too-old", hidden=True),
            _left_out(facts.faults) if facts.faults else None,
            sections,
        ),
        el("footer", "Written by rungfold; everything on this page is inside this file."),
        # Last, so that the text is there before the library is read; no script to the browser until
        # the page's own unpacks it.
        el("script", Html(_packed(plotly)), type="text/plain", id="plotly"),
        el("script", Html(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n"


def _filled(body: Body, facts: Facts) -> Html:
    try:
        return body(facts)
    except Nothing as nothing:
        return el("p", text(nothing), class_="nothing")
    except UserError as error:
        return _left_out(error.faults)
    except Exception as error:  # pictures of one section never cost the others
        log.debug("a section of the report failed", exc_info=True)
        return _left_out([f"{type(error).__name__}: {error}"])


def _left_out(faults: Sequence[str]) -> Html:
    return el("p", "Left out: ", join(map(text, faults), "; "), class_="nothing")


def _subtitle(facts: Facts) -> str:
    parts = [f"task {facts.about.get('task', '?')}", facts.task_type, f"metric {facts.score_name}"]
    if facts.events:
        started = time.strftime("%d %B %Y, %H:%M", time.localtime(facts.events[0].time))
        parts.append(f"started {started}")
    return " · ".join(parts)


def _plotly() -> str:
    """plotly.js as the Python package brings it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _packed(script: str) -> str:
    """Two fifths of its size, the same bytes each time."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _policy(scripts: list[str]) -> str:
    """Nothing is fetched, and only the page's own scripts run: whatever escaped escaping would
    still do nothing."""
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    own = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {own}; "
        "base-uri 'none'; form-action 'none'"
    )
