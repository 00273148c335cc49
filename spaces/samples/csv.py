"""The embedded sample of csv: a laboratory's own table, of colonies with a grade."""

from pathlib import Path

PATIENTS = {"train": 30, "test": 10}  # of six images each
IMAGES = 6
GRADES = ("low", "mid", "high")


def write_sample(folder: Path, seed: int) -> None:
    """Write the sample into `folder`: tables, images, and truth/ with what they hide.

    train.csv has id, image (a path), patient, grade, area (percent) and count; test.csv lacks the
    last three. truth/test.csv holds id and targets of the test rows. The same seed writes the same
    bytes.
    """
    import numpy as np
    import pandas as pd
    from PIL import Image

    from spaces.samples.colonies import draw_colonies, draw_dish

    rng = np.random.default_rng(seed)
    for part in ("images", "truth"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for patient in range(sum(PATIENTS.values())):
        dish, usual = draw_dish(rng), rng.uniform(0.1, 0.9)
        for _ in range(IMAGES):
            severity = float(np.clip(usual + rng.normal(0, 0.15), 0, 1))
            image, area, count = draw_colonies(rng, dish, severity)
            # Whoever graded was not always sure.
            grade = int(np.digitize(severity + rng.normal(0, 0.05), (0.45, 0.7)))
            name = f"S{len(rows) + 1:04d}"
            Image.fromarray(image).save(folder / "images" / f"{name}.png")
            rows.append(
                {
                    "id": name,
                    "image": f"images/{name}.png",
                    "patient": f"P{patient + 1:02d}",
                    "grade": GRADES[grade],
                    "area": area,
                    "count": count,
                }
            )
    table = pd.DataFrame(rows)
    train, test = table[: PATIENTS["train"] * IMAGES], table[PATIENTS["train"] * IMAGES :]
    train.to_csv(folder / "train.csv", index=False)
    test[["id", "image", "patient"]].to_csv(folder / "test.csv", index=False)
    test[["id", "grade", "area", "count"]].to_csv(folder / "truth" / "test.csv", index=False)
