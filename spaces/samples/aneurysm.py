"""The embedded sample of aneurysm: generated angiographies in the competition's own layout."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

VIEWS = ("LI-A", "LI-B", "LV-A", "LV-B", "RI-A", "RI-B", "RV-A", "RV-B")
COLUMNS = tuple(
    name
    for artery in ("ICA", "PCOM", "AntChor", "ACA", "ACOM", "MCA", "VA", "PICA", "SCA", "BA", "PCA")
    for name in (("BA",) if artery == "BA" else (f"L_{artery}", f"R_{artery}"))
)
PATIENTS = {"train": (160, 80), "test": (60, 28)}  # in all, with an aneurysm
# Aneurysms of each side's artery (BA: in all) in train and test; some are as rare as can be.
POSITIVES = {
    "ICA": (11, 4), "PCOM": (5, 2), "AntChor": (4, 1), "ACA": (4, 1), "ACOM": (6, 2),
    "MCA": (10, 4), "VA": (4, 1), "PICA": (2, 1), "SCA": (2, 1), "BA": (5, 2), "PCA": (2, 1),
}  # fmt: skip


def write_sample(folder: Path, seed: int) -> None:
    """Write the sample into `folder`: the competition's files, and truth/ with what it hides.

    train_set/train.csv has Index, Aneurysm and the 21 locations, test_set/test.csv the Index alone,
    of four digits; images are <set>/<Index><view>.jpg. truth/test.csv is laid out like train.csv.
    The same seed writes the same bytes.
    """
    import numpy as np
    from PIL import Image

    from spaces.samples.angiography import draw_view

    rng = np.random.default_rng(seed)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    for part, indices in (("train", np.arange(1001, 2612)), ("test", np.arange(1, 1000))):
        root = folder / f"{part}_set"
        root.mkdir(exist_ok=True)
        patients = _patients(rng, part)
        names = [f"{i:04d}" for i in np.sort(rng.choice(indices, len(patients), replace=False))]
        rows = [",".join(("Index", "Aneurysm", *COLUMNS))]
        for name, radii in zip(names, patients, strict=True):
            for view in VIEWS:
                image = Image.fromarray(draw_view(rng, view, radii))
                image.save(root / f"{name}{view}.jpg", quality=90)
            labels = (bool(radii), *(column in radii for column in COLUMNS))
            rows.append(",".join((name, *(str(int(label)) for label in labels))))
        table = folder / ("train_set/train.csv" if part == "train" else "truth/test.csv")
        table.write_text("\n".join(rows) + "\n")
        if part == "test":
            (root / "test.csv").write_text("\n".join(("Index", *names)) + "\n")


def _patients(rng: "Generator", part: str) -> list[dict[str, float]]:
    """Of each patient the radius in pixels of the sac at each location that has one."""
    count, affected = PATIENTS[part]
    where = [c for c in COLUMNS for _ in range(POSITIVES[c.split("_")[-1]][part == "test"])]
    patients: list[dict[str, float]] = [{} for _ in range(count)]
    for i, location in enumerate(rng.permutation(where).tolist()):
        # First one each, then more for some.
        able = [p for p in range(affected) if location not in patients[p]]
        patients[i if i < affected else rng.choice(able)][location] = float(rng.uniform(3.4, 5.4))
    return [patients[i] for i in rng.permutation(count)]
