"""Trivial baselines that every model has to beat: the mean profile, a ridge on colour statistics.

Shapes: N rows, T outputs, K folds, F features, H and W pixels, C = 3 colour channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float32]
Reals = NDArray[np.floating[Any]]
Images = NDArray[np.uint8]

# What haematoxylin, eosin and DAB absorb in red, green and blue (Ruifrok and Johnston 2001).
_HED = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_UNMIX = np.linalg.inv(_HED / np.linalg.norm(_HED, axis=1, keepdims=True)).astype(np.float32)
_BLOCK = 64  # tiles held as floats at a time
_SIDE = 64  # larger tiles are thinned out to about this many pixels a side: colour needs no more
ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 11))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Features of each tile, and a fit on the training rows that predicts other rows."""

    features: Callable[[Images], Floats]  # (N, H, W, C) -> (N, F)
    fit_predict: Callable[[Floats, Floats, Floats], Floats]  # (N, F), (T, N), (M, F) -> (T, M)

    def oof(self, images_NHWC: Images, targets_TN: Floats, fold_N: NDArray[np.int64]) -> Floats:
        """Out-of-fold predictions (T, N): each fold's rows by a fit on the other folds."""
        x_NF = self.features(images_NHWC)
        pred_TN = np.empty(targets_TN.shape, dtype=np.float32)
        for k in np.unique(fold_N):
            inside = fold_N == k
            pred_TN[:, inside] = self.fit_predict(
                x_NF[~inside], targets_TN[:, ~inside], x_NF[inside]
            )
        return pred_TN

    __call__ = oof

    def predict(self, train_NHWC: Images, targets_TN: Floats, test_NHWC: Images) -> Floats:
        """Predictions (T, rows of `test_NHWC`) by a fit on all training rows."""
        return self.fit_predict(self.features(train_NHWC), targets_TN, self.features(test_NHWC))


def colour_statistics(images_NHWC: Images) -> Floats:
    """53 statistics of each tile's colours, (N, 53); where a pixel lies plays no part.

    Mean, deviation, skewness and five percentiles of red, green and blue; hue (as a direction),
    saturation and value; haematoxylin, eosin and the rest of the optical density; correlations
    of channels; shares of bare and of dark pixels.
    """
    if images_NHWC.ndim != 4 or images_NHWC.shape[3] != 3 or images_NHWC.dtype != np.uint8:
        raise ValueError(
            f"images are {images_NHWC.dtype} {images_NHWC.shape}; they must be uint8 (N, H, W, 3)"
        )
    step = tuple(max(1, side // _SIDE) for side in images_NHWC.shape[1:3])
    blocks = [
        _statistics(images_NHWC[i : i + _BLOCK, :: step[0], :: step[1]])
        for i in range(0, len(images_NHWC), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 53), np.float32)


def _statistics(images_NHWC: Images) -> Floats:
    rgb_NPC = images_NHWC.reshape(len(images_NHWC), -1, 3).astype(np.float32) / 255
    mean, std = rgb_NPC.mean(axis=1), rgb_NPC.std(axis=1)
    skew = ((rgb_NPC - mean[:, None]) ** 3).mean(axis=1) / (std + 1e-3) ** 3
    cuts = _percentiles(rgb_NPC, (5, 25, 50, 75, 95))

    high, low = rgb_NPC.max(axis=2), rgb_NPC.min(axis=2)
    saturation = (high - low) / np.maximum(high, 1 / 255)
    # Hue as a direction in the plane across the grey axis, so that red has no jump.
    east = rgb_NPC[..., 0] - (rgb_NPC[..., 1] + rgb_NPC[..., 2]) / 2
    north = (rgb_NPC[..., 1] - rgb_NPC[..., 2]) * np.float32(np.sqrt(3) / 2)

    density_NPC = -np.log(np.maximum(rgb_NPC, 1 / 255))
    stain_NPC = density_NPC @ _UNMIX
    columns = [
        mean, std, skew, cuts,  # 3 + 3 + 3 + 15
        *(_pair(x) for x in (east, north, saturation, high)),  # 8
        _percentiles(saturation[..., None], (10, 90)),  # 2
        stain_NPC.mean(axis=1), stain_NPC.std(axis=1),  # 6
        _percentiles(stain_NPC[..., :2], (10, 50, 90)),  # 6
        _correlation(rgb_NPC, ((0, 1), (0, 2), (1, 2))),  # 3
        _correlation(stain_NPC, ((0, 1),)),  # 1
        (low > 0.8).mean(axis=1)[:, None], (high < 0.4).mean(axis=1)[:, None],  # 2
        density_NPC.sum(axis=2).std(axis=1)[:, None],  # 1
    ]  # fmt: skip
    return np.concatenate(columns, axis=1).astype(np.float32)


def _pair(x_NP: Reals) -> Reals:
    return np.stack([x_NP.mean(axis=1), x_NP.std(axis=1)], axis=1)


def _percentiles(x_NPC: Reals, cuts: Sequence[int]) -> Reals:
    values = np.percentile(x_NPC, cuts, axis=1).transpose(1, 0, 2)
    return values.reshape(len(x_NPC), -1).astype(np.float32)


def _correlation(x_NPC: Reals, pairs: Sequence[tuple[int, int]]) -> Reals:
    x = x_NPC - x_NPC.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(x).mean(axis=1)) + 1e-3  # a flat tile has no correlation
    columns = [(x[..., i] * x[..., j]).mean(axis=1) / (norm[:, i] * norm[:, j]) for i, j in pairs]
    return np.stack(columns, axis=1)


def _ridge(x_NF: Floats, targets_TN: Floats, new_MF: Floats) -> Floats:
    """Ridge on standardised features and targets; its alpha by leave-one-out on these rows."""
    features = StandardScaler().fit(x_NF)
    targets = StandardScaler().fit(targets_TN.T)
    model = RidgeCV(alphas=ALPHAS).fit(features.transform(x_NF), targets.transform(targets_TN.T))
    pred_MT = targets.inverse_transform(
        model.predict(features.transform(new_MF)).reshape(len(new_MF), -1)
    )
    return np.asarray(pred_MT.T, dtype=np.float32)


def _nothing(images_NHWC: Images) -> Floats:
    return np.empty((len(images_NHWC), 0), np.float32)


def _mean(x_NF: Floats, targets_TN: Floats, new_MF: Floats) -> Floats:
    mean_T = targets_TN.mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.repeat(mean_T[:, None], len(new_MF), axis=1)


BASELINES = {
    "mean_profile": Baseline(features=_nothing, fit_predict=_mean),
    "colour_ridge": Baseline(features=colour_statistics, fit_predict=_ridge),
}


def mean_profile(targets_TN: Floats, fold_N: NDArray[np.int64]) -> Floats:
    """Out-of-fold mean profile (T, N); it looks at no image."""
    return BASELINES["mean_profile"].oof(
        np.empty((len(fold_N), 0, 0, 3), np.uint8), targets_TN, fold_N
    )


def colour_ridge(images_NHWC: Images, targets_TN: Floats, fold_N: NDArray[np.int64]) -> Floats:
    """Out-of-fold predictions (T, N) of the ridge on colour statistics."""
    return BASELINES["colour_ridge"].oof(images_NHWC, targets_TN, fold_N)


def fold_order(baseline_scores_K: Sequence[float]) -> list[int]:
    """The order in which folds are visited, chosen before any training: the fold whose baseline
    score is nearest the median first, then by distance from it; ties go to the lower fold.

    Early rungs see the first folds only, and an extreme fold can mislead them.
    """
    scores_K = np.asarray(baseline_scores_K, dtype=np.float64)
    if scores_K.ndim != 1 or len(scores_K) == 0 or not np.isfinite(scores_K).all():
        raise ValueError(f"baseline scores are {baseline_scores_K}; one finite score a fold")
    distance_K = np.abs(scores_K - np.median(scores_K))
    # Equal distances differ in their last bits: rounding keeps the tie a tie.
    return [int(k) for k in np.argsort(distance_K.round(12), kind="stable")]
