"""The embedded sample of gene_expr: generated tiles in the competition's own layout."""

from pathlib import Path

TILES = (108, 102, 105, 106)  # per slide; the last slide is the test slide


def write_sample(folder: Path, seed: int) -> None:
    """Write the sample into `folder`: the competition's files, and truth/ with what it hides.

    train.csv, test.csv, sample_submission.csv, train/*.png and test/*.png are laid out like the
    competition's. truth/test.csv holds the true values of the test rows, truth/train_slides.csv
    the slide of each training row. The same seed writes the same bytes.
    """
    import numpy as np
    import pandas as pd
    from PIL import Image

    from spaces.samples import tissue

    rng = np.random.default_rng(seed)
    slide_N = np.repeat(np.arange(len(TILES)), TILES)
    test_slide = len(TILES) - 1
    tissues = [tissue.draw_tissue(rng, tissue.SLIDES[s]) for s in slide_N]
    values_NT = tissue.express(rng, tissues, slide_N).round(6)
    names = tissue.gene_names()

    for part in ("train", "test", "truth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    tables = {}
    for part, rows in (
        ("train", np.flatnonzero(slide_N != test_slide)),
        ("test", np.flatnonzero(slide_N == test_slide)),
    ):
        # Rows are shuffled across slides, as the competition's are: their order tells nothing.
        rows = rng.permutation(rows)
        ids = [f"{part.upper()}_{i:04d}" for i in range(len(rows))]
        paths = [f"./{part}/{id_}.png" for id_ in ids]
        for row, path in zip(rows, paths, strict=True):
            tile = tissue.draw_tile(rng, tissues[row], tissue.SLIDES[slide_N[row]])
            Image.fromarray(tile).save(folder / path)
        head = pd.DataFrame(
            {"ID": ids, "path": paths, "slide": [f"S{slide_N[r] + 1}" for r in rows]}
        )
        tables[part] = head, pd.DataFrame(values_NT[rows], columns=names)

    head, values = tables["train"]
    pd.concat([head[["ID", "path"]], values], axis=1).to_csv(folder / "train.csv", index=False)
    head[["ID", "slide"]].to_csv(folder / "truth/train_slides.csv", index=False)
    head, values = tables["test"]
    head[["ID", "path"]].to_csv(folder / "test.csv", index=False)
    pd.concat([head[["ID"]], values], axis=1).to_csv(folder / "truth/test.csv", index=False)
    pd.concat([head[["ID"]], values * 0.0], axis=1).to_csv(
        folder / "sample_submission.csv", index=False
    )
