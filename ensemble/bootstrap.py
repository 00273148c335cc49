"""Bootstrap intervals of nested scores: how far a score would move with other patients.

What was chosen stays; the rows that score it are drawn again. Whole groups are drawn where there
are enough of them, else rows within their folds, which makes intervals too narrow when rows of a
group resemble each other: so it is said.

Shapes: T outputs, N rows, n rows of a fold, K folds, R replicates, S sets of predictions, B block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from search.metrics import (
    FittedMetric,
    gene_expr_value,
    gene_parts,
    mean_correlation,
    row_correlations,
)

REPLICATES = 200
FEWEST = 50  # replicates, where rows are so many that the interval is narrow anyway
_ROWS = 20_000_000  # rows drawn in all, above FEWEST
LEVEL = 0.95
MIN_GROUPS = 10  # fewer say too little about other groups
_SEED = 0
_BLOCK = 256  # outputs held in float64 at a time
_COUNTS = 1 << 24  # counts held at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The middle `LEVEL` of the replicates' scores."""

    low: float
    high: float
    unit: str  # what was drawn: groups, or rows within folds
    replicates: int


class Draws:
    """How often each row stands in each replicate."""

    def __init__(self, fold_N: NDArray[np.int64], group_N: NDArray[np.int64] | None) -> None:
        rows, groups = len(fold_N), 0 if group_N is None else int(group_N.max()) + 1
        self.replicates = min(REPLICATES, max(FEWEST, _ROWS // rows))
        self._group_N = group_N if groups >= MIN_GROUPS else None
        self._parts = [np.flatnonzero(fold_N == fold) for fold in np.unique(fold_N)]
        self._rows, self._groups = rows, groups
        self.unit = f"{groups} groups"
        if self._group_N is None:
            self.unit = "rows within folds" + (f"; {groups} groups are too few" if groups else "")

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """(R, N) counts, some replicates at a time; the same ones at every call."""
        rng = np.random.default_rng(_SEED)
        step = max(1, _COUNTS // self._rows)
        for start in range(0, self.replicates, step):
            size = min(step, self.replicates - start)
            yield np.stack([self._draw(rng) for _ in range(size)])

    def _draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        if self._group_N is not None:
            drawn_G = _resampled(self._groups, rng)
            return drawn_G[self._group_N]
        counts_N = np.empty(self._rows, dtype=np.float32)
        for rows in self._parts:
            counts_N[rows] = _resampled(len(rows), rng)
        return counts_N


def _resampled(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    drawn = rng.integers(count, size=count)
    return np.bincount(drawn, minlength=count).astype(np.float32)


def intervals(
    bench: Bench,
    preds_STN: Sequence[NDArray[np.float32]],
    thresholds_SKT: Sequence[Sequence[Floats | None]],
) -> tuple[list[Interval | None], Interval | None]:
    """An interval for each set of nested predictions, and one for the first minus the second,
    from the same replicates; None where no replicate can be scored."""
    pool = bench.pool
    draws = Draws(pool.fold_N, pool.group_N)
    rows_K = [bench.rows([fold]) for fold in bench.folds]
    true_K = [np.take(pool.true_TN, at, axis=1) for at in rows_K]
    pieces = []
    for counts_RN in draws.blocks():
        scores_SKR = [
            [
                _scores(pool.metric, np.take(pred_TN, at, axis=1), true_K[fold], counts_RN[:, at],
                        thresholds_KT[fold])
                for fold, at in enumerate(rows_K)
            ]
            for pred_TN, thresholds_KT in zip(preds_STN, thresholds_SKT, strict=True)
        ]  # fmt: skip
        pieces.append(_fold_mean(np.array(scores_SKR)))
    scores_SR = np.concatenate(pieces, axis=1)
    found = [_interval(score_R, draws.unit) for score_R in scores_SR]
    difference = _interval(scores_SR[0] - scores_SR[1], draws.unit) if len(found) > 1 else None
    return found, difference


def _fold_mean(scores_SKR: Floats) -> Floats:
    """(S, R) mean over the folds that have a score, NaN where none has."""
    seen_SR = (~np.isnan(scores_SKR)).sum(axis=1)
    sum_SR = np.nansum(scores_SKR, axis=1)
    return np.where(seen_SR > 0, sum_SR / np.maximum(seen_SR, 1), np.nan)


# Metrics of a mean over rows: what is averaged, and what is made of the mean.
_ROW_LOSSES: dict[str, tuple[Callable[..., Floats], Callable[..., Floats]]] = {
    "rmse": (np.square, np.sqrt),
    "mae": (np.abs, np.asarray),
}


def _interval(score_R: Floats, unit: str) -> Interval | None:
    kept = score_R[~np.isnan(score_R)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high), unit=unit, replicates=len(kept))


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
    if metric.name in _ROW_LOSSES:
        loss_of, link = _ROW_LOSSES[metric.name]
        loss_n = loss_of(pred_Tn.astype(np.float64) - true_Tn).mean(axis=0)
        total_R = counts_Rn.sum(axis=1, dtype=np.float64)
        mean_R = counts_Rn @ loss_n / np.maximum(total_R, 1)
        return np.where(total_R > 0, -link(mean_R), np.nan)
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
        score_R = mean_correlation(corr_TR.T, keep_nan)
    else:
        cells_n = row_correlations(pred_Tn.T, true_Tn.T)
        cells_R = mean_correlation(np.broadcast_to(cells_n, counts_Rn.shape), keep_nan, counts_Rn)
        score_R = gene_expr_value(cells_R, *gene_parts(corr_TR.T, keep_nan, metric.lists).values())
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
