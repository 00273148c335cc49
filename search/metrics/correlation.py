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


def _mean(corr: NDArray[np.float64], nan: str) -> float:
    """Mean of correlations; the undefined ones count as 0 or are dropped (none left: 0)."""
    kept = np.nan_to_num(corr) if nan == "zero" else corr[~np.isnan(corr)]
    return float(kept.mean()) if len(kept) else 0.0


def _max(corr: NDArray[np.float64], nan: str) -> float:
    kept = np.nan_to_num(corr) if nan == "zero" else corr[~np.isnan(corr)]
    return float(kept.max()) if len(kept) else 0.0


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
        "mean_corr_cells": _mean(cells, nan),
        "max_corr_genes": _max(genes, nan),
        "heg_corr": _mean(genes[list(rows.lists["heg"])], nan),
        "hvg_corr": _mean(genes[list(rows.lists["hvg"])], nan),
    }
    return gene_expr_score(parts, mean_corr_genes=_mean(genes, nan))


def gene_expr_score(parts: Mapping[str, float], mean_corr_genes: float) -> Score:
    """max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0); the mean over all
    genes is reported beside it and takes no part in it."""
    value = max(sum(parts.values()) / 4, 0.0)
    return Score(value, {**parts, "mean_corr_genes": mean_corr_genes})


def _score_pearson(rows: Rows) -> Score:
    value = _mean(row_correlations(rows.pred_TN, rows.true_TN), rows.args["nan"])
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
