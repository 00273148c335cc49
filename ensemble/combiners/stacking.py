"""Stacking: a small model of each output on the members' predictions of it. Weights may be
negative and need not sum to 1, so it can undo a bias that all members share.

Coefficients are pulled towards the convex weights of all outputs together, not towards 0: with
few rows it is a weighted mean. How strongly is chosen on folds left out by what the fit itself
minimises, squared error or log-loss: smoother than most metrics, and defined on every fold.

Shapes: m members, T outputs, S strengths, N rows, e = m + 2: members, truth, 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.convex import convex_weights
from ensemble.combiners.logistic import LogisticStack
from ensemble.combiners.moments import output_moments
from ensemble.combiners.strength import best_strength
from ensemble.combiners.tasks import no_probabilities
from ensemble.members import Pool

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # times the members' variance
LOGISTIC_STRENGTHS = (10.0, 1.0, 0.1, 0.01, 0.001)  # times the information at the start
MOST = 10  # members

Floats = NDArray[np.float64]


def refuses_stacking(pool: Pool) -> str | None:
    if pool.task_type == "regression":
        return None
    return no_probabilities(pool, "stacking")


def stacking(bench: Bench, folds: Sequence[int]) -> Blend:
    """Ridge regression, or logistic regression of each class on the members' logits."""
    members = bench.budget.fill(bench.candidates(folds))[:MOST]
    fit = _ridge if bench.pool.task_type == "regression" else _logistic
    coef_Tm, intercept_T = fit(bench, members, folds)
    share_m = np.abs(coef_Tm).mean(axis=0)
    share_m = share_m / share_m.sum() if share_m.any() else np.full(len(members), 1 / len(members))
    order = np.argsort(-share_m, kind="stable").tolist()
    transform, link = {
        "regression": ("identity", "identity"),
        "multiclass": ("logit", "sigmoid_normalise"),
    }.get(bench.pool.task_type, ("logit", "sigmoid"))
    return Blend(
        method="stacking",
        task_type=bench.pool.task_type,
        members=tuple(members[i] for i in order),
        weights=tuple(share_m[order].tolist()),
        transform=transform,
        coef_mT=np.ascontiguousarray(coef_Tm.T[order]),
        intercept_T=intercept_T,
        link=link,
    )


def _ridge(bench: Bench, members: Sequence[int], folds: Sequence[int]) -> tuple[Floats, Floats]:
    """(T, m) coefficients and (T,) intercepts."""
    moments = output_moments(bench, members, folds)
    unit_T = moments.unit_T()

    def losses(others: Sequence[int], fold: int) -> Floats:
        second_Tee = moments.of([fold])
        common_m, fitted_Tee = convex_weights(bench, members, others), moments.of(others)
        return np.array(
            [_squared(_solve(fitted_Tee, common_m, s), second_Tee) @ unit_T for s in STRENGTHS]
        )

    strength = best_strength(STRENGTHS, folds, losses)
    solved_Te = _solve(moments.of(folds), convex_weights(bench, members, folds), strength)
    coef_Tm, offset_T = solved_Te[:, :-2], solved_Te[:, -1]
    return coef_Tm, offset_T + moments.centre_T * (1 - coef_Tm.sum(axis=1))


def _solve(second_Tee: Floats, common_m: Floats, strength: float) -> Floats:
    """(T, e) coefficients of members, -1 for the truth, intercept: what is multiplied with
    (members, truth, 1) to give the error."""
    m = len(common_m)
    mean_Te = second_Tee[:, :, m + 1]
    cov_Tee = second_Tee - mean_Te[:, :, None] * mean_Te[:, None, :]
    size_T = np.maximum(np.einsum("tmm->t", cov_Tee[:, :m, :m]) / m, 0)
    pull_T = strength * np.where(size_T > 0, size_T, 1)
    lhs_Tmm = cov_Tee[:, :m, :m] + pull_T[:, None, None] * np.eye(m)
    rhs_Tm = cov_Tee[:, :m, m] + pull_T[:, None] * common_m
    coef_Tm = np.linalg.solve(lhs_Tmm, rhs_Tm[:, :, None])[:, :, 0]
    solved_Te = np.empty(mean_Te.shape)
    solved_Te[:, :m], solved_Te[:, m] = coef_Tm, -1
    solved_Te[:, m + 1] = mean_Te[:, m] - (coef_Tm * mean_Te[:, :m]).sum(axis=1)
    return solved_Te


def _squared(solved_Te: Floats, second_Tee: Floats) -> Floats:
    """(T,) mean squared error."""
    return np.einsum("te,tef,tf->t", solved_Te, second_Tee, solved_Te, optimize=True)


def _logistic(bench: Bench, members: Sequence[int], folds: Sequence[int]) -> tuple[Floats, Floats]:
    """(T, m) coefficients and (T,) intercepts; with several classes, each against the rest."""
    stack = LogisticStack(bench, members)

    def losses(others: Sequence[int], fold: int) -> Floats:
        common_m = convex_weights(bench, members, others)
        return stack.losses(stack.path(others, common_m, LOGISTIC_STRENGTHS), fold)

    strength = best_strength(LOGISTIC_STRENGTHS, folds, losses)
    theta_Te = stack.path(folds, convex_weights(bench, members, folds), [strength])[0]
    return theta_Te[:, :-1], theta_Te[:, -1]
