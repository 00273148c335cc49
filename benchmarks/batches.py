"""Images per second of our batches and of DataLoader + PIL + torchvision, feeding one model.

    python benchmarks/batches.py [--data DIR] [--sizes 64 224] [--cores 1]

All are measured in one process on the same image files, in turns, and medians are given, so that
other work on the machine touches all alike. Without --data, PNG tiles are made.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from search.data.batches import Batches
from search.data.cache import open_store
from spaces.recipe import Augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = Augment(brightness=0.2, contrast=0.2, saturation=0.2)
AFFINE = replace(PLAIN, rotate=20.0, scale=0.1, shift=0.1)
AUGMENTS = {"": PLAIN, " + affine": AFFINE}
OUTPUTS = 250
LIMITS = {"": 0.12, " + affine": 0.20}  # shares of the model's step


def write_tiles(folder: Path, count: int, size: int) -> None:
    """PNG tiles with a texture, so that they take as long to decode as stained tissue does."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(90, 255, (size // 8, size // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:05}.png")


class Files(Dataset[tuple[Tensor, Tensor]]):
    """The peer: each sample is decoded by PIL and transformed by torchvision when it is asked."""

    def __init__(self, root: Path, paths: list[str], targets_NT: Tensor, size: int, affine: bool):
        self.root, self.paths, self.targets_NT = root, paths, targets_NT
        turns = [v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]
        steps: list[nn.Module] = [
            v2.Resize((size, size)),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomChoice(turns),
        ]
        if affine:
            shift, scale = (AFFINE.shift, AFFINE.shift), (1 - AFFINE.scale, 1 + AFFINE.scale)
            bilinear = v2.InterpolationMode.BILINEAR
            steps.append(v2.RandomAffine(AFFINE.rotate, shift, scale, interpolation=bilinear))
        steps += [
            v2.ColorJitter(PLAIN.brightness, PLAIN.contrast, PLAIN.saturation),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.root / self.paths[row]) as image:
            return self.transform(image.convert("RGB")), self.targets_NT[row]


@dataclass
class Clock:
    """Seconds per batch of one way of working, one entry per turn."""

    turn: Callable[[], int]  # works through some batches and returns how many
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = time.perf_counter()
        batches = self.turn()
        self.seconds.append((time.perf_counter() - start) / batches)


def measure(root: Path, paths: list[str], size: int, args: argparse.Namespace) -> None:
    """Print the table for images of `size` pixels."""
    batch = args.batch_size
    cache = Path(args.cache) / str(size)
    images_NHWC = open_store(root, [(p,) for p in paths], size, cache, None, 1).images_NHWC
    targets_NT = torch.randn(len(paths), OUTPUTS)
    ours = Batches(images_NHWC, targets_NT, np.arange(len(paths)), size, MEAN, STD, "cpu")
    model = timm.create_model(args.model, num_classes=OUTPUTS)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)

    def step(images_BCHW: Tensor, targets_BT: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(model(images_BCHW), targets_BT).backward()
        optimizer.step()

    held = next(ours.epoch(batch, PLAIN, generator))

    def alone() -> int:
        for _ in range(len(paths) // batch):
            step(*held)
        return len(paths) // batch

    def through(batches: Callable[[], Iterator], use: Callable | None) -> Callable[[], int]:
        def turn() -> int:
            done = 0
            for images_BCHW, targets_BT in batches():
                if use is not None:
                    use(images_BCHW.contiguous(memory_format=torch.channels_last), targets_BT)
                done += 1
            return done

        return turn

    clocks = {"model alone": Clock(alone)}
    for kind, augment in AUGMENTS.items():

        def epoch(augment: Augment = augment) -> Iterator:
            return ours.epoch(batch, augment, generator, drop_last=True)

        clocks[f"our batches alone{kind}"] = Clock(through(epoch, None))
        clocks[f"our batches, model{kind}"] = Clock(through(epoch, step))
        for workers in args.workers:
            loader = DataLoader(
                Files(root, paths, targets_NT, size, affine=bool(kind)),
                batch_size=batch, shuffle=True, drop_last=True,
                num_workers=workers, persistent_workers=workers > 0,
            )  # fmt: skip
            name = f"DataLoader {workers} workers, model{kind}"
            clocks[name] = Clock(through(loader.__iter__, step))
    for turn in range(args.turns + 1):
        for clock in clocks.values():
            clock.run()
            if turn == 0:  # workers start, memory is touched, kernels are chosen
                clock.seconds.clear()

    seconds = {name: median(clock.seconds) for name, clock in clocks.items()}
    print(f"\n{size} px, {args.model}, batch {batch}, {len(paths)} files, {args.cores} core(s)")
    print(f"{'':38}{'images/s':>10}{'ms/batch':>10}")
    for name, value in seconds.items():
        print(f"{name:38}{batch / value:10.0f}{1000 * value:10.2f}")
    for kind, limit in LIMITS.items():
        share = seconds[f"our batches alone{kind}"] / seconds["model alone"]
        peers = {w: seconds[f"DataLoader {w} workers, model{kind}"] for w in args.workers}
        best = min(peers, key=peers.__getitem__)
        gain = peers[best] / seconds[f"our batches, model{kind}"]
        label = f"flips, turns, colours{kind}"
        print(
            f"{label}: preparing takes {share:.1%} of the model's step (limit {limit:.0%} for "
            f"test_efficientnet at 64 px on one core); with the model {gain:.2f} times as fast as "
            f"the best DataLoader ({best} workers)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder of images; default: tiles are made")
    parser.add_argument("--images", type=int, default=512, help="how many images are used")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64], help="pixels")
    parser.add_argument("--model", default="test_efficientnet", help="timm's name")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cores", type=int, default=1, help="CPUs for everything, workers too")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--turns", type=int, default=5, help="turns that the medians are over")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
    torch.set_num_threads(args.cores)
    warnings.filterwarnings("ignore", message=".*worker processes in total.*")
    with tempfile.TemporaryDirectory() as temporary:
        args.cache = temporary
        for size in args.sizes:
            root = args.data
            if root is None:
                root = Path(temporary, f"tiles{size}")
                root.mkdir()
                write_tiles(root, args.images, size)
            found = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
            paths = [str(p.relative_to(root)) for p in found[: args.images]]
            if len(paths) < args.batch_size:
                parser.error(f"{root} holds {len(paths)} images; a batch needs {args.batch_size}")
            measure(root, paths, size, args)


if __name__ == "__main__":
    main()
