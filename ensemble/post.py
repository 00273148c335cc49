"""What is fitted after a blend, on the same rows: thresholds, a temperature, or shrinkage; each
only where the metric can gain from it.

Shapes: T outputs, n rows of the folds given, K of those folds, C classes, B a block of rows or
outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend, Post
from ensemble.engines.threads import each
from ensemble.transforms import temper
from search.metrics import FittedMetric, best_thresholds, is_constant, mean_correlation

TEMPERATURES = (0.2, 5.0)
LEAST_GAIN = 1e-4  # of the loss; a temperature that gains less is left at 1
SHRINKS = (0.25, 1.5)
LEAST_SHRINK_GAIN = 1e-5  # of the score
_TOLERANCE = 1e-3  # of the logarithm of a temperature, and of shrinkage
_BLOCK = 1 << 18  # float64 values that a thread works on at a time
_GROUP = 16  # factors of 1e-15 and more, so that a product of these does not underflow

Floats = NDArray[np.float64]


def fit_post(bench: Bench, blend: Blend, folds: Sequence[int]) -> Post:
    """What is best to follow a blend on the rows of these folds, which alone are read."""
    metric, rows_n = bench.pool.metric, bench.rows(folds)
    probable = metric.name == "log_loss" and blend.task_type != "regression"
    if not (metric.fits_thresholds or probable or metric.name == "gene_expr"):
        return Post()
    pred_Tn = bench.predict(replace(blend, post=Post()), folds)
    true_Tn = np.take(bench.pool.true_TN, rows_n, axis=1)
    fold_n = bench.pool.fold_N[rows_n]
    if metric.fits_thresholds:
        return Post(thresholds_T=best_thresholds(metric, pred_Tn, true_Tn, fold_n))
    if probable:
        return Post(temperature=best_temperature(metric, pred_Tn, true_Tn, fold_n, blend.task_type))
    mean_T = true_Tn.mean(axis=1, dtype=np.float64)
    shrink = best_shrink(metric, pred_Tn, true_Tn, fold_n, mean_T)
    return Post() if shrink == 1.0 else Post(shrink=shrink, mean_T=mean_T)


def best_temperature(
    metric: FittedMetric,
    pred_Tn: NDArray[np.float32],
    true_Tn: NDArray[Any],
    fold_n: NDArray[np.int64],
    task_type: str,
) -> float:
    """The temperature with the least mean over folds of the log-loss, 1 where it gains little.

    The loss is convex in 1 / t, but where probabilities are clipped, so one valley is searched.
    """
    masks = [fold_n == k for k in np.unique(fold_n)]
    eps = float(metric.args["eps"])
    rivals = [_rivals(pred_Tn[:, k], true_Tn[:, k], task_type) for k in masks]

    def loss(log_t: float) -> float:
        share = np.exp(-log_t)
        return float(np.mean([_mean_surprise(rivals_Cn, share, eps) for rivals_Cn in rivals]))

    def stored_loss(stored_Tn: NDArray[np.float32]) -> float:
        scores = [metric.score(stored_Tn[:, k], true_Tn[:, k]).value for k in masks]
        return -float(np.mean(scores))

    low, high = np.log(TEMPERATURES)
    temperature = float(np.exp(lowest(loss, low, high)))
    # Decided as it is stored: float32 may round what is almost sure to quite sure.
    tempered_Tn = np.empty_like(pred_Tn)
    for at in _blocks(pred_Tn.shape[1], len(pred_Tn)):
        tempered_Tn[:, at] = temper(pred_Tn[:, at].astype(np.float64), temperature, task_type)
    before = stored_loss(pred_Tn)
    return temperature if before - stored_loss(tempered_Tn) >= LEAST_GAIN * before > 0 else 1.0


def _rivals(pred_Tn: NDArray[np.float32], true_Tn: NDArray[Any], task_type: str) -> Floats:
    """(C, values) ln(p of another class / p of the true one). The probability of what is true is
    1 / (1 + sum of exp(that / t)) at temperature t, whatever the probabilities' sum."""
    pred = pred_Tn.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if task_type != "multiclass":
            given = np.where(true_Tn == 1, pred, 1 - pred).reshape(1, -1)
            return np.log1p(-given) - np.log(given)
        label_1n = true_Tn.argmax(axis=0)[None]
        given_1n = np.take_along_axis(pred, label_1n, axis=0)
        rivals_Cn = np.log(pred) - np.log(given_1n)
    np.put_along_axis(rivals_Cn, label_1n, -np.inf, axis=0)
    rivals_Cn[:, given_1n[0] == 0] = np.inf  # stays 0 at every temperature
    return rivals_Cn


def _mean_surprise(rivals_Cn: Floats, share: float, eps: float) -> float:
    """Mean of -ln of the probability of what is true, the rivals multiplied by `share`."""
    group = _GROUP if eps**_GROUP > 1e-300 else 1

    def surprise(at: slice) -> float:
        block_CB = rivals_Cn[:, at] * share
        with np.errstate(over="ignore"):
            given_B = 1 / (1 + np.exp(block_CB, out=block_CB).sum(axis=0))
        np.maximum(given_B, eps, out=given_B)
        # Logarithms are the cost, so one is taken of each product of a group.
        whole = len(given_B) // group * group
        logs = np.log(np.multiply.reduce(given_B[:whole].reshape(group, -1), axis=0)).sum()
        return -float(logs + np.log(given_B[whole:]).sum())

    return sum(each(surprise, _blocks(rivals_Cn.shape[1], len(rivals_Cn)))) / rivals_Cn.shape[1]


def best_shrink(
    metric: FittedMetric,
    pred_Tn: NDArray[np.float32],
    true_Tn: NDArray[Any],
    fold_n: NDArray[np.int64],
    mean_T: Floats,
) -> float:
    """The shrink towards the genes' means with the best gene_expr, 1 where it gains little.

    Genes' correlations do not feel it; those of cells, a quarter of the score, do.
    """
    cells = _Cells(pred_Tn, true_Tn, mean_T)
    masks = [fold_n == k for k in np.unique(fold_n)]

    def quarter(shrink: float) -> float:
        corr_n, nan = cells.correlations(shrink), str(metric.args["nan"])
        return float(np.mean([mean_correlation(corr_n[k], nan) for k in masks])) / 4

    grid = np.linspace(*SHRINKS, 26)
    best = int(np.argmax([quarter(shrink) for shrink in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    shrink = lowest(lambda s: -quarter(s), low, high)
    return shrink if quarter(shrink) - quarter(1.0) >= LEAST_SHRINK_GAIN else 1.0


class _Cells:
    """The inner products over genes from which each cell's correlation follows at any shrink:
    of the means m, the prediction's deviation d from them, and the truth y; all centred."""

    def __init__(self, pred_Tn: NDArray[np.float32], true_Tn: NDArray[Any], mean_T: Floats) -> None:
        self._genes = len(pred_Tn)
        self._middle = float(mean_T.mean())
        # One number is taken off every gene: it changes no correlation, and sums stay small.
        mean_T = mean_T - self._middle

        def products(at: slice) -> Floats:
            mean_B1 = mean_T[at, None]
            d_Bn = pred_Tn[at] - (mean_B1 + self._middle)
            y_Bn = true_Tn[at] - np.float64(self._middle)
            pairs = (d_Bn, d_Bn), (d_Bn, y_Bn), (y_Bn, y_Bn)
            return np.stack([
                d_Bn.sum(axis=0), y_Bn.sum(axis=0), mean_T[at] @ d_Bn, mean_T[at] @ y_Bn,
                *(np.einsum("bn,bn->n", a, b) for a, b in pairs),
            ])  # fmt: skip

        parts = each(products, _blocks(self._genes, pred_Tn.shape[1]))
        d_n, y_n, self._md_n, self._my_n, dd_n, dy_n, yy_n = np.sum(parts, axis=0)
        self._mm = float(mean_T @ mean_T)  # the m are centred: their products need no more
        self._d_mean_n, y_mean_n = d_n / self._genes, y_n / self._genes
        self._dd_n = dd_n - d_n * self._d_mean_n
        self._dy_n = dy_n - d_n * y_mean_n
        self._yy_n = yy_n - y_n * y_mean_n
        self._void_n = is_constant(self._yy_n, y_mean_n + self._middle, self._genes)

    def correlations(self, shrink: float) -> Floats:
        """(n,) of m + shrink d with y, NaN where either is constant."""
        square_n = self._mm + 2 * shrink * self._md_n + shrink**2 * self._dd_n
        mean_n = self._middle + shrink * self._d_mean_n
        void_n = self._void_n | is_constant(square_n, mean_n, self._genes)
        norm_n = np.sqrt(np.where(void_n, np.nan, square_n)) * np.sqrt(
            np.where(void_n, np.nan, self._yy_n)
        )
        return np.clip((self._my_n + shrink * self._dy_n) / norm_n, -1, 1)


def lowest(of: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest between two points, by golden section."""
    ratio = (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = of(left), of(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = of(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = of(right)
    # The valley may lie at an end, which the section comes near and never reaches.
    return min((left, right, low, high), key=of)


def _blocks(count: int, each_holds: int) -> list[slice]:
    size = max(1, _BLOCK // max(each_holds, 1))
    return [slice(i, i + size) for i in range(0, count, size)]
