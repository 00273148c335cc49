"""Trivial baselines that every model has to beat: the mean profile, a ridge on colour statistics.

Shapes: N and M rows, T outputs, K folds, F features, H and W pixels, C channels, V views of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

from search.data.image_statistics import image_statistics, join_views

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]  # (N V, H, W, C): the V views of a row one after the other

ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 11))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Features of each image, and a fit on the training rows that predicts other rows: values, or
    probabilities for a task of classification."""

    features: Callable[[Images], Floats]  # (N V, H, W, C) -> (N V, F)
    # (N, F), (T, N), (M, F), task type -> (T, M)
    fit_predict: Callable[[Floats, Floats, Floats, str], Floats]

    def oof(
        self,
        images: Images,
        targets_TN: Floats,
        fold_N: NDArray[np.int64],
        task_type: str = "regression",
        views: int = 1,
    ) -> Floats:
        """Out-of-fold predictions (T, N): each fold's rows by a fit on the other folds."""
        x_NF = join_views(self.features(images), views)
        pred_TN = np.empty(targets_TN.shape, dtype=np.float32)
        for k in np.unique(fold_N):
            inside = fold_N == k
            pred_TN[:, inside] = self.fit_predict(
                x_NF[~inside], targets_TN[:, ~inside], x_NF[inside], task_type
            )
        return pred_TN

    __call__ = oof

    def predict(
        self,
        train: Images,
        targets_TN: Floats,
        test: Images,
        task_type: str = "regression",
        views: int = 1,
    ) -> Floats:
        """Predictions (T, rows of `test`) by a fit on all training rows."""
        x_NF, new_MF = (join_views(self.features(images), views) for images in (train, test))
        return self.fit_predict(x_NF, targets_TN, new_MF, task_type)


def _ridge(x_NF: Floats, targets_TN: Floats, new_MF: Floats, task_type: str) -> Floats:
    """Ridge on standardised features and targets; its alpha by leave-one-out on these rows."""
    features = StandardScaler().fit(x_NF)
    x_NF, new_MF = features.transform(x_NF), features.transform(new_MF)
    if task_type != "regression":
        return _logistic(x_NF, targets_TN, new_MF, task_type)
    targets = StandardScaler().fit(targets_TN.T)
    model = RidgeCV(alphas=ALPHAS).fit(x_NF, targets.transform(targets_TN.T))
    pred_MT = targets.inverse_transform(model.predict(new_MF).reshape(len(new_MF), -1))
    return np.asarray(pred_MT.T, dtype=np.float32)


def _logistic(x_NF: Floats, targets_TN: Floats, new_MF: Floats, task_type: str) -> Floats:
    """Logistic regression of each class on standardised features, shrunk as much as a ridge on the
    same class, whose leave-one-out costs next to nothing. A ridge ranks as well, but what it
    predicts are no probabilities. An output that does not vary here is predicted as it is."""
    share_T = targets_TN.mean(axis=1, dtype=np.float64)
    pred_TM = np.repeat(share_T[:, None], len(new_MF), axis=1)
    varies = np.flatnonzero((share_T > 0) & (share_T < 1))
    if len(varies):
        scaled_NT = StandardScaler().fit_transform(targets_TN[varies].T)
        ridge = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(x_NF, scaled_NT)
        # Near the mean, where a sigmoid's slope is the variance, both shrink alike.
        strength_T = 1 / (ridge.alpha_ * share_T[varies] * (1 - share_T[varies]))
        for output, strength in zip(varies.tolist(), strength_T.tolist(), strict=True):
            model = LogisticRegression(C=strength, max_iter=1000)
            pred_TM[output] = model.fit(x_NF, targets_TN[output] == 1).predict_proba(new_MF)[:, 1]
    if task_type == "multiclass":
        pred_TM /= pred_TM.sum(axis=0)
    return pred_TM.astype(np.float32)


def _nothing(images: Images) -> Floats:
    return np.empty((len(images), 0), np.float32)


def _mean(x_NF: Floats, targets_TN: Floats, new_MF: Floats, task_type: str) -> Floats:
    """The mean of each output, which is the share of each class."""
    mean_T = targets_TN.mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.repeat(mean_T[:, None], len(new_MF), axis=1)


BASELINES = {
    "mean_profile": Baseline(features=_nothing, fit_predict=_mean),
    "colour_ridge": Baseline(features=image_statistics, fit_predict=_ridge),
}


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
