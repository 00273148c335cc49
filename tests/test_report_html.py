"""report.html: whatever a run has, its page can be read, is true to its files and does no harm.

Shapes: T outputs, N rows, K folds.
"""

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from search import finish
from search.journal import Event, seconds_used
from search.notes import write_note
from search.report import (
    chart,
    classification,
    errors,
    importance,
    pareto,
    recipes,
    saliency,
    summary,
)
from search.report.augmented import DRAWS, augmented
from search.report.chart import script_json, thin, words
from search.report.facts import Facts, Nothing
from search.report.figures import charts, figure
from search.report.leaderboard import MOST
from search.report.markup import el
from search.report.page import SECTIONS, render, write_report
from search.report.pictures import Pictures
from search.report.style import STYLE
from search.report.targets import correlations, mean_correlations
from search.run_folder import RunFolder, write_json
from search.trials import DIVERGED, FAILED, FINISHED, PRUNED, RUNNING
from spaces.errors import UserError
from tests.modelruns import ModelRun, one_thread
from tests.reportruns import METRICS, MadeRun, full_run
from tests.workers import plan_of

TYPES = tuple(METRICS)
ATTACK = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)> %{x} <b>bold</b>"


class Page(HTMLParser):
    """What a browser would make of a page: elements, their attributes, and the text in each."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> ends another element"

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """What is read, without scripts and styles."""
        return "\n".join(data for tag, data in self.texts if tag not in ("script", "style"))


def page_of(run: RunFolder) -> Page:
    return Page(render(Facts.read(run)))


def section(run: RunFolder, name: str) -> str:
    """The text of one section."""
    body = next(body for title, _, body in SECTIONS if title == name)
    return Page(body(Facts.read(run))).text


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Not to be changed by a test."""
    return full_run(tmp_path_factory.mktemp("full")).run


# --- markup: data never becomes markup


@given(st.text(), st.text())
def test_what_is_put_into_an_element_is_read_back_as_text(inside: str, attribute: str) -> None:
    page = Page(el("p", inside, title=attribute))
    readable = [s.replace("\0", "?").encode("utf-8", "replace").decode() for s in
                (inside, attribute)]  # fmt: skip
    # A parser makes one kind of line end of all; browsers do the same.
    assert "".join(data for _, data in page.texts) == readable[0]
    assert page.elements == [("p", {"title": readable[1]})]


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_json_in_a_script_cannot_end_it_and_is_read_back(value: Any) -> None:
    written = script_json(value)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == value


@given(st.text(), st.integers(2, 50))
def test_labels_hold_no_tags_and_say_what_they_said(label: str, limit: int) -> None:
    shown = words(label, limit)
    assert "<" not in shown and ">" not in shown
    plain = label.encode("utf-8", "replace").decode()
    expected = plain if len(plain) <= limit else plain[: limit - 1] + "…"
    assert html.unescape(html.escape(expected, quote=False)) == html.unescape(shown)
    assert len(html.unescape(shown)) <= max(limit, len(html.unescape(html.unescape(shown))))


@pytest.mark.parametrize("task_type", TYPES)
def test_hostile_strings_stay_text(task_type: str, tmp_path: Path) -> None:
    """From every place that data, people and tools write to."""
    rows, outputs = 48, 1 if task_type == "binary" else 3
    made = full_run(
        tmp_path, task_type, task=ATTACK, data=ATTACK, groups_asked=ATTACK,
        command=["python", ATTACK], commit=ATTACK,
        ids=[f"{i}{ATTACK}" for i in range(rows)], names=[f"{t}{ATTACK}" for t in range(outputs)],
        groups=[f"{i % 6}{ATTACK}" for i in range(rows)],
        versions={ATTACK: ATTACK}, weights={"reason": ATTACK},
    )  # fmt: skip
    made.about["baselines"][0]["name"] = ATTACK
    write_json(made.run.run, made.about)
    made.add(score=0.9, backbone=ATTACK)
    made.add(FAILED, reason=ATTACK)
    made.write_journal()
    write_note(made.run, 0, ATTACK)
    made.add_data(
        warnings=[ATTACK], quarantined=[{"id": ATTACK, "files": [ATTACK], "reason": ATTACK}],
        told_apart={ATTACK: {"auc": 0.6, "meaning": ATTACK}}, groups={ATTACK: 3},
    )  # fmt: skip
    page = page_of(made.run)
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds.count(None) == 1 and set(kinds) == {None, "application/json", "text/plain"}
    assert not [name for _, attributes in page.elements for name in attributes if name[:2] == "on"]
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not page.all("b") and page.text.count("<img src=x") > 10


def test_only_the_pages_own_scripts_may_run(full: RunFolder) -> None:
    page = render(Facts.read(full))
    policy = next(meta["content"] for meta in Page(page).all("meta")
                  if meta.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy is not None
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', page)
    assert packed is not None
    scripts.insert(0, gzip.decompress(base64.b64decode(packed.group(1))).decode())
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed == digests and len(digests) == 2
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_nothing_is_fetched(full: RunFolder) -> None:
    page = page_of(full)
    assert not page.all("link") and not page.all("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)


# --- runs of every kind


@pytest.mark.parametrize("task_type", TYPES)
def test_a_full_run_fills_every_section(task_type: str, tmp_path: Path) -> None:
    made = full_run(tmp_path, task_type)
    page = page_of(made.run)
    empty = [tag for tag, attributes in page.elements if attributes.get("class") == "nothing"]
    names = [attributes["id"] for attributes in page.all("section")]
    assert names == [name for name, _, _ in SECTIONS]
    # Models were never trained here, and three trials say nothing about parameters.
    assert len(empty) == 2


def empty(made: MadeRun) -> None:
    """No trial."""


def unfinished(made: MadeRun) -> None:
    made.add(RUNNING)


def all_failed(made: MadeRun) -> None:
    for state in (FAILED, DIVERGED, PRUNED):
        made.add(state)


def single(made: MadeRun) -> None:
    made.add(FINISHED)


def without_predictions(made: MadeRun) -> None:
    made.add(FINISHED, oof=False)


@pytest.mark.parametrize("kind", [empty, unfinished, all_failed, single, without_predictions])
@pytest.mark.parametrize("with_data", [False, True])
def test_a_run_that_lacks_something_has_a_page_that_says_so(
    kind: Any, with_data: bool, tmp_path: Path
) -> None:
    made = MadeRun(tmp_path)
    kind(made)
    if with_data:
        made.add_data()
    run = made.write_journal()
    assert write_report(run) == run.root / "report.html"
    page = Page(run.report.read_text())
    assert len(page.all("section")) == len(SECTIONS)
    if kind is empty:
        assert "No trial has been started yet." in page.text
    if kind in (unfinished, all_failed):
        assert "There is no score yet." in page.text
    if kind is without_predictions:
        assert "member 0000 is incomplete" in page.text


def test_a_run_without_a_journal_has_a_page(tmp_path: Path) -> None:
    assert "No trial has been started yet." in page_of(MadeRun(tmp_path).run).text


def test_a_damaged_file_leaves_out_its_section_alone(tmp_path: Path) -> None:
    made = full_run(tmp_path)
    best = Facts.read(made.run).best.number
    (made.run.oof(best) / "pred.npy").write_bytes(b"no array")
    page = page_of(made.run)
    assert "has no readable pred.npy" in page.text and "Rungs" in page.text


@pytest.mark.parametrize("name", ["targets.npy", "notes.json", "data.json"])
def test_a_damaged_side_file_is_told_and_costs_no_more(name: str, tmp_path: Path) -> None:
    made = full_run(tmp_path)
    (made.run.root / name).write_bytes(b"{")
    page = page_of(made.run)
    assert f"{name} is " in page.text and len(page.all("section")) == len(SECTIONS)
    assert "Honest score of the ensemble" in page.text and "Rungs" in page.text


def test_a_section_that_fails_costs_the_others_nothing(
    full: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(facts: Facts) -> Any:
        raise ZeroDivisionError("no rows")

    sections = [(n, t, broken if n == "rungs" else body) for n, t, body in SECTIONS]
    monkeypatch.setattr("search.report.page.SECTIONS", sections)
    text = page_of(full).text
    assert "Left out: ZeroDivisionError: no rows" in text.replace("\n", "")
    assert "Members and their weights" in text


def test_views_channels_and_numbers_that_are_none(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, "multilabel", groups=[f"P{i % 6}-A" for i in range(48)])
    made.add_images(tmp_path / "images", views=2, files_each=4)
    made.add_data(views=2)
    made.add(score=0.6, channels=4, augment={"flip": True, "mirror": True})
    made.add(DIVERGED, math.nan)
    made.add(PRUNED, math.inf)
    made.add_ensemble()
    text = page_of(made.write_journal()).text
    assert text.count("Left out") == text.count("is no fold model") == 1  # none was trained
    assert "Of each row's 2 images the first" in text and "mirror True (not shown)" in text
    assert "Worst rows of group P" in text and "-A" in text


def test_hours_that_ended_a_run_do_not_make_it_unfinished(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, plan=plan_of(workers=1, trials=100, hours=1).to_dict())
    for _ in range(4):
        made.add(PRUNED)
    made.event("extend", trials=2)
    made.add(PRUNED)
    facts = Facts.read(made.write_journal())
    assert summary.planned(facts) == 6 and summary.unfinished(facts)
    made.add(PRUNED)
    assert not summary.unfinished(Facts.read(made.write_journal()))


def test_the_honest_score_comes_first(full: RunFolder) -> None:
    report = json.loads((full.ensemble / "ensemble.json").read_text())
    scores = {row["name"]: f"{row['score']:.4f}" for row in report["scores"]}
    text = section(full, "summary")
    nested, optimistic = scores["ensemble, nested"], scores["ensemble, OOF"]
    assert 0 <= text.index(nested) < text.index(optimistic)
    first = re.search(r"-?\d\.\d{4}", text)
    assert first is not None and first.group() == nested


def test_a_run_of_thousands_stays_small(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, rows=300, names=[f"GENE{t}" for t in range(3467)])
    for i in range(2000):
        state = FINISHED if i % 10 == 0 else PRUNED
        made.add(state, 0.3 + 0.0001 * i, epochs=30, oof=i == 1990)
    made.add_images(tmp_path / "images")
    made.add_data()
    run = made.write_journal()
    page = write_report(run).read_text()
    assert len(page.encode()) < 10e6
    held = Page(page)
    board = re.search(r'id="leaderboard-table">.*?</table>', page, re.DOTALL)
    assert board is not None and board.group().count("<tr") <= MOST + 1 + 1
    assert "Not shown: 1800 pruned; all rows are in leaderboard.csv" in held.text


def test_notes_stand_beside_their_trials(tmp_path: Path) -> None:
    made = full_run(tmp_path)
    write_note(made.run, 1, "seen on the scanner of site B")
    assert "seen on the scanner of site B" in section(made.run, "leaderboard")


# --- pictures


@pytest.mark.parametrize("task_type", TYPES)
def test_plotly_takes_every_picture_and_each_says_what_it_shows(
    task_type: str, tmp_path: Path
) -> None:
    from plotly.graph_objects import Figure

    made = full_run(tmp_path, task_type)
    for i in range(30):
        made.add(PRUNED, 0.3 + 0.01 * i)
    found = charts(Facts.read(made.write_journal()))
    assert {"curves-fold-0", "rungs", "parallel", "progress", "ensemble-scores"} < set(found)
    for name, picture in found.items():
        Figure(data=picture.data, layout=picture.layout)  # ValueError for what it does not know
        assert len(picture.label) > 20, name
        json.loads(script_json(picture.data))


def test_a_picture_is_found_by_name_or_by_its_beginning(full: RunFolder) -> None:
    assert figure(full, "curves").to_dict() == figure(full, "curves-fold-0").to_dict()
    with pytest.raises(UserError, match=r"no picture 'curvs'; near names: .*curves"):
        figure(full, "curvs")


def test_every_image_has_an_alternative_text(full: RunFolder) -> None:
    page = page_of(full)
    assert page.all("img") and all(image.get("alt") for image in page.all("img"))
    plots = [a for tag, a in page.elements if a.get("class") == "plot"]
    assert plots and all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert page.all("html")[0]["lang"] == "en"
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes() -> Iterator[dict[str, str]]:
    """The colours of the light and of the dark page."""
    blocks = re.findall(r":root(?::not\(\.light\))? \{(.*?)\}", STYLE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        yield dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def test_text_and_pictures_contrast_with_both_pages() -> None:
    for colours in schemes():
        pairs = [(ink, under) for ink in ("ink", "muted", "link", "care") for under in
                 ("paper", "card")]  # fmt: skip
        for ink, under in [*pairs, ("good", "good-card"), ("care", "care-card")]:
            assert contrast(colours[ink], colours[under]) >= 4.5, (ink, under)
        for colour in (*chart.SERIES, chart.GREY):
            assert contrast(colour, colours["paper"]) >= 3, colour


# --- what pictures are made of


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_nothing_beats_what_is_on_the_front_and_something_all_else(
    found: list[tuple[int, int]],
) -> None:
    costs, scores = [float(c) for c, _ in found], [float(s) for _, s in found]
    kept = pareto.front(costs, scores)

    def beaten(i: int) -> bool:
        return any(
            costs[j] <= costs[i] and scores[j] >= scores[i]
            and (costs[j] < costs[i] or scores[j] > scores[i])
            for j in range(len(costs))
        )  # fmt: skip

    assert {found[i] for i in kept} == {f for i, f in enumerate(found) if not beaten(i)}
    assert [costs[i] for i in kept] == sorted(costs[i] for i in kept)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=20))
def test_time_passes_within_sessions_only(steps: list[tuple[bool, float]]) -> None:
    now, events = 0.0, []
    for i, (opens, gap) in enumerate(steps):
        now += gap
        kind = "session" if opens or i == 0 else "epochs"
        events.append(Event(seq=i, time=now, kind=kind, data={}))
    times = list(pareto.elapsed(events))
    assert (np.diff(times) >= -1e-9).all()
    if events:
        assert times[-1] == pytest.approx(seconds_used(events))


@given(st.integers(0, 500), st.integers(2, 60))
def test_thinning_keeps_both_ends_and_no_more_than_asked(count: int, most: int) -> None:
    kept = thin(count, most)
    assert kept == sorted(set(kept)) and len(kept) == min(count, most)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_correlations_are_means_over_folds(full: RunFolder) -> None:
    found = Facts.read(full).predictions
    mean_T = mean_correlations(correlations(found))
    for t in range(len(found.names)):
        folds = [np.corrcoef(found.pred_TN[t, found.fold_N == k],
                             found.true_TN[t, found.fold_N == k])[0, 1]
                 for k in range(found.folds.k)]  # fmt: skip
        assert mean_T[t] == pytest.approx(np.mean(folds))


def test_a_target_that_is_constant_in_a_fold_counts_in_the_others() -> None:
    corr_KT = np.array([[0.5, math.nan, math.nan], [0.7, 0.2, math.nan]])
    mean_T = mean_correlations(corr_KT)
    assert mean_T[:2] == pytest.approx([0.6, 0.2]) and math.isnan(mean_T[2])


@pytest.mark.parametrize("task_type", TYPES)
def test_errors_of_rows_are_what_they_say(task_type: str, tmp_path: Path) -> None:
    found = Facts.read(full_run(tmp_path, task_type).run).predictions
    error_N = errors.row_errors(task_type, found.pred_TN, found.true_TN)
    true_TN, pred_TN = np.float64(found.true_TN), np.float64(found.pred_TN)
    for row in range(0, len(error_N), 7):
        if task_type == "regression":
            off_T = (pred_TN[:, row] - true_TN[:, row]) / true_TN.std(axis=1)
            expected = float(np.sqrt(np.mean(off_T**2)))
        elif task_type == "multiclass":
            chance_T = pred_TN[:, row] / pred_TN[:, row].sum()
            true = [int(true_TN[:, row].argmax())]
            expected = log_loss(true, [chance_T], labels=range(len(true_TN)))
        else:
            expected = log_loss(true_TN[:, row], pred_TN[:, row], labels=[0, 1])
        assert error_N[row] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task_type", TYPES)
def test_the_worst_rows_are_shown_first(task_type: str, tmp_path: Path) -> None:
    made = full_run(tmp_path, task_type)
    found = Facts.read(made.run).predictions
    error_N = errors.row_errors(task_type, found.pred_TN, found.true_TN)
    worst = [found.folds.ids[i] for i in np.argsort(-error_N, kind="stable")[:3]]
    text = section(made.run, "errors")
    places = [text.index(name) for name in worst]
    assert places == sorted(places)


def test_groups_stand_in_the_order_of_their_errors(tmp_path: Path) -> None:
    made = full_run(tmp_path, groups=[f"Slide{i % 6}-B" for i in range(48)])
    found = Facts.read(made.run).predictions
    error_N = errors.row_errors("regression", found.pred_TN, found.true_TN)
    mean_of = {g: error_N[[n == g for n in found.folds.group or ()]].mean()
               for g in set(found.folds.group or ())}  # fmt: skip
    worst = sorted(mean_of, key=lambda g: -mean_of[g])
    shown = re.findall(r"Worst rows of group (Slide\d-B)", section(made.run, "errors"))
    assert shown == worst[: len(shown)] and shown


def test_perfect_predictions_are_calibrated_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(20_000)
    happened = rng.random(20_000) < chance
    mean_B, share_B, error = classification.calibration(chance, happened)
    assert np.abs(mean_B - share_B).max() < 0.05 and error < 0.02
    *_, wrong = classification.calibration(rng.permutation(chance), happened)
    assert wrong == pytest.approx(0.25, abs=0.03)  # E|u - 1/2| of a uniform u


# --- parameters


def searched(root: Path, score_of: Any, trials: int = 60) -> Facts:
    made = MadeRun(root)
    for _ in range(trials):
        lr = float(10 ** made.rng.uniform(-4, -1))
        made.add(PRUNED, score_of(lr, made.rng), lr=lr)
    return Facts.read(made.write_journal())


def test_the_parameter_that_decides_comes_first(tmp_path: Path) -> None:
    found = importance.find(searched(tmp_path, lambda lr, _: 0.5 - (math.log10(lr) + 2.5) ** 2 / 9))
    assert found.tells and found.order[0] == "lr"
    assert found.drop["lr"][0] > 5 * max(v for n, (v, _) in found.drop.items() if n != "lr")


def test_noise_makes_no_parameter_important(tmp_path: Path) -> None:
    facts = searched(tmp_path, lambda _, rng: float(rng.normal()))
    assert not importance.find(facts).tells
    assert "importance" not in importance.charts(facts)
    assert "nothing can be said about which parameter matters" in section(facts.run, "parameters")


def test_ties_make_no_parameter_important(tmp_path: Path) -> None:
    """Classifiers that say one thing of all rows have an AUROC of .5 each."""
    scores = iter([0.4, 0.6, *[0.5] * 10])
    found = importance.find(searched(tmp_path, lambda *_: next(scores), trials=12))
    assert math.isfinite(found.r2) and max(mean for mean, _ in found.drop.values()) < 0.1


def test_few_trials_say_nothing_about_parameters(tmp_path: Path) -> None:
    facts = searched(tmp_path, lambda lr, _: lr, trials=importance.FEWEST - 1)
    with pytest.raises(Nothing, match="11 trials can be compared at most"):
        importance.find(facts)


def test_trials_are_compared_at_one_rung(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    for i in range(importance.ENOUGH):
        made.add(PRUNED, 0.1 + 0.001 * i)
    for _ in range(5):
        made.add(FINISHED, 0.9, oof=False)
    found = importance.find(Facts.read(made.write_journal()))
    assert found.where == "at fold 1 epoch 2" and len(found.trials) == importance.ENOUGH + 5


def test_recipes_that_crowd_at_an_end_are_told(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    for i in range(20):
        made.add(FINISHED, 0.1 + 0.01 * i, oof=False, lr=10 ** (-4 + i / 100 + 2 * (i > 10)),
                 drop=0.25)  # fmt: skip
    facts = Facts.read(made.write_journal())
    told = list(recipes.crowded(facts.finished, list(facts.trials.all.values())))
    assert [(name, side) for name, side, _ in told] == [("lr", "upper")]


# --- pictures of rows


def test_augmentation_is_shown_as_it_is_drawn(full: RunFolder) -> None:
    facts = Facts.read(full)
    pictures = Pictures.open(facts)
    shown = augmented(pictures, facts.best.recipe, 48)
    again = augmented(pictures, facts.best.recipe, 48)
    assert all(len(row) == 1 + DRAWS for row in shown)
    assert np.array_equal(shown[0][0], pictures.row(0))  # as it is
    assert any(not np.array_equal(shown[0][0], image) for image in shown[0][1:])
    assert all(np.array_equal(a, b) for x, y in zip(shown, again, strict=True)
               for a, b in zip(x, y, strict=True))  # fmt: skip


def test_pictures_that_are_gone_are_told(tmp_path: Path) -> None:
    made = full_run(tmp_path)
    made.about["store"] = str(tmp_path / "nowhere")
    write_json(made.run.run, made.about)
    for name in ("data", "errors"):
        assert "The decoded images are gone" in section(made.run, name)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> ModelRun:
    """A classification with real fold models of a convolution network."""
    with one_thread():
        made = ModelRun(tmp_path_factory.mktemp("network"), "multiclass", "auroc")
        made.add(backbone="test_resnet")
    return made


def test_a_map_is_what_the_head_reads_in_the_features(
    network: ModelRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a linear head on mean-pooled maps, the gradient is the head's weight over positions."""
    import torch

    from search.model.infer import FoldModel

    monkeypatch.setattr(saliency, "LEAST", 1)  # the last maps of all
    model = FoldModel.load(network.run.checkpoints(0) / "fold-0.safetensors")
    seen_positive = False
    for row in range(5):
        image_1HWC = np.array(network.images_NHWC[row : row + 1])
        with one_thread(), torch.no_grad():
            (image,) = model._batches(image_1HWC, None).ordered(1)
            maps_1Chw = model.network.backbone.forward_features(image)  # type: ignore[operator]
        head = [m for m in model.network.head.modules() if isinstance(m, torch.nn.Linear)][-1]
        for output in range(3):
            weight_C = head.weight[output].detach()
            read = torch.einsum("xchw,c->xhw", maps_1Chw, weight_C).relu()
            with one_thread():
                heat_Xhw, seen = saliency.grad_cam(model, image_1HWC, output)
            assert np.allclose(heat_Xhw, read.numpy() / maps_1Chw[0, 0].numel(), atol=1e-6)
            assert np.array_equal(seen, image_1HWC)
            seen_positive |= bool(heat_Xhw.max() > 0)
    assert seen_positive


def test_maps_of_small_images_come_from_a_stage_with_positions(network: ModelRun) -> None:
    from search.model.infer import FoldModel

    model = FoldModel.load(network.run.checkpoints(0) / "fold-0.safetensors")
    forward = model.network.backbone.forward_features
    with one_thread():
        heat_Xhw, _ = saliency.grad_cam(model, np.array(network.images_NHWC[:1]), 0)
    assert min(heat_Xhw.shape[1:]) >= saliency.LEAST
    assert model.network.backbone.forward_features == forward, "the model was left changed"


@pytest.mark.parametrize(
    ("backbone", "fusion", "images", "ratio"),
    [
        ("test_vit", "mean", 2, 1), ("test_vit", "stack", 1, 1),
        ("test_efficientnet", "mean", 2, 1), ("test_efficientnet", "stack", 1, 1),
        ("test_efficientnet", "grid", 1, 0.5), ("test_convnext", "mean", 2, 1),
    ],
)  # fmt: skip
def test_maps_lie_over_what_the_network_sees(
    backbone: str, fusion: str, images: int, ratio: float, tmp_path: Path
) -> None:
    from search.model.infer import FoldModel

    with one_thread():
        made = ModelRun(tmp_path, "multilabel", "auroc", views=2)
        made.add(backbone=backbone, fusion=fusion, head="mlp")
        model = FoldModel.load(made.run.checkpoints(0) / "fold-1.safetensors")
        maps = [saliency.grad_cam(model, np.array(made.images_NHWC[:2]), t) for t in range(3)]
    heat_Xhw, seen = maps[0]
    assert max(float(heat.max()) for heat, _ in maps) > 0, "the maps are blank"
    assert len(heat_Xhw) == len(seen) == images
    assert (heat_Xhw >= 0).all() and np.isfinite(heat_Xhw).all()
    assert seen.shape[2] / seen.shape[1] == ratio


def test_each_row_is_looked_at_by_the_model_that_did_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.model.infer import FoldModel

    with one_thread():
        made = ModelRun(tmp_path, "multiclass", "auroc")
        made.add(backbone="test_resnet")
    run = journalled(made)
    facts = Facts.read(run)
    pairs = []
    load = FoldModel.load

    def loading(path: Path, device: str = "cpu") -> FoldModel:
        pairs.append(path.stem)
        return load(path, device)

    def seeing(model: FoldModel, pictures: Pictures, row: int, output: int) -> Any:
        pairs[-1] = (*([pairs[-1]] if isinstance(pairs[-1], str) else pairs[-1]), row)
        image = pictures.row(row)
        return image, image

    monkeypatch.setattr(FoldModel, "load", loading)
    monkeypatch.setattr(saliency, "overlay", seeing)
    text = Page(saliency.body(facts)).text
    fold_N = facts.predictions.fold_N
    assert sum(len(pair) - 1 for pair in pairs) == 2 * saliency.EACH
    for stem, *rows in pairs:
        assert [f"fold-{fold_N[row]}" for row in rows] == [stem] * len(rows)
    assert text.index("Most wrong") < text.index("Most right")


def journalled(made: ModelRun) -> RunFolder:
    """A journal that tells of the first trial of a run with real models."""
    recipe = json.loads((made.run.checkpoints(0) / "recipe.json").read_text())["recipe"]
    lines: list[dict[str, Any]] = [
        {"kind": "session", "trial": -1, "data": {}},
        {"kind": "ask", "trial": 0, "data": {"params": {}, "recipe": recipe}},
        {"kind": "end", "trial": 0, "data": {"state": FINISHED, "reason": "all folds done",
                                             "fold_scores": [0.5] * made.folds.k,
                                             "fold_parts": [{}] * made.folds.k}},
    ]  # fmt: skip
    made.run.journal.write_text("".join(
        json.dumps({"format": 2, "seq": i, "time": float(i), "attempt": 1, **line}) + "\n"
        for i, line in enumerate(lines)
    ))  # fmt: skip
    write_json(made.run.run, {**made.facts, "fold_order": list(range(made.folds.k))})
    return made.run


def test_models_that_are_gone_and_probes_are_told(tmp_path: Path) -> None:
    whole = full_run(tmp_path / "full")
    whole.run.drop_models(1)
    with pytest.raises(Nothing, match="fold models of trial 1, the best, are gone"):
        saliency.body(Facts.read(whole.run))
    made = MadeRun(tmp_path / "probe")
    made.add(probe="ridge", epochs=1)
    with pytest.raises(Nothing, match="is a probe"):
        saliency.body(Facts.read(made.write_journal()))


# --- at the end of a run


def test_a_report_that_fails_costs_the_run_nothing(
    full: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run: RunFolder) -> Path:
        raise MemoryError("no room")

    monkeypatch.setattr("search.report.page.write_report", broken)
    finish.report(full)
    told = " ".join(capsys.readouterr().err.split())
    assert "the report could not be written (MemoryError: no room)" in told
    assert f"python -m search.report {full.root}" in told
