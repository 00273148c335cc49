"""How often rows are drawn, by the rarity of their labels.

Shapes: N rows, T outputs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MOST = 10.0  # a rare row is drawn at most this many times as often as a common one


def sampling_weights(targets_NT: Tensor, sampler: str) -> NDArray[np.float64] | None:
    """Weight (N,) with which each training row is drawn, with replacement; None: each row once an
    epoch, for the sampler "none".

    A row weighs by the rarity of its rarest label, and a row without any by the rarity of such
    rows, which for one label are its negatives. "over" draws rare rows more often, up to ten times;
    "under" draws common rows less until all labels come alike, however rare. An epoch has as many
    rows as ever.
    """
    if sampler == "none":
        return None
    has_NT = targets_NT > 0.5
    has_NT = torch.cat([has_NT, ~has_NT.any(dim=1, keepdim=True)], dim=1)
    counts_T = has_NT.sum(dim=0).double()
    rarest_N = torch.where(has_NT, counts_T, torch.inf).amin(dim=1)
    weights_N = rarest_N.amax() / rarest_N  # the commonest rows weigh 1
    return (weights_N.clamp(max=_MOST) if sampler == "over" else weights_N).numpy()
