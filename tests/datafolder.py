"""Tiny data folders in the layouts of tasks, for tests of what reads them."""

import csv
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from spaces.layout import Layout

LAYOUT = Layout()


def make_folder(
    root: Path,
    *,
    rows: int = 48,
    tests: int = 6,
    genes: int = 5,
    size: int = 16,
    sample: bool = True,
    columns: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Path:
    """Write a folder without faults and return it: distinct PNG tiles, ids 0000, 0001, ...,
    targets g0, g1, ...; `columns` are further columns of train.csv."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for folder, count in (("train", rows), ("test", tests)):
        (root / folder).mkdir(exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:04d}.png")
    names = [f"g{j}" for j in range(genes)]
    extra = dict(columns or {})
    targets = rng.random((rows, genes)).round(4)
    train = [
        [f"{i:04d}", f"./train/{i:04d}.png", *(v[i] for v in extra.values()), *targets[i]]
        for i in range(rows)
    ]
    write_csv(root / "train.csv", ["ID", "path", *extra, *names], train)
    if tests:
        test_ids = [f"T{i:03d}" for i in range(tests)]
        paths = [[name, f"./test/{i:04d}.png"] for i, name in enumerate(test_ids)]
        write_csv(root / "test.csv", ["ID", "path"], paths)
        if sample:
            rows_out = [[name, *[0] * genes] for name in test_ids]
            write_csv(root / "sample_submission.csv", ["ID", *names], rows_out)
    return root


def write_images(root: Path, paths: Iterable[str], *, size: int = 16, grey: bool = False) -> None:
    """Write images of noise, each different, at the relative `paths`."""
    rng = np.random.default_rng(0)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size, size) if grey else (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / path)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def edit_csv(path: Path, row: int, column: str, value: str) -> None:
    """Replace one cell; `row` counts from 0 below the header."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    rows[row][header.index(column)] = value
    write_csv(path, header, rows)


def truncate(path: Path) -> None:
    """Cut the second half of a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def png(values: np.ndarray) -> bytes:
    """A PNG of unsigned 16 bit values (H, W, C), C = 1, 2, 3 or 4, which Pillow cannot write."""
    height, width, channels = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    return _png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], zlib.compress(lines))


def bomb(side: int = 9500) -> bytes:
    """A small PNG that claims side x side pixels."""
    return _png(side, side, 8, 2, zlib.compress(b""))


def _png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
