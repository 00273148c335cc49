"""Heads on frozen features: the best of a grid, chosen and fitted on training rows alone.

Shapes: N rows, F features, T outputs.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.model.links import apply_link
from search.model.probe_head import LINKS, ProbeHead
from search.train.probe_knn import fit_knn
from search.train.probe_mlp import fit_mlp
from search.train.probe_ridge import fit_ridge
from search.train.probe_rows import ProbeRows, Score, Settings

_FITS = {"ridge": fit_ridge, "knn": fit_knn, "mlp": fit_mlp}
_ROWS = 1024  # predicted at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedHead:
    """A head and how it was chosen. Its tensors alone make it again."""

    tensors: dict[str, Tensor]  # of a ProbeHead, on the CPU
    settings: Settings = field(default_factory=dict)
    table: tuple[tuple[Settings, float], ...] = ()  # settings tried and their inner scores

    @property
    def kind(self) -> str:
        return ProbeHead(self.tensors).kind

    @property
    def heads_tried(self) -> int:
        return len(self.table)

    def predict(self, features_NF: NDArray[np.float32], device: str = "cpu") -> NDArray[np.float32]:
        """Predictions (T, N): values in the units of the targets, or probabilities."""
        head, pieces = ProbeHead(self.tensors).to(device), []
        with torch.inference_mode():
            for start in range(0, max(len(features_NF), 1), _ROWS):  # no rows are a piece too
                features_BF = torch.from_numpy(np.array(features_NF[start : start + _ROWS]))
                pieces.append(apply_link(head(features_BF.to(device)), head.link).cpu())
        return np.ascontiguousarray(torch.cat(pieces).numpy().T)


def fit_head(
    kind: str,
    features_NF: NDArray[np.float32],
    true_TN: NDArray[np.float32],
    *,
    link: str = "identity",
    score: Score | None = None,
    groups_N: NDArray[np.generic] | None = None,
    pca: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> FittedHead:
    """The head with the best inner score over the grid of its kind, on all of these rows.

    `score` is the metric, without it the squared error decides; `groups_N` names rows that belong
    together; `pca` components of the standardised features are used (0: the features); the seed
    matters to the kind "mlp" alone.
    """
    rows = ProbeRows(
        features_NF, true_TN, link=link, score=score, groups_N=groups_N, pca=pca, seed=seed,
        device=device,
    )  # fmt: skip
    choice = _FITS[kind](rows)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in choice.tensors.items()}
    tensors["link_code"] = torch.tensor(LINKS.index(link))
    return FittedHead(tensors=tensors, settings=choice.settings, table=tuple(choice.table))
