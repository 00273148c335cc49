"""The images that a run was trained on, decoded.

Shapes: N train rows, S test rows, H W C height, width and channels.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.data.cache import load_store
from search.data.folds import read_folds
from search.run_folder import RunFolder, read_json
from spaces.errors import UserError

Images = NDArray[np.uint8]


def store_folder(run: RunFolder) -> Path:
    """Where the run's image store lies; the name of the folder is the key of its content."""
    store = read_json(run.run).get("store")
    if not store:
        raise UserError(
            f"{run.run} names no image store, so its models cannot be used on its images; build "
            "without --add"
        )
    return Path(str(store))


def run_images(run: RunFolder) -> tuple[Images, Images | None]:
    """Memory-mapped images (N, H, W, C) of the train rows, in the order of folds.parquet, and
    (S, H, W, C) of the test rows, None when there are none.

    Raises UserError when the image store is gone or is not this run's.
    """
    folder = store_folder(run)
    try:
        images_NHWC = load_store(folder).images_NHWC
    except UserError:
        raise UserError(_lost(run, folder)) from None
    rows = len(read_folds(run.folds).ids)
    if len(images_NHWC) < rows:
        raise UserError(
            f"{folder} holds {len(images_NHWC)} images and {run.root} has {rows} rows; delete "
            f"that folder, then resume the run: python -m search.run --resume {run.root}"
        )
    return images_NHWC[:rows], images_NHWC[rows:] if len(images_NHWC) > rows else None


def _lost(run: RunFolder, folder: Path) -> str:
    data = read_json(run.run).get("data")
    restore = f"restore {data}, then " if data and not Path(str(data)).is_dir() else ""
    return (
        f"{folder}, the decoded images of {run.root}, is gone; {restore}resume the run, which "
        f"decodes them again: python -m search.run --resume {run.root}"
    )
