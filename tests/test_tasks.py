"""Every task that comes with the package keeps the contract, and so does a user's own file."""

from pathlib import Path

import pytest

from spaces.samples.csv import write_sample
from tests.task_contract import TaskContract

OWN = """
from spaces.layout import Layout
from spaces.task import Task

TASK = Task(
    name="colonies",
    task_type="regression",
    layout=Layout(id_column="id", image_columns=("image",), targets=("area", "count")),
    metric="rmse",
)
"""


class TestGeneExpr(TaskContract):
    task = "gene_expr"


class TestBreastPath(TaskContract):
    task = "breast_path"


class TestAneurysm(TaskContract):
    task = "aneurysm"


class TestProteinAtlas(TaskContract):
    task = "protein_atlas"


class TestCsv(TaskContract):
    task = "csv"


class TestCsvOptions(TaskContract):
    task = "csv"
    options = {"targets": ["area", "count"], "task_type": "regression"}  # noqa: RUF012


class TestOwnFile(TaskContract):
    """Ten lines of a user."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def write(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("own")
        (folder / "my_task.py").write_text(OWN)
        write_sample(folder / "data", 0)
        cls.task = str(folder / "my_task.py")
        cls.data = Path(folder / "data")
