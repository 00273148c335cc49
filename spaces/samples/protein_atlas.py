"""The embedded sample of protein_atlas: generated cells in the competition's own layout."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

ROWS = {"train": 200, "test": 60}
NEGATIVES = {"train": 6, "test": 2}  # the rarest class, which has no other beside it
# How often a protein is in each place, as in the competition: most in the nucleus and the cytosol.
SHARES = {"0": 0.32, "16": 0.22, "2": 0.13, "14": 0.11, "13": 0.10, "1": 0.07, "17": 0.05}
LABELS_PER_IMAGE = (0.55, 0.37, 0.08)  # shares of one, two and three
MASK = "eNoLCAgIMAEABJkBdQ=="  # any valid mask: the competition's file holds one for all rows


def write_sample(folder: Path, seed: int) -> None:
    """Write the sample into `folder`: the competition's files, and truth/ with what it hides.

    train.csv has ID and Label ("16|0"), sample_submission.csv the test rows; images are
    <part>/<ID>_{red,green,blue,yellow}.png. truth/test.csv is laid out like train.csv. The same
    seed writes the same bytes.
    """
    import numpy as np
    from PIL import Image

    from spaces.samples.cells import SIDE, draw_cells

    rng = np.random.default_rng(seed)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {}
    for part in ROWS:
        (folder / part).mkdir(exist_ok=True)
        rows[part] = []
        for labels in _labels(rng, part):
            name = _uuid(rng)
            for channel, image in draw_cells(rng, labels).items():
                Image.fromarray(image).save(folder / part / f"{name}_{channel}.png")
            rows[part].append((name, "|".join(labels)))
    for part, file in (("train", "train.csv"), ("test", "truth/test.csv")):
        text = "".join(f"{name},{label}\n" for name, label in rows[part])
        (folder / file).write_text("ID,Label\n" + text)
    text = "".join(f"{name},{SIDE},{SIDE},0 1 {MASK}\n" for name, _ in rows["test"])
    (folder / "sample_submission.csv").write_text(
        "ID,ImageWidth,ImageHeight,PredictionString\n" + text
    )


def _labels(rng: "Generator", part: str) -> list[list[str]]:
    """The classes of each image; every class is somewhere in either part."""
    places, shares = list(SHARES), list(SHARES.values())
    found = [["18"] for _ in range(NEGATIVES[part])]
    # Two of each first, then as they come.
    found += [[place] for place in places for _ in range(2)]
    while len(found) < ROWS[part]:
        count = 1 + int(rng.choice(len(LABELS_PER_IMAGE), p=LABELS_PER_IMAGE))
        found.append(rng.choice(places, count, replace=False, p=shares).tolist())
    return [found[i] for i in rng.permutation(len(found))]


def _uuid(rng: "Generator") -> str:
    """An id like the competition's: 5c27f04c-bb99-11e8-b2b9-ac1f6b6435d0."""
    digits = rng.bytes(16).hex()
    return "-".join(digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
