"""The embedded sample of breast_path: generated H&E tiles in the competition's own layout.

Malignant tissue has larger and more irregular nuclei, and more of them; how much stain a tile holds
overlaps widely, so colour statistics tell a part and shapes tell more. Some labels are wrong.
"""

from pathlib import Path

ROWS = {"train": (168, 72), "test": (56, 24)}  # benign, malignant
WRONG = 0.06  # share of labels that are turned round, within each part
SLIDE = 0  # whose stain and scanner the one laboratory has

# Of the tissue: mean and spread in benign and in malignant tiles, and bounds.
FIELDS = ("cover", "radius", "spindle", "clump", "fibre", "align")
KINDS = (
    ((0.15, 2.3, 0.30, 0.20, 0.50, 0.5), (0.05, 0.30, 0.15, 0.15, 0.2, 0.3)),
    ((0.25, 3.1, 0.30, 0.40, 0.40, 0.5), (0.07, 0.45, 0.20, 0.15, 0.2, 0.3)),
)
BOUNDS = (0.04, 1.6, 0, 0, 0, 0), (0.45, 4.5, 1, 1, 1, 1)


def write_sample(folder: Path, seed: int) -> None:
    """Write the sample into `folder`: the competition's files, and truth/ with what it hides.

    train/train_label has a line "<key> <0|1>" per row, without a head; images are
    train/train_data/<key>.png and test/test_data/<key>.png. truth/test.csv holds key and label of
    the test rows. The same seed writes the same bytes.
    """
    import numpy as np
    from PIL import Image

    from spaces.samples import tissue

    rng = np.random.default_rng(seed)
    lines = {}
    for part, counts in ROWS.items():
        images = folder / part / f"{part}_data"
        images.mkdir(parents=True, exist_ok=True)
        kind_N = rng.permutation(np.repeat((0, 1), counts))
        keys = rng.choice(np.arange(1, 8001), len(kind_N), replace=False)
        for key, kind in zip(keys, kind_N, strict=True):
            values = np.clip(rng.normal(*KINDS[kind]), *BOUNDS).tolist()
            fat, blood = rng.gamma(1, (0.04, 0.02)).tolist()
            shown = tissue.Tissue(
                **dict(zip(FIELDS, values, strict=True)), fat=fat, blood=blood, glass=0.0
            )
            tile = tissue.draw_tile(rng, shown, tissue.SLIDES[SLIDE])
            Image.fromarray(tile).save(images / f"{key}.png")
        # As many labels of each kind are wrong, so that the classes keep their counts.
        label_N = kind_N.copy()
        wrong = round(WRONG * len(kind_N) / 2)
        for kind in (0, 1):
            label_N[rng.choice(np.flatnonzero(kind_N == kind), wrong, replace=False)] = 1 - kind
        lines[part] = list(zip(keys, label_N, strict=True))

    text = "".join(f"{key} {label}\n" for key, label in lines["train"])
    (folder / "train" / "train_label").write_text(text)
    (folder / "truth").mkdir(exist_ok=True)
    text = "".join(f"{key},{label}\n" for key, label in lines["test"])
    (folder / "truth" / "test.csv").write_text("key,label\n" + text)
