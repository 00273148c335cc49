"""Metrics of correlation: gene_expr and pearson.

Shapes: T outputs, N rows, R and C the rows and columns of any matrix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.metrics.formula import BLOCK, Formula, Lists, Rows, Score

# A vector whose spread is below this share of its own size (root mean square) is constant: what
# varies in it is the rounding of float32, and its correlation would be a correlation of noise.
CONSTANT = 1e-6


def row_correlations(a_RC: NDArray[Any], b_RC: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson correlation of each row of `a` with the same row of `b`, NaN where either is
    constant (see `is_constant`). Sums are float64, centred before they are multiplied."""
    corr_R = np.empty(len(a_RC))
    for start in range(0, len(a_RC), BLOCK):
        rows = slice(start, start + BLOCK)
        a, a_mean, a_ss = centred(a_RC[rows])
        b, b_mean, b_ss = centred(b_RC[rows])
        columns = a.shape[1]
        void = is_constant(a_ss, a_mean, columns) | is_constant(b_ss, b_mean, columns)
        cross = np.einsum("rc,rc->r", a, b)
        # The two roots are taken apart: their product under one root would underflow sooner.
        norm = np.where(void, np.nan, np.sqrt(a_ss) * np.sqrt(b_ss))
        corr_R[rows] = np.clip(cross / norm, -1, 1)
    return corr_R


def is_constant(
    centred_ss: NDArray[np.float64], mean: NDArray[np.float64], count: int | NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether vectors of `count` values are constant up to float32 rounding, from their centred
    sum of squares and their mean, so that an engine that keeps only Grams can apply the rule."""
    return centred_ss <= CONSTANT**2 * (centred_ss + count * mean**2)


def centred(
    x_RC: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    # C order whatever comes in: the order of summation, so the last bit, depends on the layout.
    x = np.array(x_RC, dtype=np.float64, order="C")
    mean = x.mean(axis=1)
    x -= mean[:, None]
    return x, mean, np.einsum("rc,rc->r", x, x)


def mean_correlation(
    corr: NDArray[np.float64], nan: str, weight: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Mean over the last axis, weighted where weights are given; the undefined ones count as 0
    or, with nan "drop", do not count (none left: 0)."""
    void = np.isnan(corr)
    if weight is None and not void.any():
        return np.asarray(corr.mean(axis=-1))
    weight = np.ones(corr.shape) if weight is None else np.asarray(weight, dtype=np.float64)
    total = np.where(void, 0.0, weight).sum(axis=-1) if nan == "drop" else weight.sum(axis=-1)
    sums = (np.where(void, 0.0, corr) * weight).sum(axis=-1)
    return np.asarray(sums / np.where(total > 0, total, 1))


def best_correlation(corr: NDArray[np.float64], nan: str) -> NDArray[np.float64]:
    """Highest one over the last axis, by the same rule."""
    best = np.where(np.isnan(corr), 0.0 if nan == "zero" else -np.inf, corr).max(axis=-1)
    return np.where(np.isneginf(best), 0.0, best)


def _top(stat_T: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Indices of the `count` highest values (all, when there are fewer), highest first; ties go
    to the earlier gene."""
    return tuple(int(i) for i in np.argsort(-stat_T, kind="stable")[:count])


def _fit_gene_expr(targets_TN: NDArray[Any], args: Mapping[str, Any]) -> Lists:
    mean = targets_TN.mean(axis=1, dtype=np.float64)
    var = np.concatenate(
        [centred(targets_TN[i : i + BLOCK])[2] for i in range(0, len(targets_TN), BLOCK)]
    )
    var /= targets_TN.shape[1]
    spread = var
    if args["hvg_stat"] == "cv":
        # Batch-corrected genes can have a mean of 0 or below, where std / mean says nothing.
        spread = np.full_like(var, -np.inf)
        np.divide(np.sqrt(var), mean, out=spread, where=mean > 0)
    return {"heg": _top(mean, args["heg_n"]), "hvg": _top(spread, args["hvg_n"])}


def _score_gene_expr(rows: Rows) -> Score:
    """The score of the Dacon competition 236382 (MAI): its four parts are those that BLEEP
    (Xie et al. 2023) prints; the list sizes are unpublished, BLEEP's 50 and 50 are the default."""
    nan = rows.args["nan"]
    genes = row_correlations(rows.pred_TN, rows.true_TN)
    cells = row_correlations(rows.pred_TN.T, rows.true_TN.T)
    parts = {
        "mean_corr_cells": float(mean_correlation(cells, nan)),
        **{name: float(v) for name, v in gene_parts(genes, nan, rows.lists).items()},
    }
    value = float(gene_expr_value(*parts.values()))
    return Score(value, {**parts, "mean_corr_genes": float(mean_correlation(genes, nan))})


def gene_parts(
    genes_XT: NDArray[np.float64], nan: str, lists: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The parts of gene_expr that come from the genes' correlations, over the last axis."""
    return {
        "max_corr_genes": best_correlation(genes_XT, nan),
        "heg_corr": mean_correlation(genes_XT[..., list(lists["heg"])], nan),
        "hvg_corr": mean_correlation(genes_XT[..., list(lists["hvg"])], nan),
    }


def gene_expr_value(cells: Any, best: Any, heg: Any, hvg: Any) -> NDArray[np.float64]:
    """max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0); the mean over all
    genes is reported beside it and takes no part in it."""
    return np.maximum((cells + best + heg + hvg) / 4, 0.0)


def _score_pearson(rows: Rows) -> Score:
    corr_T = row_correlations(rows.pred_TN, rows.true_TN)
    value = float(mean_correlation(corr_T, rows.args["nan"]))
    return Score(value, {"mean_corr_genes": value})


FORMULAS = {
    "gene_expr": Formula(
        label="gene_expr",
        score=_score_gene_expr,
        fit=_fit_gene_expr,
        lists=("heg", "hvg"),
        defaults={"heg_n": 50, "hvg_n": 50, "hvg_stat": "var", "nan": "zero"},
    ),
    "pearson": Formula(label="pearson", score=_score_pearson, defaults={"nan": "zero"}),
}
