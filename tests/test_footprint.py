"""What is measured of trials on a GPU: the largest of each backbone, on the code that trains."""

from collections.abc import Sequence

import numpy as np
import pytest

from search import footprint
from search.footprint import Footprint, Shape, job_of, largest, measure, packing_of
from search.plan import Resources
from search.train.fold import train_fold
from spaces.errors import UserError
from spaces.means import Means
from spaces.recipe import Recipe
from spaces.registry import load_task

TASKS = ("gene_expr", "breast_path", "aneurysm", "protein_atlas")


def means_of(task: str, **changes: object) -> Means:
    layout = load_task(task).layout
    usual = {
        "gpu": True, "pretrained": True, "image_sizes": (32, 48), "epochs": 7, "train_rows": 2000,
        "backbones": ("test_resnet",), "views": layout.view_count,
        "channels": layout.channel_count, "outputs": 4,
    }  # fmt: skip
    return Means(**{**usual, **changes})  # type: ignore[arg-type]


def shape_of(task: str) -> Shape:
    layout = load_task(task).layout
    return Shape(
        task_name=task, task_options={}, side=40, channels=layout.channel_count,
        views=layout.view_count, outputs=4,
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_largest_batch_and_image_are_taken(task: str) -> None:
    recipe = largest(load_task(task).space(means_of(task)), "test_resnet")
    assert (recipe.backbone, recipe.batch_size, recipe.image_size) == ("test_resnet", 128, 48)
    assert recipe.probe == "none" and recipe.epochs == 1
    fewer = load_task(task).space(means_of(task, train_rows=200, backbones=("test_vit",)))
    assert largest(fewer, "test_vit").batch_size == 32


@pytest.mark.parametrize("task", TASKS)
def test_a_measured_fold_trains_whatever_the_task(task: str) -> None:
    loaded = load_task(task)
    space = loaded.space(means_of(task, image_sizes=(32,), train_rows=64))
    recipe = Recipe.from_dict(largest(space, "test_resnet").to_dict(), loaded.part)
    job = job_of(recipe, shape_of(task), loaded, "cpu")
    seen = []
    assert train_fold(job, lambda result: not seen.append(result)) is not None
    assert seen[0].batch == seen[0].micro_batch == recipe.batch_size
    assert seen[0].pred_TV.shape == (4, max(2 * recipe.batch_size, 64 // job.views))
    if loaded.task_type == "multiclass":
        assert (job.targets_TN.sum(axis=0) == 1).all()
    assert all(len(np.unique(target)) == 2 for target in job.targets_TN)


def test_every_backbone_is_measured_and_the_largest_one_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(recipes: Sequence[Recipe], shape: Shape) -> Footprint:
        peaks = {r.backbone: r.batch_size * r.image_size * 10**6 for r in recipes}
        assert list(peaks) == ["test_resnet", "resnet18"]
        return Footprint(peak_bytes={**peaks, "resnet18": 8 * 10**9}, total_bytes=40 * 10**9)

    monkeypatch.setattr(footprint, "measure", measured)
    means = means_of("gene_expr", backbones=("test_resnet", "resnet18"))
    resources = Resources(cpus=32, gpus=2, memory_bytes=10**12)
    loaded, shape = load_task("gene_expr"), shape_of("gene_expr")
    packing = packing_of(loaded, shape, means, resources, images=1000)
    assert packing.trials == 4 and "resnet18 was measured to take 8.0 GB" in packing.reason
    # A copy of this store for each takes 3 GB, and of 16 cores a trial may want 6.
    many = packing_of(loaded, shape, means, resources, images=3 * 10**9 // (40 * 40 * 3))
    assert many.trials == 3
    wide = packing_of(loaded, shape, means, resources, images=1000, cpus_per_trial=6)
    assert wide.trials == 2


@pytest.mark.gpu
def test_larger_batches_are_measured_to_take_more() -> None:
    space = load_task("gene_expr").space(means_of("gene_expr", image_sizes=(224,)))
    few = Recipe.from_dict(
        {**largest(space, "test_resnet").to_dict(), "batch_size": 4}, load_task("gene_expr").part
    )
    found = [
        measure([recipe], shape_of("gene_expr")) for recipe in (few, largest(space, "resnet18"))
    ]
    assert 0 < found[0].peak_bytes["test_resnet"] < found[1].peak_bytes["resnet18"]
    assert found[1].peak_bytes["resnet18"] < found[1].total_bytes


@pytest.mark.gpu
def test_what_cannot_be_trained_is_left_out_unless_it_is_all() -> None:
    space = load_task("gene_expr").space(means_of("gene_expr"))
    good, bad = largest(space, "test_resnet"), largest(space, "test_resnet")
    object.__setattr__(bad, "backbone", "no_such_network")
    assert list(measure([bad, good], shape_of("gene_expr")).peak_bytes) == ["test_resnet"]
    with pytest.raises(UserError, match="no_such_network"):
        measure([bad], shape_of("gene_expr"))
