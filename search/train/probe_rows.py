"""The training rows of a probe: standardised features, targets, and how inner predictions are
judged. Nothing here has seen another row.

Shapes: N rows, F features, R features after the projection, T outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.model.probe_head import probabilities

Score = Callable[
    [NDArray[np.float32], NDArray[np.float32]], float
]  # (pred_TN, true_TN), high: good
Settings = dict[str, Any]
_CONSTANT = 1e-6  # features that vary less carry nothing
_RANK = 1e-12  # of the largest variance; components below it are rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The best head of a grid, refitted on all training rows."""

    settings: Settings
    tensors: dict[str, Tensor]  # of search.model.probe_head.ProbeHead, without `link_code`
    table: list[tuple[Settings, float]]  # all heads that were tried, with their inner scores


class ProbeRows:
    """Training rows in float64 on a device."""

    def __init__(
        self,
        features_NF: NDArray[np.float32],
        true_TN: NDArray[np.float32],
        *,
        link: str,
        score: Score | None,
        groups_N: NDArray[Any] | None,
        pca: int,
        seed: int,
        device: str,
    ) -> None:
        # Apple's GPUs have no float64.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        x_NF = torch.from_numpy(np.array(features_NF)).to(self.device).double()
        self.y_NT = torch.from_numpy(np.array(true_TN.T)).to(self.device).double()
        self.mean_F, std_F = x_NF.mean(dim=0), x_NF.std(dim=0, correction=0)
        self.std_F = torch.where(std_F > _CONSTANT, std_F, torch.ones_like(std_F))
        self.x_NR = (x_NF - self.mean_F) / self.std_F
        self.components_FR: Tensor | None = None
        if pca:
            self.components_FR = principal(self.x_NR)[0][:, :pca]
            self.x_NR = self.x_NR @ self.components_FR
        self.link, self.score, self.seed = link, score, seed
        self.group_N: NDArray[np.int64] | None = None
        if groups_N is not None:
            group_N = np.unique(groups_N, return_inverse=True)[1]
            if group_N.any():  # a single group could not be left out
                self.group_N = group_N

    def judge(self, rows: Tensor | None = None) -> "Judge":
        """For predictions of all rows, or of some."""
        return Judge(self.y_NT if rows is None else self.y_NT[rows], self.link, self.score)

    def linear(self, weight_RT: Tensor, bias_T: Tensor) -> tuple[Tensor, Tensor]:
        """A layer on the standardised, projected features as one on the features: weight (T, F)
        and bias (T), float32."""
        weight_FT = weight_RT if self.components_FR is None else self.components_FR @ weight_RT
        weight_TF = (weight_FT / self.std_F[:, None]).T.float()
        # From the rounded weights, so that rounding does not move the mean.
        return weight_TF, (bias_T - weight_TF.double() @ self.mean_F).float()


class Judge:
    """The score of predictions: the metric's, or minus the mean squared error where there is none
    or it is undefined in these rows."""

    def __init__(self, true_NT: Tensor, link: str, score: Score | None) -> None:
        self._true_TN = np.ascontiguousarray(true_NT.T.float().cpu().numpy())
        self._link = link
        self._score = score
        if score is not None:
            try:
                score(self._true_TN, self._true_TN)
            except ValueError:
                self._score = None

    def __call__(self, values_NT: Tensor) -> float:
        """The score of fitted values, which are made probabilities where classes are meant."""
        values_NT = probabilities(values_NT, self._link)
        pred_TN = np.ascontiguousarray(values_NT.T.float().cpu().numpy())
        if not np.isfinite(pred_TN).all():
            return -np.inf
        if self._score is None:
            return -float(np.square(pred_TN - self._true_TN).mean(dtype=np.float64))
        return float(self._score(pred_TN, self._true_TN))


def principal(x_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Principal directions (F, R) of centred rows with their sums of squares (R), largest first;
    those without any are left out."""
    rows, features = x_NF.shape
    if features <= rows:
        square_R, basis_FR = torch.linalg.eigh(x_NF.T @ x_NF)
    else:
        square_R, basis_NR = torch.linalg.eigh(x_NF @ x_NF.T)
        basis_FR = x_NF.T @ (basis_NR / square_R.clamp(min=torch.finfo(square_R.dtype).tiny).sqrt())
    kept = (square_R > _RANK * square_R.max().clamp(min=_RANK)).nonzero().flatten().flip(0)
    return basis_FR[:, kept], square_R[kept]


def inner_folds(group_N: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """An inner fold for each row, groups whole, the folds as equal as that allows."""
    size_G = np.bincount(group_N)
    fold_G, filled_K = np.empty(len(size_G), dtype=np.int64), np.zeros(min(k, len(size_G)))
    for group in np.argsort(-size_G, kind="stable"):
        fold_G[group] = filled_K.argmin()
        filled_K[fold_G[group]] += size_G[group]
    return fold_G[group_N]


def best(table: list[tuple[Settings, float]]) -> int:
    """The row of the highest score; the first of equals."""
    return int(np.argmax([score for _, score in table]))
