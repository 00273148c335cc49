"""Votes: the share of members that say yes, and the median, which a broken member cannot move.

Shapes: m members, T outputs, B rows of a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.prefix import best_size, equal_blend, mean_of
from ensemble.combiners.tasks import no_probabilities, not_classification
from ensemble.members import Pool
from ensemble.transforms import linked, running_medians, voted


def refuses_hard_vote(pool: Pool) -> str | None:
    if pool.task_type == "multiclass":
        return None
    return not_classification(pool, "a vote") or no_probabilities(pool, "a vote")


def hard_vote(bench: Bench, folds: Sequence[int]) -> Blend:
    """The share of the k best members that say yes, or that name the class."""
    order = bench.budget.fill(bench.candidates(folds))
    task_type = bench.pool.task_type
    grow = mean_of(lambda _, pred_TB: voted(pred_TB, task_type), "identity")
    k = best_size(bench, folds, order, grow)
    return equal_blend(bench, "hard_vote", order[:k], transform="vote")


def median(bench: Bench, folds: Sequence[int]) -> Blend:
    """The median of the k best members."""
    order = bench.budget.fill(bench.candidates(folds))
    link = "normalise" if bench.pool.task_type == "multiclass" else "identity"

    def grow(preds_mTB: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
        return (linked(median_TB, link) for median_TB in running_medians(preds_mTB))

    k = best_size(bench, folds, order, grow)
    return equal_blend(bench, "median", order[:k], reduce="median", link=link)
