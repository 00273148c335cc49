"""The plainest combiners: the best single member, and means of the best few.

Shapes: M members.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.prefix import first_best


def best_single(bench: Bench, folds: Sequence[int]) -> Blend:
    return mean_blend(bench, "best_single", {bench.candidates(folds)[0]: 1.0})


def top_k(bench: Bench, folds: Sequence[int]) -> Blend:
    """The mean of the k best members; k is the one that scores best on these folds."""
    return _best_prefix(bench, folds, "top_k", lambda order: np.ones(len(order)))


def mean_all(bench: Bench, folds: Sequence[int]) -> Blend:
    """The mean of all members that the limits admit. For probabilities this is soft voting."""
    order = bench.budget.fill(bench.candidates(folds))
    return mean_blend(bench, "mean_all", dict.fromkeys(order, 1.0))


def performance_weighted(bench: Bench, folds: Sequence[int]) -> Blend:
    """The mean of the k best weighted by their scores, as the gene_expr write-up did by hand. A
    score that is a negated loss weighs by 1 / loss."""
    members = len(bench.pool.members)
    score_M = bench.engine.step(np.zeros(members, dtype=np.int64), folds)

    def shares(order: Sequence[int]) -> NDArray[np.float64]:
        own = score_M[list(order)]
        return 1 / np.maximum(-own, 1e-12) if (own < 0).all() else np.maximum(own, 1e-12)

    return _best_prefix(bench, folds, "weighted", shares)


def _best_prefix(
    bench: Bench,
    folds: Sequence[int],
    method: str,
    shares: Callable[[Sequence[int]], NDArray[np.float64]],
) -> Blend:
    order = bench.budget.fill(bench.candidates(folds))
    blends = []
    for k in range(1, len(order) + 1):
        weights = dict(zip(order[:k], shares(order[:k]).tolist(), strict=True))
        blends.append(mean_blend(bench, method, weights))
    return blends[first_best([bench.score(blend, folds) for blend in blends])]


def mean_blend(bench: Bench, method: str, weights: dict[int, float]) -> Blend:
    """A weighted mean as a blend, heaviest first."""
    total = sum(weights.values())
    order = sorted((m for m in weights if weights[m] > 0), key=lambda m: (-weights[m], m))
    return Blend(
        method=method,
        task_type=bench.pool.task_type,
        members=tuple(order),
        weights=tuple(weights[m] / total for m in order),
    )
