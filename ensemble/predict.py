"""python -m ensemble.predict BUNDLE --data DIR: predict a folder of images with a bundle.

Shapes: T outputs, N rows, n rows of one chunk, m members, H W C height, width and channels.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import UserError, run_main
from spaces.recipe import TTA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ensemble.bundle import Bundle

BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Raises UserError before anything is computed."""
    args = parser().parse_args(argv)
    faults = []
    if args.data is None and not args.explain:
        faults.append("--data is missing; give the folder with the test CSV, or --explain")
    if args.tta is not None and args.tta not in TTA:
        faults.append(f"--tta is {args.tta}; known: {', '.join(map(str, TTA))}")
    if args.batch_size < 1:
        faults.append(f"--batch-size is {args.batch_size}; it must be 1 or more")
    if args.out.is_dir():
        faults.append(f"--out {args.out} is a folder; give the name of a CSV file")
    if faults:
        raise UserError(faults)

    # What an Apple GPU cannot compute then runs on the CPU; torch reads it when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    from ensemble.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    if args.explain:
        from ensemble.explain import explain

        print(explain(bundle))
        return 0
    rows, columns = predict_folder(
        bundle, _folder(args.data), args.out, tta=args.tta, batch_size=args.batch_size
    )
    print(f"wrote {args.out}: {rows} rows, {columns} columns")
    return 0


def _folder(data: str) -> Path:
    """The folder with the data; of data at a URL a copy in the user's cache."""
    from search.data.cache import default_cache
    from search.data.remote import is_url, mirror

    return mirror(data, default_cache()) if is_url(data) else Path(data)


def predict_folder(
    bundle: "Bundle", data: Path, out: Path, *, tta: int | None = None, batch_size: int = BATCH
) -> tuple[int, int]:
    """Predict the test rows of the folder `data` into the CSV `out`; its rows and columns.

    The order is that of the folder's sample submission, else that of the test CSV and of the
    bundle. Neither memory nor temporary files grow with the number of images. Raises UserError
    naming all images that cannot be read, before the first prediction.
    """
    from ensemble.submission import form_of, read_sample
    from search.data.columns import padded
    from search.data.decode import size_of
    from search.data.table import read_test

    layout = bundle.layout
    ids, files = read_test(layout, data)
    sample = data / layout.sample_submission
    columns, order = read_sample(sample) if sample.is_file() else (bundle.columns, ids)
    stated = layout.label_column or layout.targets
    if stated and set(columns[1:]) != set(bundle.target_names):
        columns = bundle.columns  # the sample gives the order of rows alone, as in training
    order = padded(order, layout.id_width)
    views = layout.view_count
    files_of = {name: files[views * i : views * (i + 1)] for i, name in enumerate(ids)}
    form = form_of(
        layout,
        bundle.task_type,
        target_names=bundle.target_names,
        test_ids=ids,
        ids=order,
        columns=columns,
        sizes=lambda: [size_of(data / files_of[name][0][0]) for name in ids],
    )
    ordered = [image for name in form.ids for image in files_of[name]]
    preds = predict_chunks(bundle, data, ordered, tta=tta, batch_size=batch_size)
    first = next(preds)  # before a file is begun
    form.write_pieces(out, chain([first], preds), bundle.blend.post.thresholds_T)
    return len(form.ids), len(form.head)


def predict_files(
    bundle: "Bundle",
    root: Path,
    files: "Sequence[tuple[str, ...]]",
    *,
    tta: int | None = None,
    batch_size: int = BATCH,
) -> "NDArray[np.float32]":
    """(T, N) predictions of N rows: of each member the mean over its folds, blended. `files` are
    those of each image, the views of a row one after the other.

    Raises UserError naming all unreadable images, before the first prediction.
    """
    import numpy as np

    rows = len(files) // bundle.layout.view_count
    pred_TN = np.empty((len(bundle.target_names), rows), dtype=np.float32)
    done = 0
    for pred_Tn in predict_chunks(bundle, root, files, tta=tta, batch_size=batch_size):
        pred_TN[:, done : done + pred_Tn.shape[1]] = pred_Tn
        done += pred_Tn.shape[1]
    return pred_TN


def predict_chunks(
    bundle: "Bundle",
    root: Path,
    files: "Sequence[tuple[str, ...]]",
    *,
    tta: int | None = None,
    batch_size: int = BATCH,
) -> "Iterator[NDArray[np.float32]]":
    """As `predict_files`, (T, n) predictions of consecutive rows.

    With several chunks, missing files and those that do not begin like an image are named at the
    start; an image whose later part is broken raises UserError when its chunk is decoded.
    """
    from ensemble.inference import Inference
    from search.model.infer import fastest_device

    return Inference(bundle, fastest_device(), tta, batch_size).chunks(root, files)


def predict_fold(
    bundle: "Bundle",
    name: str,
    fold: int,
    images_NHWC: "NDArray[np.uint8]",
    *,
    tta: int | None = None,
    batch_size: int = BATCH,
) -> "NDArray[np.float32]":
    """(T, N) predictions of one fold's model of a member. For the images of the fold's own rows
    (decoded to the member's decode size) these are the out-of-fold predictions, to 1e-4."""
    from ensemble.inference import Inference
    from search.model.infer import fastest_device

    member = bundle.member(name)
    if str(fold) not in member.folds:
        raise UserError(f"member {name} has no fold {fold}; it has: {', '.join(member.folds)}")
    inference = Inference(bundle, fastest_device(), tta, batch_size)
    return inference.fold(member, str(fold), images_NHWC)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ensemble.predict", description="Predict a folder of images with a bundle."
    )
    parser.add_argument("bundle", type=Path, help="folder that ensemble.build wrote")
    parser.add_argument(
        "--data", help="folder or URL with the test rows, as the task lays them out"
    )
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="CSV to write")
    parser.add_argument(
        "--tta", type=int, metavar="1|4|8", help="views per image (default: the recipe's)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=BATCH, help=f"default {BATCH}; less when memory runs out"
    )
    parser.add_argument("--explain", action="store_true", help="say what the bundle is, and end")
    return parser


if __name__ == "__main__":
    run_main(main)
