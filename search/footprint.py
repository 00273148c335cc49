"""Footprint: the GPU memory that trials take, measured in a process of its own, so that the one
that asks never holds a CUDA context.

Shapes: N rows, T outputs, H W C height, width and channels.
"""

import gc
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from search.plan import Resources
from search.policy.packing import Packing, pack
from spaces.errors import UserError
from spaces.means import Means
from spaces.recipe import Recipe
from spaces.space import Fixed, Space
from spaces.task import Task

if TYPE_CHECKING:
    from search.train.job import FoldJob

STEPS = 2  # of training: from the second on the optimiser's state is there


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a run's data decides how much memory a step takes."""

    task_name: str
    task_options: Mapping[str, Any]
    side: int  # pixels, of stored images
    channels: int
    views: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What was measured on the first GPU; others are taken to be like it."""

    peak_bytes: Mapping[str, int]  # by backbone, of one worker with its context, without a store
    total_bytes: int  # of the GPU


class _Largest(Fixed):
    """Answers with the defaults, and with the largest batch and image."""

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        answer = super().pick(name, options, default)
        return max(options) if name in ("batch_size", "image_size") else answer


def largest(space: Space, backbone: str) -> Recipe:
    """The recipe of a backbone that takes most memory, as far as batch and image size decide."""
    recipe = space.define(_Largest({"backbone": backbone, "probe": "none"}))
    return replace(recipe, weights="random", epochs=1)


def packing_of(
    task: Task,
    shape: Shape,
    means: Means,
    resources: Resources,
    *,
    images: int,
    cpus_per_trial: int = 1,
) -> Packing:
    """How many trials may share a GPU, whichever backbone they have, with a store of so many
    images; measures each. Raises UserError when nothing can be measured."""
    space = task.space(means)
    found = measure([largest(space, backbone) for backbone in means.backbones], shape)
    return pack(
        found.peak_bytes,
        images * shape.side**2 * shape.channels,
        found.total_bytes,
        cpus_per_gpu=resources.cpus // resources.gpus,
        cpus_per_trial=cpus_per_trial,
        memory_per_gpu=resources.memory_bytes // resources.gpus,
    )


def measure(recipes: Sequence[Recipe], shape: Shape) -> Footprint:
    """Train a few steps of each recipe, and predict a batch, on the first GPU.

    A recipe that cannot be trained has no entry. Raises UserError when none can.
    """
    plain = [recipe.to_dict() for recipe in recipes]
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            found, faults = pool.submit(_measure, plain, shape).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"--gpus-per-trial auto: the process that measures memory broke off ({error}); "
                "give a share, for example --gpus-per-trial 0.5"
            ) from error
    if not found.peak_bytes:
        raise UserError([f"--gpus-per-trial auto: {fault}" for fault in faults])
    return found


def _measure(recipes: Sequence[Mapping[str, Any]], shape: Shape) -> tuple[Footprint, list[str]]:
    import torch

    from search.model.memory import OutOfMemory
    from spaces.registry import load_task

    task = load_task(shape.task_name, shape.task_options)
    reserved: dict[str, int] = {}
    faults: list[str] = []
    for plain in recipes:
        gc.collect()  # what the one before left must not count with this one
        torch.cuda.empty_cache()
        recipe = Recipe.from_dict(plain, task.part)
        try:
            reserved[recipe.backbone] = _reserved(job_of(recipe, shape, task, "cuda"))
        except (UserError, OutOfMemory) as error:
            faults.append(f"{recipe.backbone}: {error}")
    # What the context takes beside the tensors: libraries, kernels. Another process on this GPU
    # counts with it: then fewer trials share the GPU.
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    peaks = {backbone: peak + context for backbone, peak in reserved.items()}
    return Footprint(peak_bytes=peaks, total_bytes=total), faults


def _reserved(job: "FoldJob") -> int:
    """Bytes that PyTorch takes of the GPU at most while the job is trained, without its images."""
    import torch

    from search.train.fold import FoldTraining

    images: Any = job.images_NHWC
    FoldTraining(job).epoch()
    return torch.cuda.max_memory_reserved() - int(images.nbytes)


def job_of(recipe: Recipe, shape: Shape, task: Task, device: str) -> "FoldJob":
    """A fold of a few steps on made-up images that lie on the device; as many rows are predicted
    as a batch of predictions has."""
    import numpy as np
    import torch

    from search.train.job import FoldJob

    rows = max(STEPS * recipe.batch_size, 64 // shape.views)
    size = (rows * shape.views, shape.side, shape.side, shape.channels)
    images_NHWC = torch.randint(256, size, dtype=torch.uint8, device=device)
    # Values that are also classes: one of several in each row, or labels that some rows have.
    place_TN = np.arange(rows) + np.arange(shape.outputs)[:, None]
    return FoldJob(
        recipe=recipe,
        images_NHWC=images_NHWC,
        targets_TN=(place_TN % max(shape.outputs, 2) == 0).astype(np.float32),
        train_rows=np.arange(STEPS * recipe.batch_size),
        valid_rows=np.arange(rows),
        task_type=task.task_type,
        views=shape.views,
        mirror_views=task.mirror.views if task.mirror else None,
        mirror_targets=tuple(range(shape.outputs)) if task.mirror else None,
        device=device,
    )
