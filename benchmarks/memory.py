"""Memory of a short search on made images: the peak that data.json tells, and what workers take
that map the image store as ours do, against DataLoader workers that each hold a copy of it.

    python benchmarks/memory.py [--quick]

PSS counts every page once, RSS counts shared pages for each process. Asked: the store is in memory
once, however many workers there are.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from search.data.cache import load_store
from search.memory_watch import peak_line
from search.run_folder import RunFolder, read_json

MB = 2**20
READ = """
import sys, torch
from pathlib import Path
from search.data.cache import load_store
for image_HWC in load_store(Path(sys.argv[1])).images_NHWC:
    image_HWC.sum()
print("ready", flush=True)
sys.stdin.read()
"""


def write_data(root: Path, count: int, size: int) -> None:
    """Soft colour blobs as JPEG, with the column `red`."""
    rng = np.random.default_rng(0)
    (root / "train").mkdir(parents=True)
    with open(root / "train.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ID", "path", "red"])
        for i in range(count):
            coarse = rng.integers(40, 220, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
            image.save(root / "train" / f"{i:05}.jpg")
            table.writerow([f"r{i:05}", f"train/{i:05}.jpg", coarse[..., 0].mean() / 255])


def search(root: Path, out: Path, size: int) -> Path:
    """Run two trials with two workers; the store's folder."""
    command = [
        sys.executable, "-m", "search.run", "csv", "--targets", "red", "--image-columns", "path",
        "--id-column", "ID", "--task-type", "regression", "--data", root, "--out", out,
        "--cache", out.parent / "cache", "--trials", 2, "--epochs", 1, "--folds", 2,
        "--groups", "none", "--image-size", size, "--backbone", "test_resnet",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return Path(read_json(out / "run.json")["store"])


class Images(Dataset[NDArray[np.uint8]]):
    """The peer's data set: the images as an array, which is copied to every spawned worker."""

    def __init__(self, images_NHWC: NDArray[np.uint8]) -> None:
        self.images_NHWC = images_NHWC

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.images_NHWC[row]


@contextmanager
def mapping(store: Path, count: int) -> Iterator[list[psutil.Process]]:
    """Processes that have read the whole mapped store."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READ, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    yield [psutil.Process(process.pid) for process in processes]
    for process in processes:
        process.communicate()


@contextmanager
def copying(store: Path, count: int) -> Iterator[list[psutil.Process]]:
    """Workers of a DataLoader that have given all images once."""
    before = set(psutil.Process().children())
    loader = DataLoader(
        Images(np.array(load_store(store).images_NHWC)), batch_size=16, num_workers=count,
        persistent_workers=True, multiprocessing_context="spawn",
    )  # fmt: skip
    batches = iter(loader)
    for _ in batches:
        pass
    found = set(psutil.Process().children()) - before
    yield [process for process in found if "resource_tracker" not in " ".join(process.cmdline())]
    del batches, loader


def sums(processes: list[psutil.Process]) -> tuple[float, float]:
    """PSS and RSS of all, in MB."""
    full = [process.memory_full_info() for process in processes]
    return sum(info.pss for info in full) / MB, sum(info.rss for info in full) / MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small store, fewer workers")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("PSS is told by Linux alone")
    count, size, workers = (160, 128, (1, 2)) if args.quick else (1000, 256, (1, 2, 4))
    with tempfile.TemporaryDirectory() as folder:
        root, run = Path(folder, "data"), RunFolder(Path(folder, "run"))
        write_data(root, count, size)
        store = search(root, run.root, size)
        megabytes = os.path.getsize(store / "images.npy") / MB
        print(f"a search with 2 workers on a store of {megabytes:.0f} MB ({count} images)")
        print(peak_line(read_json(run.data)))

        print("\nworkers   ours: PSS     RSS   DataLoader: PSS     RSS   copies   PSS ours/theirs")
        first: dict[str, float] = {}
        for number in workers:
            with mapping(store, number) as processes:
                ours, ours_rss = sums(processes)
            with copying(store, number) as processes:
                theirs, theirs_rss = sums(processes)
            first.setdefault("ours", ours)
            print(
                f"{number:7}{ours:12.0f}{ours_rss:8.0f}{theirs:18.0f}{theirs_rss:8.0f}"
                f"{number:9}{ours / theirs:18.2f}"
            )
        more = (ours - first["ours"]) / (workers[-1] - workers[0])
        print(
            f"\nMB; each further worker of ours adds {more:.0f} MB, the store has {megabytes:.0f} "
            "(asked: one store for all)"
        )


if __name__ == "__main__":
    main()
