"""The k best members: which k scores best on the folds it is chosen on.

Engines score weighted means. What is no mean is made here once for all k, and scored as a metric
does.

Shapes: M members, m members in their order, S sizes that are tried, T outputs,
 n rows of a part, B rows of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.engines import tie
from ensemble.transforms import linked
from search.metrics import joint_score

EVERY = 12  # each k up to here is tried; above it each step is a quarter
_VALUES = 8_000_000  # float32 values held at a time beside the results

Floats = NDArray[np.float64]
# From (T, B) predictions of members, best first, those of the best 1, of the best 2, ...
Grow = Callable[[Sequence[NDArray[np.float32]]], Iterator[NDArray[Any]]]


def first_best(scores: Sequence[float]) -> int:
    """Index of the first score that is as good as the best."""
    return int(np.flatnonzero(np.array(scores) >= max(scores) - tie(max(scores)))[0])


def sizes(members: int) -> list[int]:
    """The k that are tried, ascending; the last is all members."""
    above = (round(EVERY * 1.25**i) for i in count(1))
    return [*range(1, min(members, EVERY) + 1), *takewhile(lambda k: k < members, above)] + (
        [members] if members > EVERY else []
    )


def best_size(bench: Bench, folds: Sequence[int], order: Sequence[int], grow: Grow) -> int:
    """The k for which what `grow` makes of the k best scores highest on these folds; the smallest
    of equals. Thresholds, where the metric fits them, are fitted on the same rows, as engines do.
    """
    tried = sizes(len(order))
    # Thresholds need the rows of all folds together; else a fold at a time takes less memory.
    parts = [list(folds)] if bench.pool.metric.fits_thresholds else [[fold] for fold in folds]
    scores = np.array([_part_scores(bench, part, order, tried, grow) for part in parts])
    return tried[first_best(scores.mean(axis=0).tolist())]


def _part_scores(
    bench: Bench, folds: Sequence[int], order: Sequence[int], tried: list[int], grow: Grow
) -> list[float]:
    """(S,) mean score over these folds for each k."""
    rows_n = bench.rows(folds)
    true_Tn, fold_n = np.take(bench.pool.true_TN, rows_n, axis=1), bench.pool.fold_N[rows_n]
    grown = _grown(bench, rows_n, order, tried, grow)
    return [joint_score(bench.pool.metric, pred_Tn, true_Tn, fold_n) for pred_Tn in grown]


def _grown(
    bench: Bench, rows_n: NDArray[np.int64], order: Sequence[int], tried: list[int], grow: Grow
) -> NDArray[np.float32]:
    """(S, T, n) predictions for each k; every member is read once."""
    outputs = len(bench.pool.true_TN)
    pred_STn = np.empty((len(tried), outputs, len(rows_n)), dtype=np.float32)
    step = max(1, _VALUES // (outputs * len(order)))
    for start in range(0, len(rows_n), step):
        rows_B = rows_n[start : start + step]
        preds_mTB = [np.take(bench.preds[m], rows_B, axis=1) for m in order]
        kept = (pred for k, pred in enumerate(grow(preds_mTB), 1) if k in tried)
        for i, pred_TB in enumerate(kept):
            pred_STn[i, :, start : start + step] = pred_TB
    return pred_STn


def mean_of(moved: Callable[[int, Floats], Floats], link: str) -> Grow:
    """Grows the mean of what `moved` makes of member number i's predictions, then the link."""
    return partial(_means, moved=moved, link=link)


def _means(
    preds_mTB: Sequence[NDArray[np.float32]], moved: Callable[[int, Floats], Floats], link: str
) -> Iterator[Floats]:
    sum_TB = np.zeros(preds_mTB[0].shape)
    for i, pred_TB in enumerate(preds_mTB):
        sum_TB += moved(i, pred_TB.astype(np.float64))
        yield linked(sum_TB / (i + 1), link)


def equal_blend(bench: Bench, method: str, members: Sequence[int], **how: Any) -> Blend:
    """A blend in which all members weigh the same; `how` are further fields of it."""
    return Blend(
        method=method,
        task_type=bench.pool.task_type,
        members=tuple(members),
        weights=(1 / len(members),) * len(members),
        **how,
    )
