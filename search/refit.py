"""--refit: the ensemble's recipes trained once more, on all rows; models without out-of-fold rows.

Shapes: T outputs, S test rows.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ensemble.export import ALL
from search.setup import Setup
from search.terminal import say
from search.trials import Trial
from spaces.errors import RunFailed, UserError
from spaces.recipe import Recipe
from spaces.seeds import derive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ensemble.build import BuildResult


def refit(setup: Setup, built: "BuildResult", trials: Mapping[int, Trial]) -> Path:
    """Train each member of the ensemble on all rows, for the mean over its folds of the epoch that
    scored best there; write RUN/refit: models, a bundle with the same weights, a submission.

    A model that is there already is kept. Returns the bundle's folder.
    """
    from ensemble.build import columns_of
    from ensemble.export import export
    from ensemble.submission import SubmissionForm
    from search.model.memory import OutOfMemory
    from search.train.job import Diverged

    choice, run = built.choice, setup.run
    folders: dict[int, Path] = {}
    tests: list[NDArray[np.float32]] = []
    for number, m in enumerate(choice.blend.members, start=1):
        member = choice.pool.members[m]
        if member.origin is None:
            raise UserError(
                f"member {member.name} is no trial; --refit trains trials' recipes only"
            )
        trial = trials[member.origin.trial]
        say(f"refit {number} of {len(choice.blend.members)}: trial {trial.number} on all rows")
        folders[m] = run.refit / f"{trial.number:04d}"
        try:
            tests.append(_train(setup, trial, folders[m]))
        except (Diverged, OutOfMemory) as error:
            raise RunFailed(
                f"trial {trial.number} cannot be refitted: {error}; the ensemble of fold models "
                f"in {run.ensemble} stands"
            ) from error
    report = {
        **choice.report,
        "notes": [
            "every model was trained on all rows, so there are no out-of-fold predictions of it: "
            "the scores are those of the fold models that it stands for",
            *choice.report["notes"],
        ],
    }
    target = run.refit / "ensemble"
    export(choice.pool, choice.blend, report, columns_of(run, choice.pool), target, refit=folders)
    if run.form.is_file():
        form = SubmissionForm.load(run.form)
        pred_TS = choice.blend.apply(tests)
        path = run.refit / form.submission.file
        form.write(path, pred_TS, choice.blend.post.thresholds_T)
        say(f"submission of the refitted models: {path}")
    return target


def best_epochs(trial: Trial) -> int:
    """The mean over folds of the epoch with the best score."""
    best: dict[int, tuple[float, int]] = {}
    for (fold, epoch), point in sorted(trial.curve.items()):
        best[fold] = max(best.get(fold, (-np.inf, 0)), (point["score"], -epoch))
    return max(1, round(fmean(-epoch for _, epoch in best.values())))


def _train(setup: Setup, trial: Trial, folder: Path) -> "NDArray[np.float32]":
    """(T, S) predictions of the test rows by the folder's model, trained if it is not there."""
    import torch

    from search.data.cache import load_store
    from search.data.folds import read_folds
    from search.metrics import FittedMetric
    from search.oof import save_rows
    from search.train.allocator import keep_freed_memory
    from search.train.fold import FoldJob, make_training, save_fold

    keep_freed_memory()
    model, tests = folder / f"fold-{ALL}.safetensors", folder / "test.npy"
    if model.is_file() and tests.is_file():
        return np.load(tests, allow_pickle=False)
    task, mirror = setup.task, setup.task.mirror
    recipe = Recipe.from_dict(trial.recipe, task.part)
    recipe = dataclasses.replace(recipe, epochs=best_epochs(trial))
    targets_TN = np.load(setup.run.targets, mmap_mode="r")
    rows = targets_TN.shape[1]
    images_NHWC = load_store(setup.store).images_NHWC
    cut = rows * task.layout.view_count
    metric = FittedMetric.from_dict(setup.metric)
    # Any fold's start will do: nothing is validated that it might have seen.
    initial = setup.initial.get(recipe.backbone, {}).get("0")
    training = make_training(
        FoldJob(
            recipe=recipe,
            images_NHWC=images_NHWC[:cut],
            targets_TN=targets_TN,
            train_rows=np.arange(rows),
            valid_rows=np.arange(0),
            test_images_NHWC=images_NHWC[cut:],  # perhaps none: then predictions of no rows
            seed=derive(setup.seed, trial.number, ALL, recipe.seed),
            device="cuda" if torch.cuda.is_available() else "cpu",
            weights_dir=setup.weights_dir,
            task_type=task.task_type,
            views=task.layout.view_count,
            mirror_views=mirror.views if mirror else None,
            mirror_targets=mirror.places(setup.target_names) if mirror else None,
            cache=setup.cache,
            store_key=setup.store.name,
            initial=Path(initial) if initial else None,
            compile=setup.plan.compile,
        ),
        score=lambda pred_TN, true_TN: metric.score(pred_TN, true_TN).value,
        groups_N=read_folds(setup.run.folds).group_N,
    )
    started = time.monotonic()
    while not training.done:
        done = training.epoch().epoch
        left = (time.monotonic() - started) / done * (recipe.epochs - done)
        say(f"  epoch {done} of {recipe.epochs}, {left:.0f} s left")
    finished = training.finish()
    assert finished.test_pred_TS is not None
    folder.mkdir(parents=True, exist_ok=True)
    save_fold(model, finished, recipe)
    save_rows(tests, finished.test_pred_TS)
    return finished.test_pred_TS
