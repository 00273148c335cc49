"""Logistic regression of each output on the members' logits, all outputs together.

Newton's method with step halving, in blocks of outputs; coefficients are pulled towards given ones,
the intercept is free.

Shapes: m members, S strengths, T outputs, n rows, B outputs of a block, e = m + 1: members, then 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.engines.threads import each
from ensemble.transforms import transformed

_VALUES = 2_000_000  # float64 values held at a time, several times over, per thread
_STEPS = 50  # about five are needed
_HALVINGS = 30
_ENOUGH = 1e-8  # a step that promises less is the last; log-loss
_FIXED = 1e9  # a pull that holds coefficients where they are

Floats = NDArray[np.float64]


class LogisticStack:
    """Fits on the rows of some folds; folds count alike."""

    def __init__(self, bench: Bench, members: Sequence[int]) -> None:
        self._bench, self._members = bench, tuple(members)

    def path(
        self, folds: Sequence[int], common_m: Floats, strengths: Sequence[float]
    ) -> NDArray[np.float64]:
        """(S, T, e) coefficients for each strength, strongest first, pulled towards `common_m`."""
        rows_n = self._bench.rows(folds)
        fold_n = self._bench.pool.fold_N[rows_n]
        share_n = 1 / (np.bincount(fold_n)[fold_n] * len(folds))
        goal_e = np.append(common_m, 0.0)

        def block(at: slice) -> Floats:
            x_Bne, y_Bn = self._read(at, rows_n)
            pull_B, live_B = _pull(x_Bne, y_Bn, share_n)
            theta_Be, path = np.tile(goal_e, (len(y_Bn), 1)), []
            for strength in strengths:
                pull_Be = np.zeros(theta_Be.shape)
                pull_Be[:, :-1] = strength * pull_B[:, None]
                pull_Be[~live_B] = _FIXED
                theta_Be = _newton(x_Bne, y_Bn, share_n, pull_Be, goal_e, theta_Be)
                path.append(theta_Be)
            return np.stack(path)

        return np.concatenate(each(block, self._blocks(len(rows_n))), axis=1)

    def losses(self, theta_STe: Floats, fold: int) -> Floats:
        """(S,) log-loss on one fold, the mean over outputs."""
        rows_n = self._bench.rows([fold])

        def block(at: slice) -> Floats:
            x_Bne, y_Bn = self._read(at, rows_n)
            return np.array(
                [_losses(x_Bne, y_Bn, t_Te[at]).mean(axis=1).sum() for t_Te in theta_STe]
            )

        return np.sum(each(block, self._blocks(len(rows_n))), axis=0) / theta_STe.shape[1]

    def _blocks(self, rows: int) -> list[slice]:
        step = max(1, _VALUES // (rows * (len(self._members) + 1)))
        outputs = len(self._bench.pool.true_TN)
        return [slice(start, min(start + step, outputs)) for start in range(0, outputs, step)]

    def _read(self, at: slice, rows_n: NDArray[np.int64]) -> tuple[Floats, Floats]:
        y_Bn = np.take(self._bench.pool.true_TN[at], rows_n, axis=1).astype(np.float64)
        x_Bne = np.ones((*y_Bn.shape, len(self._members) + 1))
        for i, member in enumerate(self._members):
            pred_Bn = np.take(self._bench.preds[member][at], rows_n, axis=1)
            x_Bne[:, :, i] = transformed(pred_Bn.astype(np.float64), "logit")
        return x_Bne, y_Bn


def _pull(x_Bne: Floats, y_Bn: Floats, share_n: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """(B,) the size of the log-loss's curvature in a coefficient, which strengths are multiples
    of, and whether there is anything to fit: both classes, and members that vary."""
    mean_Be = np.einsum("bne,n->be", x_Bne, share_n)
    spread_B = (np.einsum("bne,bne,n->be", x_Bne, x_Bne, share_n) - mean_Be**2)[:, :-1].mean(axis=1)
    positive_B = y_Bn @ share_n
    live_B = (y_Bn.min(axis=1) < y_Bn.max(axis=1)) & (spread_B > 1e-12)
    return np.maximum(positive_B * (1 - positive_B) * spread_B, 0), live_B


def _losses(x_Bne: Floats, y_Bn: Floats, theta_Be: Floats) -> Floats:
    """(B, n) log-loss of each row."""
    z_Bn = (x_Bne @ theta_Be[:, :, None])[:, :, 0]
    return np.logaddexp(0, z_Bn) - y_Bn * z_Bn


def _newton(
    x_Bne: Floats, y_Bn: Floats, share_n: Floats, pull_Be: Floats, goal_e: Floats, theta_Be: Floats
) -> Floats:
    """(B, e) the least of log-loss + pull (theta - goal)^2 / 2 of each output, from `theta`."""

    def cost(x_Bne: Floats, y_Bn: Floats, pull_Be: Floats, theta_Be: Floats) -> Floats:
        return (
            _losses(x_Bne, y_Bn, theta_Be) @ share_n
            + (pull_Be * (theta_Be - goal_e) ** 2).sum(axis=1) / 2
        )

    theta_Be = theta_Be.copy()
    ridge_ee = 1e-10 * np.eye(len(goal_e))
    cost_B = cost(x_Bne, y_Bn, pull_Be, theta_Be)
    for _ in range(_STEPS):
        z_Bn = (x_Bne @ theta_Be[:, :, None])[:, :, 0]
        p_Bn = 0.5 * (1 + np.tanh(z_Bn / 2))
        slope_Be = ((p_Bn - y_Bn) * share_n)[:, None, :] @ x_Bne
        slope_Be = slope_Be[:, 0] + pull_Be * (theta_Be - goal_e)
        curve_Bn = p_Bn * (1 - p_Bn) * share_n
        curve_Bee = x_Bne.transpose(0, 2, 1) @ (x_Bne * curve_Bn[:, :, None])
        curve_Bee += pull_Be[:, :, None] * np.eye(len(goal_e)) + ridge_ee
        step_Be = np.linalg.solve(curve_Bee, slope_Be[:, :, None])[:, :, 0]
        open_B = (step_Be * slope_Be).sum(axis=1) > _ENOUGH
        if not open_B.any():
            break
        size_B = open_B.astype(np.float64)
        for _ in range(_HALVINGS):
            tried_Be = theta_Be - size_B[:, None] * step_Be
            tried_B = cost(x_Bne, y_Bn, pull_Be, tried_Be)
            worse_B = tried_B > cost_B
            if not worse_B.any():
                break
            size_B[worse_B] /= 2
        theta_Be = np.where((tried_B <= cost_B)[:, None], tried_Be, theta_Be)
        cost_B = np.minimum(tried_B, cost_B)
    return theta_Be
