"""python -m ensemble.predict BUNDLE --data DIR: predict a folder of images with a bundle.

Shapes: T outputs, N images, H W C height, width and channels, B images of one piece.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import UserError, run_main
from spaces.recipe import TTA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ensemble.bundle import Bundle

BATCH = 64
_PIECE = 16  # batches between two lines of progress


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Raises UserError before anything is computed."""
    args = parser().parse_args(argv)
    faults = []
    if args.tta is not None and args.tta not in TTA:
        faults.append(f"--tta is {args.tta}; known: {', '.join(map(str, TTA))}")
    if args.batch_size < 1:
        faults.append(f"--batch-size is {args.batch_size}; it must be 1 or more")
    if args.out.is_dir():
        faults.append(f"--out {args.out} is a folder; give the name of a CSV file")
    if faults:
        raise UserError(faults)

    from ensemble.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    rows, columns = predict_folder(
        bundle, args.data, args.out, tta=args.tta, batch_size=args.batch_size
    )
    print(f"wrote {args.out}: {rows} rows, {columns} columns")
    return 0


def predict_folder(
    bundle: "Bundle", data: Path, out: Path, *, tta: int | None = None, batch_size: int = BATCH
) -> tuple[int, int]:
    """Predict the test rows of the folder `data` into the CSV `out`; its rows and columns.

    The order is that of the folder's sample submission, else that of the test CSV and of the
    bundle. Raises UserError naming all images that cannot be read, before the first prediction.
    """
    from ensemble.submission import SubmissionForm, read_sample
    from search.data.table import read_test

    ids, paths = read_test(bundle.layout, data)
    sample = data / bundle.layout.sample_submission
    columns, order = read_sample(sample) if sample.is_file() else (bundle.columns, ids)
    form = SubmissionForm(
        target_names=bundle.target_names, test_ids=ids, ids=order, columns=columns
    )
    pred_TN = predict_files(bundle, data, paths, tta=tta, batch_size=batch_size)
    form.write(out, pred_TN)
    return len(form.ids), len(form.columns)


def predict_files(
    bundle: "Bundle",
    root: Path,
    paths: Sequence[str],
    *,
    tta: int | None = None,
    batch_size: int = BATCH,
) -> "NDArray[np.float32]":
    """(T, N) predictions of image files: over each member's folds the mean, over members the
    weighted sum. Decoded images lie in a temporary file, so memory does not grow with N.

    Raises UserError naming all unreadable images, before the first prediction.
    """
    import numpy as np

    from search.model.infer import FoldModel

    device = _device()
    sum_NT = np.zeros((len(paths), len(bundle.target_names)))
    sizes = sorted({member.decode_size for member in bundle.members})
    with tempfile.TemporaryDirectory(prefix="rungfold-") as folder:
        images_of = _decode(root, paths, sizes, Path(folder))
        models = sum(len(member.models) for member in bundle.members)
        print(f"{len(paths)} images, {models} models, on {device}", file=sys.stderr)
        meter = Meter("predicted", models * len(paths), "images x models")
        for member in bundle.members:
            images_NHWC = images_of[member.decode_size]
            for name in member.models.values():
                model = FoldModel.load(bundle.root / name, device)
                share = member.weight / len(member.models)
                for start in range(0, len(paths), batch_size * _PIECE):
                    piece = slice(start, start + batch_size * _PIECE)
                    pred_BT = model.predict(images_NHWC[piece], tta, batch_size)
                    sum_NT[piece] += share * pred_BT
                    meter.add(len(pred_BT))
    return np.ascontiguousarray(sum_NT.T, dtype=np.float32)


def predict_fold(
    bundle: "Bundle",
    trial: int,
    fold: int,
    images_NHWC: "NDArray[np.uint8]",
    *,
    tta: int | None = None,
    batch_size: int = BATCH,
) -> "NDArray[np.float32]":
    """(T, N) predictions of one fold's model. For the images of the fold's own rows (decoded to
    the member's decode size) these are the out-of-fold predictions, to 1e-4."""
    import numpy as np

    from search.model.infer import FoldModel

    member = bundle.member(trial)
    if str(fold) not in member.models:
        raise UserError(f"trial {trial} has no fold {fold}; it has: {', '.join(member.models)}")
    model = FoldModel.load(bundle.root / member.models[str(fold)], _device())
    return np.ascontiguousarray(model.predict(images_NHWC, tta, batch_size).T)


class Meter:
    """A line of progress with the time left: on a terminal in place, else now and then."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._started = 0, time.monotonic()
        self._place = sys.stderr.isatty()
        self._next = self._started + (0.2 if self._place else 10)

    def add(self, count: int) -> None:
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        last = self._done >= self._total
        if now < self._next and not last:
            return
        self._next = now + (0.2 if self._place else 10)
        left = (now - self._started) * (self._total - self._done) / max(self._done, 1)
        end = "\n" if last or not self._place else "\r"
        print(
            f"{self._what} {self._done}/{self._total} {self._unit}, "
            f"{100 * self._done / max(self._total, 1):.0f} %, {left:.0f} s left   ",
            end=end,
            file=sys.stderr,
            flush=True,
        )


def _decode(
    root: Path, paths: Sequence[str], sizes: Sequence[int], folder: Path
) -> "dict[int, NDArray[np.uint8]]":
    """For each size a memory-mapped uint8 array (N, size, size, 3) of all images."""
    from search.data.cache import open_store

    meter = Meter("decoded", len(paths) * len(sizes), "images")
    images_of: dict[int, NDArray[np.uint8]] = {}
    for number, size in enumerate(sizes):
        before = number * len(paths)

        def progress(done: int, total: int, before: int = before) -> None:
            meter.reach(before + done)

        images_of[size] = open_store(root, paths, size, folder, progress).images_NHWC
    return images_of


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensemble.predict", description="Predict a folder of images with a bundle."
    )
    parser.add_argument("bundle", type=Path, help="folder that ensemble.build wrote")
    parser.add_argument("--data", type=Path, required=True, help="folder with the test CSV")
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="CSV to write")
    parser.add_argument(
        "--tta", type=int, metavar="1|4|8", help="views per image (default: the recipe's)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH, help=f"default {BATCH}")
    return parser


if __name__ == "__main__":
    run_main(main)
