"""Convex weights: >= 0, with sum 1 and the least squared error, pulled towards equal ones.

The squared error of a mean with weights w is w' G w, where G holds the mean products of members'
errors. A pull strength * |w - 1/m|^2 adds a multiple of the identity to G.

Shapes: M members, m members in their order.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.means import mean_blend
from ensemble.combiners.simplex import simplex_weights
from ensemble.combiners.strength import best_strength

STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # times the mean squared error
POOL = 100  # the best members; more cost cubic time
LEAST = 0.01  # a member below this weight is left out

Floats = NDArray[np.float64]


def convex(bench: Bench, folds: Sequence[int]) -> Blend:
    """The convex weights of those that weigh most among the best members, within the limits."""
    order = list(bench.candidates(folds)[:POOL])
    weight_m = convex_weights(bench, order, folds)
    by_weight = [order[i] for i in np.argsort(-weight_m, kind="stable")]
    kept = bench.budget.fill(by_weight)
    if len(kept) < len(order):
        weight_m = convex_weights(bench, kept, folds)
    else:
        weight_m = -np.sort(-weight_m)
    weights = dict(zip(kept, weight_m.tolist(), strict=True))
    least = min(LEAST, max(weights.values()))
    return mean_blend(bench, "convex", {m: w for m, w in weights.items() if w >= least})


def convex_weights(bench: Bench, members: Sequence[int], folds: Sequence[int]) -> Floats:
    """(m,) convex weights of exactly these members; the strength of the pull is the one that does
    best on folds left out. It costs no pass over the predictions."""
    at = np.ix_(list(members), list(members))

    def losses(others: Sequence[int], fold: int) -> Floats:
        gram_mm = bench.errors.gram([fold])[at]
        path = _path(bench.errors.gram(others)[at], STRENGTHS)
        return np.array([w_m @ gram_mm @ w_m for w_m in path])

    strength = best_strength(STRENGTHS, folds, losses)
    return _path(bench.errors.gram(folds)[at], [strength])[0]


def _path(gram_mm: Floats, strengths: Sequence[float]) -> list[Floats]:
    """(m,) weights for each strength, strongest first: each starts where the one before ended."""
    members = len(gram_mm)
    scale = float(np.trace(gram_mm)) / members or 1.0  # 0: no member errs
    weights, start = [], None
    for strength in strengths:
        quad_mm = gram_mm / scale + strength * np.eye(members)
        start = simplex_weights(quad_mm[None], np.zeros((1, members)), start)
        weights.append(start[0])
    return weights
