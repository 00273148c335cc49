"""Make the samples' reports and a picture of each, as the README shows them.

python docs/reports/make.py [TASK ...]          (make reports: all of them)
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SHOWN = {  # task -> the section of its report that the README shows
    "gene_expr": "summary",
    "breast_path": "targets",
    "aneurysm": "errors",
    "protein_atlas": "ensemble",
}
TRIALS = 24
WINDOW = {"width": 900, "height": 760}  # pixels
COLOURS = 255  # of a picture, so that it stays small


def write(tasks: Sequence[str]) -> None:
    """Run the samples and keep their reports."""
    with TemporaryDirectory() as folder:
        for task in tasks:
            # Relative paths: what a report quotes of them means something elsewhere.
            command = f"search.run {task} --trials {TRIALS} --out {task} --cache cache".split()
            subprocess.run(
                [sys.executable, "-m", *command], cwd=folder, check=True,
                env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
            )  # fmt: skip
            shutil.copy(Path(folder, task, "report.html"), HERE / f"{task}.html")


def photograph(tasks: Sequence[str]) -> None:
    """A small picture of each report's section."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport=WINDOW)
        for task in tasks:
            page.goto((HERE / f"{task}.html").as_uri())
            page.wait_for_function("window.Plotly")
            page.evaluate("id => document.getElementById(id).scrollIntoView()", SHOWN[task])
            page.wait_for_timeout(2000)  # its charts are drawn
            path = HERE / f"{task}.png"
            page.screenshot(path=path)
            with Image.open(path) as picture:
                picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)
        chromium.close()


if __name__ == "__main__":
    asked = sys.argv[1:] or list(SHOWN)
    write(asked)
    photograph(asked)
