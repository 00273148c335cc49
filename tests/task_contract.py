"""What every task must do, a user's own too: subclass TaskContract and name the task.

class TestMine(TaskContract):
    task = "my_task.py"
    data = Path("/where/my/data/is")    # None: the embedded sample
"""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.submission import form_of, read_truth
from search.baselines import BASELINES
from search.data.cache import open_store
from search.data.check import inspect
from search.data.decode import size_of
from search.data.report import DataReport
from search.data.source import resolve_data
from search.data.table import drop, read_test
from search.metrics import check_truth, fold_scores, metric_of, trial_score
from search.model.infer import FoldModel
from search.sampler import _by_chance, _Choose
from search.train.fold import FoldJob, save_fold, train_fold
from spaces.means import Means
from spaces.recipe import Recipe
from spaces.registry import load_task
from spaces.task import Task
from tests.modelruns import one_thread

SIZE, ROWS = 32, 60


class TaskContract:
    task: str
    options: dict[str, Any] | None = None
    data: Path | None = None

    # -- what the tests look at, made once ------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls) -> Task:
        return load_task(cls.task, cls.options)

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, loaded: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
        place = str(cls.data) if cls.data else None
        return resolve_data(loaded, place, tmp_path_factory.mktemp("cache"), seed=0)

    @pytest.fixture(scope="class")
    @classmethod
    def report(cls, loaded: Task, folder: Path) -> DataReport:
        return inspect(loaded, folder, groups="auto", folds=3)

    @pytest.fixture(scope="class")
    @classmethod
    def images(cls, report: DataReport, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
        table = report.table
        files = [*table.files, *table.test_files]
        return open_store(table.root, files, SIZE, tmp_path_factory.mktemp("store")).images_NHWC

    def means(self, loaded: Task, report: DataReport, **more: Any) -> Means:
        usual: dict[str, Any] = {
            "gpu": False, "pretrained": False, "image_sizes": (SIZE,),
            "backbones": loaded.backbones(False), "epochs": 2, "train_rows": 100,
            "views": report.table.views, "channels": loaded.layout.channel_count,
            "outputs": len(report.table.target_names),
        }  # fmt: skip
        return Means(**{**usual, **more})

    # -- the task ---------------------------------------------------------------------------------

    def test_loads_light(self) -> None:
        heavy = "torch", "timm", "ray", "optuna", "pandas"
        code = (
            "import sys; from spaces.registry import load_task; "
            f"load_task({self.task!r}, {self.options!r}); "
            f"sys.exit(any(name in sys.modules for name in {heavy}))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    @pytest.mark.parametrize("pretrained", [False, True])
    @pytest.mark.parametrize("gpu", [False, True])
    def test_space(self, loaded: Task, report: DataReport, gpu: bool, pretrained: bool) -> None:
        means = self.means(loaded, report, gpu=gpu, pretrained=pretrained,
                           backbones=loaded.backbones(gpu))  # fmt: skip
        space = loaded.space(means)
        for values in space.first:
            recipe, params = space.fixed(values)
            assert space.contains(params)
        for seed in range(30):
            choose = _Choose(_by_chance(np.random.default_rng(seed)), {})
            recipe = space.define(choose)
            assert space.contains(choose.params)
            assert Recipe.from_dict(recipe.to_dict(), loaded.part) == recipe
            assert isinstance(recipe.task, loaded.part)

    # -- the data -----------------------------------------------------------------------------

    def test_data_is_whole(self, loaded: Task, report: DataReport) -> None:
        table = report.table
        assert (
            len(table.files)
            == len(table.ids) * table.views
            == table.targets_TN.shape[1] * (loaded.layout.view_count)
        )
        assert np.isfinite(table.targets_TN).all()
        assert report.fold_N.max() + 1 >= 2
        assert report.to_dict()["rows"]["train"] == len(table.ids)

    def test_metric_can_score_every_fold(self, loaded: Task, report: DataReport) -> None:
        table = report.table
        metric = metric_of(loaded.metric, loaded.metric_args, loaded.task_type)
        fitted = metric.fit(table.targets_TN)
        assert not check_truth(fitted, table.targets_TN, report.fold_N, table.target_names)
        perfect = trial_score(
            fold_scores(fitted, table.targets_TN, table.targets_TN, report.fold_N)
        )
        noise_TN = np.random.default_rng(0).random(table.targets_TN.shape)
        if loaded.task_type == "multiclass":
            noise_TN /= noise_TN.sum(axis=0)
        noise = trial_score(fold_scores(fitted, noise_TN, table.targets_TN, report.fold_N))
        assert perfect > noise

    def test_baselines(self, loaded: Task, report: DataReport, images: np.ndarray) -> None:
        table = report.table
        fitted = metric_of(loaded.metric, loaded.metric_args, loaded.task_type).fit(
            table.targets_TN
        )
        for baseline in BASELINES.values():
            oof_TN = baseline.oof(
                images[: len(table.files)], table.targets_TN, report.fold_N, loaded.task_type,
                table.views,
            )  # fmt: skip
            scores = fold_scores(fitted, oof_TN, table.targets_TN, report.fold_N)
            assert np.isfinite(trial_score(scores))

    # -- a model --------------------------------------------------------------------------------

    def test_trains_predicts_and_reloads(
        self, loaded: Task, report: DataReport, images: np.ndarray, tmp_path: Path
    ) -> None:
        table = report.table
        space = loaded.space(self.means(loaded, report, epochs=1))
        recipe, _ = space.fixed(space.first[0])
        recipe = dataclasses.replace(recipe, batch_size=8, epochs=1)
        rng = np.random.default_rng(0)
        rows = rng.permutation(len(table.ids))[:ROWS]
        mirror = loaded.mirror
        job = FoldJob(
            recipe=recipe,
            images_NHWC=images[: len(table.files)],
            targets_TN=table.targets_TN,
            train_rows=rows[ROWS // 3 :],
            valid_rows=rows[: ROWS // 3],
            test_images_NHWC=images[len(table.files) :] if table.test_ids else None,
            task_type=loaded.task_type,
            views=table.views,
            mirror_views=mirror.views if mirror else None,
            mirror_targets=mirror.places(table.target_names) if mirror else None,
        )
        with one_thread():
            result = train_fold(job)
            assert result is not None
            assert result.pred_TV.shape == (len(table.target_names), len(job.valid_rows))
            if loaded.task_type != "regression":
                assert 0 <= result.pred_TV.min() <= result.pred_TV.max() <= 1
            if loaded.task_type == "multiclass":
                np.testing.assert_allclose(result.pred_TV.sum(axis=0), 1, atol=1e-5)
            save_fold(tmp_path / "fold-0.safetensors", result, recipe)
            model = FoldModel.load(tmp_path / "fold-0.safetensors")
            again_VT = model.predict(job.images_NHWC, rows=job.valid_rows)
            np.testing.assert_allclose(again_VT.T, result.pred_TV, atol=1e-4)
            if table.test_ids:
                assert result.test_pred_TS is not None
                np.testing.assert_allclose(
                    model.predict(images[len(table.files) :]).T, result.test_pred_TS, atol=1e-4
                )

    # -- what is handed in ------------------------------------------------------------------------

    def test_submission(
        self, loaded: Task, report: DataReport, folder: Path, tmp_path: Path
    ) -> None:
        table = report.table
        if not table.test_ids:
            pytest.skip("no test rows")
        ids, files = read_test(loaded.layout, folder)
        assert (ids, tuple(files)) == (table.test_ids, tuple(table.test_files))
        form = form_of(
            loaded.layout, loaded.task_type, target_names=table.target_names, test_ids=ids,
            ids=table.submission_ids, columns=table.submission_columns,
            sizes=lambda: [size_of(folder / image[0]) for image in files[:: table.views]],
        )  # fmt: skip
        pred_TS = np.random.default_rng(0).random((len(table.target_names), len(ids)))
        path = tmp_path / loaded.layout.submission.file
        form.write(path, pred_TS)
        lines = path.read_text().splitlines()
        heads = 0 if loaded.layout.submission.form == "lines" else 1
        assert len(lines) == len(ids) + heads
        separator = "," if heads else " "
        assert [line.split(separator)[0] for line in lines[heads:]] == list(table.submission_ids)

    def test_truth_of_the_sample(self, loaded: Task, report: DataReport, folder: Path) -> None:
        truth = folder / loaded.truth
        if not truth.is_file():
            pytest.skip("the truth of the test rows is not known")
        ids, true_TS = read_truth(truth, report.table.target_names, loaded.layout.label_column)
        assert sorted(ids) == sorted(report.table.test_ids)
        fitted = metric_of(loaded.metric, loaded.metric_args, loaded.task_type).fit(
            report.table.targets_TN
        )
        assert fitted.score(true_TS, true_TS).value > 0 or loaded.task_type == "regression"

    def test_kept_rows_keep_their_images(self, report: DataReport) -> None:
        table = report.table
        rest = drop(table, table.ids[:-2])
        assert rest.files == table.files[-2 * table.views :]
