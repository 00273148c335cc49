"""What all arms are given: a data folder, its folds, the ranges to search, and the metric.

The test rows' true values lie in truth/ of the data folder, which no arm reads while it runs.

Shapes: T genes, N train rows, S test rows.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.metrics import FittedMetric, metric_of
from search.plan import Facts, Resources, Wish, make_plan, plan_images
from spaces.means import Means
from spaces.registry import load_task

TASK = "gene_expr"
CORES = 2
SAMPLE, HER2ST = "sample", "her2st"
DATA_SETS = (SAMPLE, HER2ST)

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One data set with one seed."""

    folder: Path  # holds data/, folds.csv and problem.json
    seed: int
    title: str
    groups: str  # the value of our --groups
    backbones: tuple[str, ...]  # timm names
    size: int  # pixels
    epochs: int
    ranges: dict[str, dict[str, Any]]  # of the parameters that are searched: see `_Ranges`
    metric: FittedMetric

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def save(self) -> None:
        fields = {**asdict(self), "folder": None, "metric": self.metric.to_dict()}
        (self.folder / "problem.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Problem":
        fields = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
        metric = FittedMetric.from_dict(fields["metric"])
        return cls(**{**fields, "folder": folder, "metric": metric,
                      "backbones": tuple(fields["backbones"])})  # fmt: skip

    def test_ids(self) -> list[str]:
        return pd.read_csv(self.data / "test.csv", dtype={"ID": str})["ID"].tolist()


class Judge:
    """Scores test predictions by the truth."""

    def __init__(self, problem: Problem) -> None:
        self._metric = problem.metric
        truth = pd.read_csv(problem.data / "truth/test.csv", dtype={"ID": str}).set_index("ID")
        train = pd.read_csv(problem.data / "train.csv")
        names = [name for name in train.columns if name not in ("ID", "path")]
        self._true_TS = truth.loc[problem.test_ids(), names].to_numpy().T
        profile_T = train[names].to_numpy().mean(axis=0)
        self.mean_profile = self.score(np.repeat(profile_T[:, None], self._true_TS.shape[1], 1))

    def score(self, pred_TS: NDArray[Any]) -> float:
        """The official score of predictions in the order of test.csv."""
        return float(self._metric.score(pred_TS, self._true_TS).value)


class _Ranges:
    """Notes what a space asks for, and answers with the default."""

    def __init__(self) -> None:
        self.noted: dict[str, dict[str, Any]] = {}

    def pick(self, name: str, options: Any, default: Any) -> Any:
        self.noted[name.split("@")[0]] = {"options": list(options), "default": default}
        return default

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        self.noted[name.split("@")[0]] = {"low": low, "high": high, "default": default, "log": log}
        return default


def prepare(name: str, seed: int, minutes: float, folder: Path) -> Problem:
    """The problem in `folder`, made there if it is not yet. Raises KeyError when the data set is
    not the sample and RUNGFOLD_DATA is not set."""
    if (folder / "problem.json").is_file():
        return Problem.load(folder)
    from search.data.check import inspect

    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    data.mkdir(parents=True)
    task = load_task(TASK, {})
    if name == SAMPLE:
        title, groups = "generated sample", "auto"
        assert task.write_sample is not None
        task.write_sample(data, seed)
    else:
        held = _hold_out(Path(os.environ["RUNGFOLD_DATA"]) / HER2ST, data, seed)
        title, groups = f"her2st without section {held}", f"{data}/truth/train_slides.csv:section"
    report = inspect(task, data, groups=groups, seed=seed)
    table, fold_N = report.table, report.fold_N
    pd.DataFrame({"ID": table.ids, "fold": fold_N}).to_csv(folder / "folds.csv", index=False)

    sizes = np.bincount(fold_N).tolist()
    native = min(map(int, next(iter(report.images.sizes)).split("x")))
    wish, backbones = Wish(hours=minutes / 60), tuple(task.backbones(False))
    images = plan_images(wish, native, backbones, False)
    facts = Facts(rows=len(table.ids), folds=len(sizes), backbones=backbones)
    plan = make_plan(wish, facts, images, Resources(cpus=CORES, gpus=0, memory_bytes=8 * 2**30))
    ranges = _Ranges()
    task.space(Means(
        gpu=False, pretrained=False, image_sizes=plan.image_sizes, backbones=plan.backbones,
        epochs=plan.epochs, train_rows=len(table.ids) - max(sizes), outputs=len(table.target_names),
    )).define(ranges)  # fmt: skip
    problem = Problem(
        folder=folder, seed=seed, groups=groups, backbones=plan.backbones,
        title=f"{title}: {len(table.ids)} train rows, {len(table.test_ids)} test rows, "
        f"{len(table.target_names)} genes, {len(sizes)} folds",
        size=plan.image_sizes[0], epochs=plan.epochs, ranges=ranges.noted,
        metric=metric_of(task.metric, task.metric_args, task.task_type).fit(table.targets_TN),
    )  # fmt: skip
    problem.save()
    return problem


def _hold_out(source: Path, data: Path, seed: int) -> str:
    """Write her2st without one section, whose rows become the test rows; its name.

    The data set's own test rows have no public truth, and stay out of it. Each seed holds another
    section out, in the order of their names.
    """
    rows = pd.read_csv(source / "train.csv", dtype={"ID": str})
    slides = pd.read_csv(source / "train_slides.csv", dtype=str).set_index("ID").loc[rows["ID"]]
    sections = sorted(slides["section"].unique())
    held = str(sections[seed % len(sections)])
    is_test_N = (slides["section"] == held).to_numpy()
    train, test = rows[~is_test_N], rows[is_test_N].copy()
    shutil.copytree(source / "train", data / "train")
    (data / "test").mkdir()
    (data / "truth").mkdir()
    for path in test["path"]:
        (data / path).rename(data / "test" / Path(path).name)
    test["path"] = [f"./test/{Path(path).name}" for path in test["path"]]
    truth = test.drop(columns="path")
    train.to_csv(data / "train.csv", index=False)
    test[["ID", "path"]].to_csv(data / "test.csv", index=False)
    truth.to_csv(data / "truth/test.csv", index=False)
    slides[~is_test_N].reset_index().to_csv(data / "truth/train_slides.csv", index=False)
    blank = truth.copy()
    blank.iloc[:, 1:] = 0.0
    blank.to_csv(data / "sample_submission.csv", index=False)
    return held
