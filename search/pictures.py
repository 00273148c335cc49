"""Pictures of what the data report tells, for people to look at."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from search.data.report import DataReport

SHOWN = 12  # images or pairs of a kind


def draw(report: "DataReport", folder: Path) -> list[str]:
    """Write the pictures that there is something to see in; their names."""
    from search.data import pictures
    from search.data.borders import clean
    from search.data.decode import decode_image, salvage

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
    files_of = {files[0]: files for files in (*table.files, *table.test_files)}
    for name, found in (("borders", images.borders), ("captions", images.captions)):
        shown = [file for file in found if file in files_of][:SHOWN]
        before = [decode_image(table.root, files_of[file], None) for file in shown]
        after = [
            clean(image, crop_borders=name == "borders", hide_captions=name == "captions")[0]
            for image in before
        ]
        if before:
            together = [(_coloured(a), _coloured(b)) for a, b in zip(before, after, strict=True)]
            pictures.before_after(together, path(f"{name}.png"), names=shown)
    broken = {file: salvage(table.root / file) for file in list(images.unreadable)[:SHOWN]}
    left = {file: image for file, image in broken.items() if image is not None}
    if left:
        pictures.grid(list(left.values()), list(left), path("unreadable.png"))
    if report.auto is not None and report.auto.labels is not None:
        train = thumbs[: len(table.files) : views]
        pictures.clusters(train, report.auto.labels, path("groups.png"))
    return drawn


def _coloured(image_HWC: "np.ndarray") -> "np.ndarray":
    """The first three channels as red, green and blue."""
    import numpy as np

    missing = max(0, 3 - image_HWC.shape[2])
    return np.pad(image_HWC[..., :3], ((0, 0), (0, 0), (0, missing)))
