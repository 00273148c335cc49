"""Folds and what is in the data, with pictures: samples, oddities, augmentation as applied."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from search.data.folds import read_folds
from search.report import forms
from search.report.augmented import NOT_DRAWN, augmented
from search.report.facts import Facts, Nothing
from search.report.markup import (
    Column,
    Html,
    details,
    el,
    facts_list,
    join,
    table,
)
from search.report.pictures import Pictures, card, gallery, picture, sheet

_SAMPLES = 24  # pictures of rows
_LABELS = 12  # columns of the table of folds
_LISTED = 50
SHEETS = {
    "duplicates.png": "Near duplicates: images that show the same, side by side",
    "borders.png": "Images with a border of one colour, before and after cropping",
    "captions.png": "Images with burnt-in captions, before and after masking",
    "unreadable.png": "What can still be seen of images that cannot be read",
    "groups.png": "Groups found in the images: a row of examples for each",
}  # what search.pictures draws


def body(facts: Facts) -> Html:
    if not facts.data:
        raise Nothing("There is no data report (data.json) in the run's folder.")
    return join([
        facts_list(_facts(facts.data)),
        _warnings(facts.data),
        el("h3", "Folds"),
        _folds(facts),
        el("h3", "Samples"),
        _samples(facts),
        el("h3", "Augmentation by the best recipe"),
        _augmented(facts),
        _sheets(facts),
        _quarantined(facts.data),
    ])  # fmt: skip


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    rows, targets, images = data["rows"], data["targets"], data["images"]
    near = data["near_duplicates"]["counts"]
    yield "train rows", forms.whole(rows["train"])
    yield "test rows", forms.whole(rows["test"])
    if data["views"] > 1:
        yield "images per row", str(data["views"])
    yield "targets", f"{targets['count']}, from {targets['lowest']:.4g} to {targets['highest']:.4g}"
    if targets["constant"]:
        yield "constant targets", forms.some(targets["constant"])
    yield "images", f"{forms.whole(images['count'])}: {_counts(images['formats'])}"
    yield "sizes", _counts(images["sizes"])
    yield "modes", _counts(images["modes"])
    yield "same bytes", forms.plural(len(data["duplicates"]["files"]), "group") + " of files"
    yield "near duplicates", f"{near['train']} pairs in train, {near['train_and_test']} across"
    yield "borders, captions", f"{len(images['borders'])}, {len(images['captions'])} images"
    yield "left out", forms.plural(len(data["quarantined"]), "row")
    groups = data["groups"]
    if groups is not None:
        yield "groups", str(groups) if isinstance(groups, int) else _counts(groups)


def _counts(counts: Mapping[str, int]) -> str:
    return forms.some([f"{name} ({number})" for name, number in counts.items()])


def _warnings(data: Mapping[str, Any]) -> Html:
    if not data["warnings"]:
        return el("p", "The check of the data found nothing to warn of.")
    return details(
        f"{forms.plural(len(data['warnings']), 'warning')} of the check",
        el("ul", [el("li", warning) for warning in data["warnings"]]),
    )


def _folds(facts: Facts) -> Html:
    data = facts.data
    labels = dict(list(data["labels_per_fold"].items())[:_LABELS])
    groups_of = _groups_per_fold(facts)
    columns = [
        Column(title="fold", form=forms.whole),
        Column(title="visited", form=forms.whole, meaning="place in the order of training"),
        Column(title="rows", form=forms.whole),
        *([Column(title="groups", form=forms.whole)] if groups_of else []),
        *(Column(title=f"{name}: positive", form=forms.whole) for name in labels),
    ]
    order = facts.fold_order
    rows = [
        [
            fold, order.index(fold) + 1 if fold in order else None, rows_here,
            *([groups_of[fold]] if groups_of else []),
            *(counts[fold] for counts in labels.values()),
        ]
        for fold, rows_here in enumerate(data["fold_sizes"])
    ]  # fmt: skip
    more = len(data["labels_per_fold"]) - len(labels)
    return join([
        table("Folds", columns, rows),
        el("p", f"{more} more labels stand in data.json.", class_="note") if more > 0 else None,
    ])  # fmt: skip


def _groups_per_fold(facts: Facts) -> list[int]:
    """How many groups each fold holds; none when rows were not grouped."""
    if not facts.run.folds.is_file():
        return []
    folds = read_folds(facts.run.folds)
    if folds.group_N is None:
        return []
    group_N = folds.group_N
    return [len(np.unique(group_N[folds.fold == k])) for k in range(folds.k)]


def _samples(facts: Facts) -> Html:
    try:
        pictures = Pictures.open(facts)
    except Nothing as nothing:
        return el("p", nothing)
    folds = read_folds(facts.run.folds)
    rng = np.random.default_rng(0)
    each = max(1, _SAMPLES // folds.k)
    cards: list[Html] = []
    for k in range(folds.k):
        rows = np.flatnonzero(folds.fold == k)
        for row in np.sort(rng.permutation(rows)[:each]).tolist()[: _SAMPLES - len(cards)]:
            name, group = folds.ids[row], folds.group[row] if folds.group else None
            cards.append(card(
                [picture(pictures.row(row), f"row {name}")], name, f"fold {k}",
                forms.group(group) if group is not None and group != name else None,
            ))  # fmt: skip
    views = f" Of each row's {pictures.views} images the first." if pictures.views > 1 else ""
    return join([el("p", f"Drawn at random from the folds.{views}"), gallery(cards)])


def _augmented(facts: Facts) -> Html:
    try:
        best = facts.best
        rows = augmented(Pictures.open(facts), best.recipe, len(read_folds(facts.run.folds).ids))
    except Nothing as nothing:
        return el("p", nothing)
    cards = [
        card([picture(image, f"row {n + 1}, {'as it is' if i == 0 else f'drawn {i}'}")],
             "as it is" if i == 0 else None)
        for n, row in enumerate(rows) for i, image in enumerate(row)
    ]  # fmt: skip
    asked = {k: v for k, v in best.recipe["augment"].items() if v and (k != "crop" or v != 1)}
    told = ", ".join(
        f"{name} {forms.value(value)}{' (not shown)' if name in NOT_DRAWN else ''}"
        for name, value in asked.items()
    ) or "nothing"  # fmt: skip
    return join([
        el("p", f"By trial {best.number}: {told}. Each row is one image as the network sees it, "
           "then as it is drawn in training."),
        el("div", cards, class_="gallery rows", style=f"--columns:{len(rows[0])}"),
    ])  # fmt: skip


def _sheets(facts: Facts) -> Html:
    drawn = [name for name in facts.data.get("pictures", ()) if name in SHEETS]
    there = [name for name in drawn if (facts.run.pictures / name).is_file()]
    return join(
        el("figure", el("h3", SHEETS[name]), sheet(facts.run.pictures / name, SHEETS[name]))
        for name in there
    )  # fmt: skip


def _quarantined(data: Mapping[str, Any]) -> Html | None:
    """Rows that are left out, since their images cannot be read."""
    rows = data["quarantined"]
    if not rows:
        return None
    columns = [Column(title=name, right=False) for name in ("row", "files", "reason")]
    listed = [[row["id"], " ".join(row["files"]), row["reason"]] for row in rows[:_LISTED]]
    title = f"Rows left out, the first {_LISTED}" if len(rows) > _LISTED else "Rows left out"
    return join([el("h3", title), table(title, columns, listed)])
