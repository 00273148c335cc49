"""Images as the best recipe's augmentation draws them in training.

Shapes: B images of a batch, H W C height, width and channels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from search.report.facts import Nothing
from search.report.pictures import Pictures, Pixels
from spaces.errors import UserError
from spaces.recipe import Augment

ROWS, DRAWS = 4, 5
# Mirroring exchanges views and labels too, which one view alone cannot show.
NOT_DRAWN: dict[str, Any] = {"mirror": False, "view_drop": 0.0}
_SEED = 0


def augmented(pictures: Pictures, recipe: Mapping[str, Any], train_rows: int) -> list[list[Pixels]]:
    """For some train rows, evenly spread: the first view at the recipe's size, then DRAWS draws.

    Raises Nothing for a probe, which sees images as they are.
    """
    import torch  # seconds: only when there is a recipe to show

    from search.data.augment import augment_batch
    from search.data.batches import WHITE, resize
    from search.data.pairs import mix
    from search.data.stain import normalise_stain

    if recipe.get("probe", "none") != "none":
        raise Nothing("The best trial is a probe on frozen features: it sees images as they are.")
    try:
        augment = replace(Augment(**recipe["augment"]), **NOT_DRAWN)
    except (TypeError, UserError) as error:
        raise Nothing(f"The recipe's augmentation is of another version: {error}") from None
    chosen = np.linspace(0, train_rows - 1, min(ROWS, train_rows)).round().astype(int)
    channels = int(recipe["channels"])
    held = np.stack([pictures.row(int(row))[..., :channels] for row in chosen])
    pixels_BHWC = resize(torch.from_numpy(held), int(recipe["image_size"]))
    if (stain := recipe.get("stain", "none")) != "none":
        pixels_BHWC = normalise_stain(pixels_BHWC, stain)
    plain_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / WHITE
    generator = torch.Generator().manual_seed(_SEED)
    drawn = [plain_BCHW]
    for _ in range(DRAWS):
        changed_BCHW = augment_batch(plain_BCHW, augment, generator)
        if len(chosen) > 1:
            targets_R1 = torch.zeros(len(chosen), 1)
            changed_BCHW, _ = mix(changed_BCHW, targets_R1, augment, generator)
        drawn.append(changed_BCHW)
    as_pixels = [_pixels(images.permute(0, 2, 3, 1).numpy()) for images in drawn]
    return [[batch[i] for batch in as_pixels] for i in range(len(chosen))]


def _pixels(images_BHWC: Any) -> Pixels:
    return (images_BHWC.clip(0, 1) * 255).round().astype(np.uint8)
