"""Bootstrap intervals of nested scores: how far a score would move with other patients.

What was chosen stays; the rows that score it are drawn again. Whole groups are drawn where there
are enough of them, else rows within their folds, which makes intervals too narrow when rows of a
group resemble each other: so it is said.

Shapes: T outputs, N rows, n rows of a fold, K folds, R replicates, S sets of predictions, B block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from search.metrics import FittedMetric, row_correlations

REPLICATES = 200
LEVEL = 0.95
MIN_GROUPS = 10  # fewer say too little about other groups
_BLOCK = 256  # outputs held in float64 at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The middle `LEVEL` of the replicates' scores."""

    low: float
    high: float
    unit: str  # what was drawn: groups, or rows within folds


def draw_counts(
    fold_N: NDArray[np.int64], group_N: NDArray[np.int64] | None, seed: int
) -> tuple[NDArray[np.float32], str]:
    """(R, N) how often each row stands in each replicate, and in words what was drawn."""
    rng = np.random.default_rng(seed)
    rows = len(fold_N)
    groups = 0 if group_N is None else int(group_N.max()) + 1
    if group_N is not None and groups >= MIN_GROUPS:
        drawn_RG = rng.multinomial(groups, np.full(groups, 1 / groups), size=REPLICATES)
        return drawn_RG[:, group_N].astype(np.float32), f"{groups} groups"
    counts_RN = np.empty((REPLICATES, rows), dtype=np.float32)
    for fold in np.unique(fold_N):
        at = np.flatnonzero(fold_N == fold)
        counts_RN[:, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), REPLICATES)
    why = "rows within folds" + (f"; {groups} groups are too few" if groups else "")
    return counts_RN, why


def intervals(
    bench: Bench,
    preds_STN: Sequence[NDArray[np.float32]],
    thresholds_SKT: Sequence[Sequence[Floats | None]],
    seed: int,
) -> tuple[list[Interval], Interval | None]:
    """An interval for each set of nested predictions, and one for the first minus the second,
    from the same replicates."""
    pool = bench.pool
    counts_RN, unit = draw_counts(pool.fold_N, pool.group_N, seed)
    found = []
    for pred_TN, thresholds_KT in zip(preds_STN, thresholds_SKT, strict=True):
        per_fold = []
        for fold in bench.folds:
            at = bench.rows([fold])
            per_fold.append(
                _scores(pool.metric, np.take(pred_TN, at, axis=1),
                        np.take(pool.true_TN, at, axis=1), counts_RN[:, at], thresholds_KT[fold])
            )  # fmt: skip
        with np.errstate(invalid="ignore"):
            scores_KR = np.array(per_fold)
            seen_R = (~np.isnan(scores_KR)).sum(axis=0)
            found.append(np.where(seen_R, np.nansum(scores_KR, axis=0) / np.maximum(seen_R, 1),
                                  np.nan))  # fmt: skip
    difference = _interval(found[0] - found[1], unit) if len(found) > 1 else None
    return [_interval(score_R, unit) for score_R in found], difference


def _interval(score_R: Floats, unit: str) -> Interval:
    kept = score_R[~np.isnan(score_R)]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high), unit=unit)


def _scores(
    metric: FittedMetric,
    pred_Tn: NDArray[Any],
    true_Tn: NDArray[Any],
    counts_Rn: NDArray[np.float32],
    thresholds_T: Floats | None,
) -> Floats:
    """(R,) score of one fold in each replicate; NaN where none of its rows, or too little for the
    metric, was drawn."""
    if metric.name in ("gene_expr", "pearson"):
        return _correlation_scores(metric, pred_Tn, true_Tn, counts_Rn)
    scores_R = np.full(len(counts_Rn), np.nan)
    for replicate, counts_n in enumerate(counts_Rn.astype(np.int64)):
        at = np.repeat(np.arange(len(counts_n)), counts_n)
        if len(at):
            try:
                score = metric.score(pred_Tn[:, at], true_Tn[:, at], thresholds_T)
            except ValueError:  # undefined, for instance one class alone
                continue
            scores_R[replicate] = score.value
    return scores_R


def _correlation_scores(
    metric: FittedMetric,
    pred_Tn: NDArray[Any],
    true_Tn: NDArray[Any],
    counts_Rn: NDArray[np.float32],
) -> Floats:
    """All replicates at once: weighted sums of products are matrix products with the counts."""
    counts_nR = np.ascontiguousarray(counts_Rn.T)
    total_R = counts_nR.sum(axis=0, dtype=np.float64)
    blocks = range(0, len(pred_Tn), _BLOCK)
    corr_TR = np.concatenate(
        [_weighted(pred_Tn[i : i + _BLOCK], true_Tn[i : i + _BLOCK], counts_nR) for i in blocks]
    )
    keep_nan = str(metric.args["nan"])
    if metric.name == "pearson":
        score_R = _mean(corr_TR, np.ones((len(corr_TR), 1)), keep_nan)
    else:
        rows_n = row_correlations(pred_Tn.T, true_Tn.T)[:, None]
        best_TR = np.where(np.isnan(corr_TR), 0.0 if keep_nan == "zero" else -np.inf, corr_TR)
        best_R = best_TR.max(axis=0)
        parts = [_mean(rows_n, counts_nR, keep_nan), np.where(np.isneginf(best_R), 0.0, best_R)]
        lists = [corr_TR[list(metric.lists[name])] for name in ("heg", "hvg")]
        parts += [_mean(corr_LR, np.ones((len(corr_LR), 1)), keep_nan) for corr_LR in lists]
        score_R = np.maximum(sum(parts) / 4, 0.0)
    return np.where(total_R > 1, score_R, np.nan)


def _weighted(
    pred_Bn: NDArray[Any], true_Bn: NDArray[Any], counts_nR: NDArray[np.float32]
) -> Floats:
    """(B, R) correlation of each output in each replicate, NaN where one side is constant."""
    sums, scales = {}, []
    sides = []
    for values_Bn in (pred_Bn, true_Bn):
        centred_Bn = values_Bn - values_Bn.mean(axis=1, dtype=np.float64)[:, None]
        scale_B = np.sqrt((centred_Bn**2).mean(axis=1))
        scales.append(scale_B)
        safe_B = np.where(scale_B > 0, scale_B, 1)
        # Centred and scaled in float64, so float32 products lose nothing that matters.
        sides.append((centred_Bn / safe_B[:, None]).astype(np.float32))
    x_Bn, y_Bn = sides
    products = {"x": x_Bn, "y": y_Bn, "xx": x_Bn * x_Bn, "yy": y_Bn * y_Bn, "xy": x_Bn * y_Bn}
    for name, values_Bn in products.items():
        sums[name] = (values_Bn @ counts_nR).astype(np.float64)
    total_R = np.maximum(counts_nR.sum(axis=0, dtype=np.float64), 1)
    cross = sums["xy"] - sums["x"] * sums["y"] / total_R
    spread_x = sums["xx"] - sums["x"] ** 2 / total_R
    spread_y = sums["yy"] - sums["y"] ** 2 / total_R
    norm = np.sqrt(np.maximum(spread_x, 0)) * np.sqrt(np.maximum(spread_y, 0))
    void = (norm <= 1e-6 * total_R) | ((scales[0] == 0) | (scales[1] == 0))[:, None]
    return np.clip(cross / np.where(void, np.nan, norm), -1, 1)


def _mean(values_XR: Floats, weight_XR: NDArray[Any], nan: str) -> Floats:
    """Weighted mean over the first axis; the undefined count as 0 or are dropped (none left: 0)."""
    kept = ~np.isnan(values_XR)
    weight = np.where(kept, weight_XR, 0.0) if nan == "drop" else np.broadcast_to(
        weight_XR, np.broadcast_shapes(values_XR.shape, weight_XR.shape))  # fmt: skip
    total = weight.sum(axis=0, dtype=np.float64)
    return (np.where(kept, values_XR, 0.0) * weight).sum(axis=0) / np.maximum(total, 1e-300)
