"""Ridge regression on frozen features: one decomposition serves all strengths.

Shapes: N rows, R features, T outputs, Q rows of an inner fold.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from search.train.probe_rows import Choice, ProbeRows, best, inner_folds, principal

# Penalties per row, on features of variance 1; the strongest first, so that it wins a tie.
STRENGTHS = np.logspace(4, -5, 100)
_FOLDS = 5
_FREE = 1e-9  # least part of a row's prediction that does not come from the row itself


def fit_ridge(rows: ProbeRows) -> Choice:
    """The strength with the best inner score: leave-one-out, or folds of whole groups."""
    x_NR, y_NT = rows.x_NR, rows.y_NT
    alphas = [float(strength) * len(x_NR) for strength in STRENGTHS]
    basis_RR, square_R = principal(x_NR)
    x_NR = x_NR @ basis_RR
    if rows.group_N is None:
        inner = leave_one_out(x_NR, square_R, y_NT, alphas)
    else:
        fold_N = torch.from_numpy(inner_folds(rows.group_N, _FOLDS)).to(rows.device)
        inner = leave_folds_out(x_NR, y_NT, fold_N, alphas)
    judge = rows.judge()
    table = [({"alpha": a}, judge(pred_NT)) for a, pred_NT in zip(alphas, inner, strict=True)]
    settings = table[best(table)][0]
    mean_T = y_NT.mean(dim=0)
    cross_RT = x_NR.T @ (y_NT - mean_T)
    weight_RT = basis_RR @ (cross_RT / (square_R + settings["alpha"])[:, None])
    weight_TF, bias_T = rows.linear(weight_RT, mean_T)
    return Choice(settings=settings, tensors={"weight": weight_TF, "bias": bias_T}, table=table)


def leave_one_out(
    x_NR: Tensor, square_R: Tensor, y_NT: Tensor, alphas: list[float]
) -> Iterator[Tensor]:
    """For each penalty, what the fit without a row predicts for it (N, T), exactly: from the hat
    matrix of the fit with all rows, whose intercept is free. The columns of x are orthogonal,
    centred, and have the sums of squares `square_R`."""
    mean_T = y_NT.mean(dim=0)
    unit_NR = x_NR / square_R.sqrt()
    unit_squares_NR = unit_NR.square()
    cross_RT = unit_NR.T @ (y_NT - mean_T)
    for alpha in alphas:
        kept_R = square_R / (square_R + alpha)
        own_N1 = (1 / len(x_NR) + unit_squares_NR @ kept_R)[:, None]
        fitted_NT = mean_T + unit_NR @ (kept_R[:, None] * cross_RT)
        yield (fitted_NT - own_N1 * y_NT) / (1 - own_N1).clamp(min=_FREE)


def leave_folds_out(
    x_NR: Tensor, y_NT: Tensor, fold_N: Tensor, alphas: list[float]
) -> Iterator[Tensor]:
    """For each penalty, what the fits without a fold predict for its rows (N, T), exactly: from
    the Gram matrix of all rows less that of the fold."""
    gram_RR, cross_RT = x_NR.T @ x_NR, x_NR.T @ y_NT
    x_sum_R, y_sum_T = x_NR.sum(dim=0), y_NT.sum(dim=0)
    parts = []
    for fold in fold_N.unique():
        out = (fold_N == fold).nonzero().flatten()
        x_QR, y_QT = x_NR[out], y_NT[out]
        count = len(x_NR) - len(out)
        x_mean_R = (x_sum_R - x_QR.sum(dim=0)) / count
        y_mean_T = (y_sum_T - y_QT.sum(dim=0)) / count
        without_RR = gram_RR - x_QR.T @ x_QR - count * torch.outer(x_mean_R, x_mean_R)
        square_R, basis_RR = torch.linalg.eigh(without_RR)
        cross = cross_RT - x_QR.T @ y_QT - count * torch.outer(x_mean_R, y_mean_T)
        turned_QR = (x_QR - x_mean_R) @ basis_RR
        parts.append((out, turned_QR, square_R.clamp(min=0), basis_RR.T @ cross, y_mean_T))
    for alpha in alphas:
        pred_NT = torch.empty_like(y_NT)
        for out, turned_QR, square_R, turned_RT, y_mean_T in parts:
            pred_NT[out] = y_mean_T + turned_QR @ (turned_RT / (square_R + alpha)[:, None])
        yield pred_NT
