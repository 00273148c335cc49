"""A browser, and the sample run of each task with its report."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import call

TASKS = ("gene_expr", "breast_path", "aneurysm", "protein_atlas")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A minute each on two cores: enough trials to prune one, one epoch more than the first rung.
SMALL = ("--trials", 5, "--epochs", 3, "--folds", 3)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright; skips where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium; `make test-browser` installs Debian's where it can")
    with playwright.sync_playwright() as driver:
        # Containers run as root, which Chromium's sandbox refuses; the pages are our own.
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session", params=TASKS)
def report(
    browser: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """report.html of the task's sample run; not made where no browser could open it."""
    folder = tmp_path_factory.mktemp(request.param)
    call(request.param, "--out", "run", *SMALL, cwd=folder, cores=2, timeout=590)
    return folder / "run" / "report.html"
