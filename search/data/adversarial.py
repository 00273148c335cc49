"""Adversarial validation: can a small model tell train from test, or one fold from the others?

Where it can, images differ in more than chance, and a cross-validated score promises too much (test
looks different) or folds are not alike (each is another slide or scanner). Features are columns of
numbers per image, such as colour statistics or a network's pooled output.

Shapes: N rows, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.floating]
FOLDS = 5
MOST = 5000  # rows; more are drawn at random, the AUC moves by less than a hundredth
DIFFERENT, UNLIKE = 0.8, 0.65  # AUC from which two sets look different, or somewhat different
_C = 0.1  # weak enough a fit for hundreds of features on a few hundred rows


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well two sets can be told apart; nan where there were too few rows to try."""

    auc: float  # cross-validated; 0.5 no better than chance
    meaning: str  # one sentence for the user

    @property
    def clear(self) -> bool:
        return self.auc >= DIFFERENT


def separability(
    features_NF: Floats,
    label_N: NDArray[np.integer],
    seed: int,
    groups: Sequence[str] | None = None,
) -> float:
    """Cross-validated AUC of a logistic regression that tells label 1 from label 0.

    With groups (slides, patients), those of a held-out fold were not seen: what is recognised is
    then not a single slide. nan where either label has fewer than 5 rows (or groups).
    """
    label_N = np.asarray(label_N)
    if not np.isin(label_N, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1; got {np.unique(label_N)[:5].tolist()}")
    kept = _sample(len(label_N), seed)
    x_NF = np.nan_to_num(np.asarray(features_NF, np.float64)[kept], posinf=0.0, neginf=0.0)
    y_N = label_N[kept]
    group_N = None if groups is None else np.unique(groups, return_inverse=True)[1][kept]
    units = [
        int((y_N == side).sum()) if group_N is None else len(np.unique(group_N[y_N == side]))
        for side in (0, 1)
    ]
    if min(units) < FOLDS:
        return float("nan")
    splitter = StratifiedKFold if group_N is None else StratifiedGroupKFold
    folds = splitter(FOLDS, shuffle=True, random_state=seed)
    scores = []
    for train, held_out in folds.split(x_NF, y_N, group_N):
        if len(np.unique(y_N[train])) < 2 or len(np.unique(y_N[held_out])) < 2:
            continue
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=_C, class_weight="balanced", max_iter=500)
        )
        model.fit(x_NF[train], y_N[train])
        # Within a fold: scores of two models are on two scales.
        scores.append(roc_auc_score(y_N[held_out], model.decision_function(x_NF[held_out])))
    return float(np.mean(scores)) if scores else float("nan")


def _sample(rows: int, seed: int) -> NDArray[np.int64]:
    if rows <= MOST:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))


def train_or_test(features_train: Floats, features_test: Floats, seed: int) -> Separability:
    """Whether test images look like training images; features are (rows, F)."""
    if not len(features_test):
        return Separability(auc=float("nan"), meaning="there are no test images to compare")
    features_NF = np.concatenate([features_train, features_test])
    label_N = np.repeat([0, 1], [len(features_train), len(features_test)])
    auc = separability(features_NF, label_N, seed)
    if np.isnan(auc):
        meaning = f"{len(features_test)} test images are too few to tell whether they differ"
    elif auc >= DIFFERENT:
        meaning = (
            f"test images look different from training images (AUC {auc:.2f}): expect a lower test "
            "score than cross-validation"
        )
    elif auc >= UNLIKE:
        meaning = (
            f"test images differ somewhat from training images (AUC {auc:.2f}): the test score may "
            "lie below cross-validation"
        )
    else:
        meaning = f"test images look like training images (AUC {auc:.2f}; 0.5 is chance)"
    return Separability(auc=auc, meaning=meaning)


def folds_apart(features_NF: Floats, fold_N: NDArray[np.integer], seed: int) -> Separability:
    """Whether each fold's images look unlike the others'; the mean over folds of one against the
    rest. `fold_N` counts from 0."""
    scores = [
        separability(features_NF, (fold_N == fold).astype(np.int64), seed)
        for fold in range(int(fold_N.max()) + 1)
    ]
    known = [score for score in scores if not np.isnan(score)]
    if not known:
        return Separability(auc=float("nan"), meaning="folds are too small to compare")
    auc = float(np.mean(known))
    if auc >= DIFFERENT:
        meaning = (
            f"folds look different from each other (AUC {auc:.2f}): each validates on images of "
            "another kind, and scores of folds will spread"
        )
    elif auc >= UNLIKE:
        meaning = f"folds differ somewhat from each other (AUC {auc:.2f})"
    else:
        meaning = f"folds look alike (AUC {auc:.2f}; 0.5 is chance)"
    return Separability(auc=auc, meaning=meaning)
