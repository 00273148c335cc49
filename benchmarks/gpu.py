"""Training on a GPU: our loop beside bare steps and a DataLoader, and trials that share the GPU.

    python benchmarks/gpu.py [--quick] [--device cpu]

First, images per second at 224 px of four backbones: our loop (images in device memory, augmented
there, bfloat16, channels_last, fused optimiser), as it is, compiled, and with cuDNN choosing its
convolutions by trial; the same network, precision and optimiser on one batch that lies in device
memory; and a DataLoader (PIL and torchvision) with the best of some numbers of workers. Then whole
short trials an hour when 1, 2 and 4 processes share the GPU, and what one of them takes of it.
`--quick --device cpu` runs the same code on tiny networks. Without a GPU it says so and ends.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from image_files import Files, write_tiles
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from search.model.infer import autocast
from search.train.fold import FoldTraining
from search.train.job import FoldJob
from spaces.parts import Regression
from spaces.recipe import Augment, Recipe

BACKBONES = ("resnet50", "efficientnet_b0", "convnext_tiny", "vit_small_patch16_224")
TINY = ("test_resnet", "test_efficientnet")
ASKED = 0.95  # of the bare steps' images per second
OUTPUTS = 250
AUGMENT = Augment(brightness=0.2, contrast=0.2, saturation=0.2, rotate=10.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOADED = 1024  # images in an epoch of the DataLoader, of files on disk


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    backbones: tuple[str, ...]
    image_size: int  # pixels
    batch_size: int
    batches: int  # of an epoch
    turns: int  # that medians are over
    workers: tuple[int, ...]  # of the DataLoader
    trial: str  # backbone of the trials that share the GPU
    rows: int  # of such a trial
    epochs: int
    trials: int  # of each process, one after the other
    processes: tuple[int, ...]


def scale_of(quick: bool) -> Scale:
    if quick:
        return Scale(
            backbones=TINY, image_size=64, batch_size=8, batches=3, turns=2, workers=(0,),
            trial="test_resnet", rows=32, epochs=1,
            trials=2, processes=(1, 2),
        )  # fmt: skip
    cpus = len(os.sched_getaffinity(0))
    return Scale(
        backbones=BACKBONES, image_size=224, batch_size=128, batches=40, turns=5,
        workers=tuple(sorted({1, cpus // 2, cpus} - {0})), trial="resnet18", rows=2000, epochs=3,
        trials=4, processes=(1, 2, 4),
    )  # fmt: skip


# --- images per second


def job_of(backbone: str, size: int, batch: int, rows: int, device: str, **changes: Any) -> FoldJob:
    """A fold of `rows` made-up rows in device memory, of which a few are predicted."""
    generator = torch.Generator().manual_seed(0)
    images_NHWC = torch.randint(256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)
    targets_TN = np.random.default_rng(0).normal(size=(OUTPUTS, rows)).astype(np.float32)
    recipe = Recipe(
        backbone=backbone, image_size=size, batch_size=batch, epochs=1000, lr=1e-4,
        augment=AUGMENT, task=Regression(),
    )  # fmt: skip
    job = FoldJob(
        recipe=recipe, images_NHWC=images_NHWC.to(device), targets_TN=targets_TN,
        train_rows=np.arange(rows), valid_rows=np.arange(0), device=device,
        evaluate_at=frozenset(),
    )  # fmt: skip
    return replace(job, **changes)


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def loop_rate(training: FoldTraining) -> float:
    """Images per second of an epoch of our loop, which ends by reading the loss."""
    return training.epoch().images_per_second


class Bare:
    """The steps of our loop and nothing else, on one batch that is there from the start."""

    def __init__(self, training: FoldTraining, batches: int) -> None:
        self.state, self.loss_of, self.batches = training.state, training.loss_of, batches
        recipe, self.device = training.job.recipe, training.job.device
        given = training.train.epoch(recipe.batch_size, recipe.augment, torch.Generator())
        self.images_BCHW, self.targets_BT = next(given)

    def step(self, images_BCHW: Tensor, targets_BT: Tensor) -> None:
        with autocast(self.device, self.state.bf16):
            pred_BT = self.state.network(images_BCHW)
        self.loss_of(pred_BT, targets_BT).backward()
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.average.update(self.state.step)

    def rate(self) -> float:
        self.state.network.train()
        settle(self.device)
        started = time.perf_counter()
        for _ in range(self.batches):
            self.step(self.images_BCHW, self.targets_BT)
        settle(self.device)
        return self.batches * len(self.images_BCHW) / (time.perf_counter() - started)


def loader_rate(bare: Bare, loader: DataLoader[Any]) -> float:
    """Images per second of an epoch through a DataLoader, by the same steps."""
    bare.state.network.train()
    settle(bare.device)
    images, started = 0, time.perf_counter()
    for images_BCHW, targets_BT in loader:
        held = images_BCHW.to(bare.device, non_blocking=True, memory_format=torch.channels_last)
        bare.step(held, targets_BT.to(bare.device, non_blocking=True))
        images += len(held)
    settle(bare.device)
    return images / (time.perf_counter() - started)


@contextlib.contextmanager
def cudnn_benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure(backbone: str, scale: Scale, folder: Path, device: str) -> None:
    """Print a backbone's lines. All arms take turns, so that a change of clocks meets all."""
    rows = scale.batches * scale.batch_size
    job = job_of(backbone, scale.image_size, scale.batch_size, rows, device)
    ours, tried = FoldTraining(job), FoldTraining(job)
    bare = Bare(FoldTraining(job), scale.batches)

    def by_trial() -> float:
        with cudnn_benchmark():
            return loop_rate(tried)

    arms: dict[str, Callable[[], float]] = {
        "bare steps": bare.rate,
        "our loop": functools.partial(loop_rate, ours),
        "our loop, cuDNN by trial": by_trial,
    }
    if device == "cuda":  # a CPU takes about a minute to compile
        compiled = FoldTraining(replace(job, compile=True))
        arms["our loop, --compile"] = functools.partial(loop_rate, compiled)
    paths = sorted(folder.iterdir())
    data = Files(paths, torch.randn(len(paths), OUTPUTS), AUGMENT, MEAN, STD)
    loaders = {}
    for workers in scale.workers:
        name = f"DataLoader, {workers} workers"
        loaders[name] = DataLoader(
            data, batch_size=scale.batch_size, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=device == "cuda",
        )  # fmt: skip
        arms[name] = functools.partial(loader_rate, bare, loaders[name])
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(scale.turns + 1):
        for name, arm in arms.items():
            rate = arm()
            if turn:  # the first time kernels are chosen or compiled, and workers start
                rates[name].append(rate)
    middle = {name: median(values) for name, values in rates.items()}
    print(f"\n{backbone}, {scale.image_size} px, batches of {scale.batch_size}")
    best = max(loaders, key=lambda name: middle[name])
    for name, rate in middle.items():
        if name in loaders and name != best:
            continue
        words = f"{name:28}{rate:10,.0f} images/s{rate / middle['bare steps']:8.1%} of bare steps"
        print(words + (f" (asked: {ASKED:.0%})" if name == "our loop" else ""))
    print(f"our loop is {middle['our loop'] / middle[best]:.1f} times as fast as the DataLoader")


# --- trials that share a GPU


def run_trials(scale: Scale, device: str, start: Any, count: int) -> tuple[float, float]:
    """Train so many short trials one after the other once all processes are there; when the first
    began and the last ended, in seconds of the machine's clock."""
    torch.set_num_threads(1)
    job = job_of(scale.trial, scale.image_size, 32, scale.rows, device)
    job = replace(
        job, recipe=replace(job.recipe, epochs=scale.epochs), valid_rows=np.arange(32),
        evaluate_at=None,
    )  # fmt: skip
    warm = FoldTraining(job)
    warm.epoch()
    start.wait()
    began = time.monotonic()
    for seed in range(count):
        training = FoldTraining(replace(job, seed=seed))
        while not training.done:
            training.epoch()
        training.finish()
    return began, time.monotonic()


def share(scale: Scale, device: str) -> None:
    """Print trials per hour for each number of processes, and what one of them takes."""
    spawn, trials = multiprocessing.get_context("spawn"), scale.trials
    print(f"\nshort trials of {scale.trial} at {scale.image_size} px, {scale.rows} rows, "
          f"{scale.epochs} epochs, processes sharing the device")  # fmt: skip
    alone = None
    for processes in scale.processes:
        with spawn.Manager() as manager, ProcessPoolExecutor(processes, spawn) as pool:
            start = manager.Barrier(processes)
            jobs = [pool.submit(run_trials, scale, device, start, trials) for _ in range(processes)]
            spans: NDArray[np.float64] = np.array([job.result() for job in jobs])
        hours = (spans[:, 1].max() - spans[:, 0].min()) / 3600
        rate = processes * trials / hours
        alone = alone or rate
        print(f"{processes} processes{rate:12,.0f} trials/hour{rate / alone:8.2f} times 1 process")
    if device == "cuda":
        tell_packing(scale)


def tell_packing(scale: Scale) -> None:
    """What --gpus-per-trial auto would decide for such trials here."""
    from search.cluster import local_resources
    from search.footprint import Shape, measure
    from search.policy.packing import pack

    shape = Shape(
        task_name="gene_expr", task_options={}, side=scale.image_size, channels=3, views=1,
        outputs=OUTPUTS,
    )  # fmt: skip
    job = job_of(scale.trial, scale.image_size, 128, 1, "cpu")
    found = measure([replace(job.recipe, epochs=1)], shape)
    resources = local_resources()
    packing = pack(
        found.peak_bytes, scale.rows * scale.image_size**2 * 3, found.total_bytes,
        cpus_per_gpu=resources.cpus // resources.gpus,
        memory_per_gpu=resources.memory_bytes // resources.gpus,
    )  # fmt: skip
    print(f"--gpus-per-trial auto: {packing.reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="tiny networks, few steps")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU was found: nothing is measured (--quick --device cpu tries the script)")
        return
    scale = scale_of(args.quick)
    if args.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        count = LOADED if not args.quick else 2 * scale.batch_size
        write_tiles(Path(temporary), count, scale.image_size, ".jpg")
        for backbone in scale.backbones:
            measure(backbone, scale, Path(temporary), args.device)
    share(scale, args.device)


if __name__ == "__main__":
    main()
