"""Borders cropped and captions masked, for whoever decodes images: the same way everywhere."""

from collections.abc import Callable, Mapping

import numpy as np

from search.data.borders import clean

Clean = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> the same, perhaps smaller
NOTHING = {"crop_borders": False, "mask_captions": False}


def cleaner(options: Mapping[str, bool]) -> tuple[Clean | None, str]:
    """What is done to an image before it is resized, None: nothing; and a key that names it."""
    wanted = [name for name in NOTHING if options[name]]
    if not wanted:
        return None, ""
    crop, hide = options["crop_borders"], options["mask_captions"]
    return lambda image_HWC: clean(image_HWC, crop, hide)[0], "+".join(wanted)
