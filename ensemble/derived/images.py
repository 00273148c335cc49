"""The images that a run was trained on, decoded.

Shapes: N images of the train rows, S of the test rows, the views of a row one after the other,
H W C height, width and channels.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search.data.cache import load_store
from search.data.folds import read_folds
from search.run_folder import RunFolder, read_json
from spaces.errors import UserError
from spaces.layout import Layout

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
    (S, H, W, C) of the test rows, None when there are none. Each row has as many as its layout has
    views.

    Raises UserError when the image store is gone or is not this run's.
    """
    folder = store_folder(run)
    try:
        images_NHWC = load_store(folder).images_NHWC
    except UserError:
        raise UserError(_lost(run, folder)) from None
    views = Layout.from_dict(read_json(run.run)["layout"]).view_count
    images = len(read_folds(run.folds).ids) * views
    if len(images_NHWC) < images:
        raise UserError(
            f"{folder} holds {len(images_NHWC)} images and the rows of {run.root} have {images}; "
            f"delete that folder, then resume the run: python -m search.run --resume {run.root}"
        )
    return images_NHWC[:images], images_NHWC[images:] if len(images_NHWC) > images else None


def _lost(run: RunFolder, folder: Path) -> str:
    data = read_json(run.run).get("data")
    restore = f"restore {data}, then " if data and not Path(str(data)).is_dir() else ""
    return (
        f"{folder}, the decoded images of {run.root}, is gone; {restore}resume the run, which "
        f"decodes them again: python -m search.run --resume {run.root}"
    )
