"""Fixtures and rules that all tests share."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before any library is imported: no telemetry, and no test waits for the network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Image stores of the tests stay out of the user's cache folder."""
    os.environ["RUNGFOLD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; the test skips where there is none."""
    named = os.environ.get("RUNGFOLD_DATA")
    if not named:
        pytest.skip("RUNGFOLD_DATA is not set; it names the folder of real data")
    root = Path(named)
    # `make test` may run in another folder than the shell in which the variable was set.
    root = root if root.is_absolute() else ROOT / root
    if not root.is_dir():
        pytest.skip(f"RUNGFOLD_DATA names {root}, which is not a folder")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small run as search.run leaves it, with its data. Not to be changed by a test."""
    from tests.bundles import train_run

    return train_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def built(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """That run with its ensemble. Not to be changed by a test."""
    from tests.bundles import build_run

    return build_run(trained, tmp_path_factory.mktemp("built") / "run")


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that small networks learn from. Not to be changed by a test."""
    from tests.runs import learnable_folder

    return learnable_folder(tmp_path_factory.mktemp("tiles") / "open")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> tuple[Path, str]:
    """A finished run with one worker, and what it printed. Not to be changed by a test."""
    from tests.runs import SMALL, call

    folder = tmp_path_factory.mktemp("whole")
    output = call("gene_expr", "--data", tiles, "--out", "run", "--trials", 6, *SMALL, cwd=folder)
    return folder / "run", output


@pytest.fixture
def bundle(built: SimpleNamespace, tmp_path: Path) -> Path:
    """A bundle of one's own to spoil."""
    shutil.copytree(built.run.ensemble, tmp_path / "bundle")
    return tmp_path / "bundle"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds: only when a selected test asks for a GPU

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
