"""Images per second of the training loop on a stored, augmented image set, beside the same loop on
tensors that lie ready in memory, and on a DataLoader with PIL and torchvision; on one CPU core.

    python benchmarks/feeding.py [--quick]

All ways train the same network with the same optimiser, loss and precision, in turns in one
process; figures are medians over the turns, ratios medians of the ratios within a turn, so that
other work on the machine touches all alike. Augmentation: flips, quarter turns, rotation by up to
15 degrees, brightness, contrast and saturation, each drawn per image.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import torch
from image_files import Files, write_tiles
from torch import Tensor
from torch.utils.data import DataLoader

from search.data.batches import Batches
from search.data.cache import open_store
from search.model.infer import autocast
from search.train.allocator import keep_freed_memory
from search.train.fold import FoldTraining
from search.train.job import FoldJob
from search.train.loop import train_epoch
from spaces.recipe import Augment, Recipe

AUGMENT = Augment(rotate=15.0, brightness=0.2, contrast=0.2, saturation=0.2)
PLAIN = Augment(flip=False, rot90=False)
OUTPUTS = 250
ASKED = {"resnet18": 0.97, "test_efficientnet": 0.90}  # share of the speed on ready tensors
OURS, READY, BARE = "the loop on stored images", "the loop on ready tensors", "a bare loop on them"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one table is about."""

    model: str  # timm's name
    size: int  # pixels
    batch: int  # images of a step
    steps: int  # of a turn


CASES = (
    Case(model="test_efficientnet", size=64, batch=64, steps=8),
    Case(model="test_efficientnet", size=224, batch=32, steps=3),
    Case(model="resnet18", size=64, batch=32, steps=5),
    Case(model="resnet18", size=224, batch=16, steps=2),
)


class Given:
    """Batches from elsewhere, in the place of `search.data.batches.Batches` in the loop."""

    def __init__(self, rows: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.rows, self.batches = rows, batches
        self.device = torch.device("cpu")

    def epoch(self, *_: object, **__: object) -> Iterator[tuple[Tensor, Tensor]]:
        for images_BCHW, targets_BT in self.batches:
            yield images_BCHW.contiguous(memory_format=torch.channels_last), targets_BT


@dataclass
class Clock:
    """Seconds of each turn of one way of working."""

    turn: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = time.perf_counter()
        self.turn()
        self.seconds.append(time.perf_counter() - start)


def measure(case: Case, folder: Path, turns: int, peer_turns: int, workers: list[int]) -> None:
    """Print the table of one case."""
    count = case.batch * case.steps
    root = folder / f"tiles{case.size}"
    root.mkdir(exist_ok=True)
    paths = write_tiles(root, count, case.size, ".png")
    store = open_store(root, [(p,) for p in paths], case.size, folder / "store", None, 1)
    recipe = Recipe(
        backbone=case.model, image_size=case.size, batch_size=case.batch, epochs=10000,
        augment=AUGMENT,
    )  # fmt: skip
    training = FoldTraining(
        FoldJob(
            recipe=recipe, images_NHWC=store.images_NHWC, train_rows=np.arange(count),
            targets_TN=np.random.default_rng(0).normal(size=(OUTPUTS, count)).astype(np.float32),
            valid_rows=np.arange(0),
        )
    )  # fmt: skip
    state, batches, loss_of = training.state, training.train, training.loss_of
    ready = list(batches.epoch(case.batch, PLAIN, torch.Generator().manual_seed(0)))

    def loop(source: object) -> Callable[[], object]:
        fed = cast(Batches, source)
        return lambda: train_epoch(state, fed, recipe, 0, loss_of, case.batch)

    def bare() -> None:
        for images_BCHW, targets_BT in ready:
            with autocast("cpu", state.bf16):
                pred_BT = state.network(images_BCHW)
            loss_of(pred_BT, targets_BT).backward()
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)

    def prepare() -> None:
        for _ in batches.epoch(case.batch, AUGMENT, torch.Generator().manual_seed(0)):
            pass

    alone = Clock(prepare)
    clocks = {
        READY: Clock(loop(Given(batches.rows, ready))),
        OURS: Clock(loop(batches)),
        BARE: Clock(bare),
    }
    peers = {}
    files = Files(
        [root / path for path in paths], batches.targets_NT, AUGMENT, batches.mean, batches.std
    )
    for number in workers:
        loader = DataLoader(
            files, case.batch, shuffle=True, num_workers=number, persistent_workers=number > 0
        )
        peers[f"the loop on a DataLoader, {number} workers"] = Clock(
            loop(Given(batches.rows, loader))
        )
    for turn in range(turns + 1):
        for clock in (alone, *clocks.values(), *(peers.values() if turn <= peer_turns else ())):
            clock.run()
            if turn == 0:  # workers start, memory is touched, kernels are chosen
                clock.seconds.clear()

    precision = "bfloat16" if state.bf16 else "float32"
    print(f"\n{case.model}, {case.size} px, {precision}, {case.steps} steps of {case.batch} a turn")
    print(f"{'':42}{'images/s':>10}{'ms/step':>10}")
    for name, clock in {"preparing alone": alone, **clocks, **peers}.items():
        seconds = median(clock.seconds)
        print(f"{name:42}{count / seconds:10.0f}{1000 * seconds / case.steps:10.2f}", flush=True)
    best = min(peers, key=lambda name: median(peers[name].seconds))
    ours, asked = clocks[OURS], ASKED[case.model]
    print(f"speed on stored images / on ready tensors: {ratio(clocks[READY], ours):.1%}", end=" ")
    print(f"(asked: {asked:.0%}); / bare loop: {ratio(clocks[BARE], ours):.1%}")
    print(f"speed on stored images / on the best DataLoader: {ratio(peers[best], ours):.2f}")


def ratio(theirs: Clock, ours: Clock) -> float:
    """How many times as fast ours is, the median over the turns that both have."""
    return median(a / b for a, b in zip(theirs.seconds, ours.seconds, strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few and small batches: all paths, no figures worth keeping",
    )
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # DataLoader's workers share the core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    keep_freed_memory()  # as in a worker
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    print("one core for everything, one thread; every process of a DataLoader shares that core")
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            if args.quick:
                small = Case(model=case.model, size=case.size, batch=4, steps=2)
                measure(small, Path(temporary), 1, 1, [0, 1])
            else:
                measure(case, Path(temporary), 9, 3, [0, 1, 2])


if __name__ == "__main__":
    main()
