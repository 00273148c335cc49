"""Scores of folds, and their mean, which is the score of a trial or an ensemble.

Shapes: T outputs, N rows, K folds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from search.metrics.core import FittedMetric
from search.metrics.formula import Score
from search.metrics.thresholds import aligned, best_thresholds


def fold_scores(
    fitted: FittedMetric, pred_TN: ArrayLike, true_TN: ArrayLike, fold_N: ArrayLike
) -> list[Score]:
    """The score of each fold's rows; the index in the list is the fold.

    Where the metric fits thresholds, those of a fold are the best on the other folds' rows, so
    that nothing is chosen on the rows that are scored; a lone fold takes 0.5. Raises ValueError
    when a fold between 0 and the last has no rows, and when the metric is undefined in a fold.
    """
    pred, true, fold = aligned(pred_TN, true_TN, fold_N)
    present = np.unique(fold)
    if not np.array_equal(present, np.arange(len(present))):
        raise ValueError(f"folds are {present.tolist()}; they must be 0..K-1, none empty")
    scores = []
    for k in present:
        inside = fold == k
        thresholds_T = None
        if fitted.fits_thresholds and len(present) > 1:
            thresholds_T = best_thresholds(
                fitted, pred[:, ~inside], true[:, ~inside], fold[~inside]
            )
        try:
            scores.append(fitted.score(pred[:, inside], true[:, inside], thresholds_T))
        except ValueError as error:
            raise ValueError(f"fold {k}: {error}") from error
    return scores


def joint_score(
    fitted: FittedMetric, pred_TN: ArrayLike, true_TN: ArrayLike, fold_N: ArrayLike
) -> float:
    """Mean over the folds present; thresholds, where the metric fits them, are the best on these
    very rows: optimistic, what selection maximises."""
    pred, true, fold = aligned(pred_TN, true_TN, fold_N)
    thresholds_T = None
    if fitted.fits_thresholds:
        thresholds_T = best_thresholds(fitted, pred, true, fold)
    masks = [fold == k for k in np.unique(fold)]
    return float(np.mean([fitted.score(pred[:, k], true[:, k], thresholds_T).value for k in masks]))


def mean_score(scores: Sequence[Score]) -> Score:
    """Unweighted mean over folds, of the value and of each part; a part that some folds lack is
    the mean over the others."""
    if not scores:
        raise ValueError("there is no fold's score to average; at least one is needed")
    names = dict.fromkeys(name for score in scores for name in score.parts)
    parts = {
        name: float(np.mean([s.parts[name] for s in scores if name in s.parts])) for name in names
    }
    return Score(float(np.mean([s.value for s in scores])), parts)


def trial_score(scores: Sequence[Score]) -> float:
    """The score of a trial: the unweighted mean over its folds."""
    return mean_score(scores).value
