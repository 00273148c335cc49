"""Pictures of what the data report tells, for people to look at."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.data.check import DataReport

SHOWN = 12  # images or pairs of a kind


def draw(report: "DataReport", folder: Path) -> list[str]:
    """Write the pictures that there is something to see in; their names."""
    from search.data import pictures
    from search.data.borders import clean
    from search.data.decode import decode

    table, images, thumbs = report.table, report.images, report.thumbs_IHW3
    views, count = table.views, len(table.ids)
    drawn: list[str] = []

    def path(name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        drawn.append(name)
        return folder / name

    alike, ids = report.alike, [*table.ids, *table.test_ids]
    pairs = [*alike.train, *((i, count + j) for i, j in alike.crossing)][:SHOWN]
    if pairs:
        pictures.duplicates(thumbs[::views], pairs, path("duplicates.png"), names=ids)
    for name, found in (("borders", images.borders), ("captions", images.captions)):
        before = [decode(table.root / file, None) for file in list(found)[:SHOWN]]
        after = [
            clean(image, crop_borders=name == "borders", hide_captions=name == "captions")[0]
            for image in before
        ]
        if before:
            together = list(zip(before, after, strict=True))
            pictures.before_after(together, path(f"{name}.png"), names=list(found))
    if report.auto is not None and report.auto.labels is not None:
        train = thumbs[: len(table.files) : views]
        pictures.clusters(train, report.auto.labels, path("groups.png"))
    return drawn
