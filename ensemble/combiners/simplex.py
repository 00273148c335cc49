"""The exact minimum of a quadratic over weights that are >= 0 and sum to 1, for many outputs.

An active-set method: solve on the members that have weight, drop the one that would fall below 0
first, take in the one that the slope asks for, until neither is left. At the beginning all that
would fall below 0 are dropped at once, which saves most steps. All outputs go together.

Shapes: T outputs, A outputs that are not done, m members.
"""

import numpy as np
from numpy.typing import NDArray

_BOLD = 10  # steps at the beginning that drop many; more could go in circles
_SLOPE = 1e-9  # slopes nearer than this share of the quadratic's size are equal

Floats = NDArray[np.float64]


def simplex_weights(quad_Tmm: Floats, pull_Tm: Floats, start_Tm: Floats | None = None) -> Floats:
    """(T, m) the w >= 0 with sum 1 that minimise w' Q w / 2 - pull' w; each Q is positive definite.

    `start` are weights to start from; near ones save steps.
    """
    outputs, members = pull_Tm.shape
    w_Tm = np.full((outputs, members), 1 / members) if start_Tm is None else start_Tm.copy()
    in_Tm = w_Tm > 0
    size_T = np.einsum("tmm->tm", quad_Tmm).max(axis=1)
    todo_A = np.arange(outputs)
    # The last step is never reached but for rounding; the weights are valid even then.
    for step in range(20 * members + 20):
        quad_Amm, pull_Am = quad_Tmm[todo_A], pull_Tm[todo_A]
        in_Am, w_Am = in_Tm[todo_A], w_Tm[todo_A]
        goal_Am, level_A = _on_support(quad_Amm, pull_Am, in_Am)
        low_Am = in_Am & (goal_Am < 0)
        blocked_A = low_Am.any(axis=1)
        if step < _BOLD:
            in_Am &= ~low_Am
            w_Am = np.where(in_Am, goal_Am, 0)
            w_Am /= w_Am.sum(axis=1, keepdims=True)
        else:  # as far as the first that reaches 0, which leaves
            share_Am = np.full(w_Am.shape, np.inf)
            np.divide(w_Am, w_Am - goal_Am, out=share_Am, where=low_Am)
            share_A, at_A = np.minimum(share_Am.min(axis=1), 1), np.flatnonzero(blocked_A)
            w_Am = w_Am + share_A[:, None] * (goal_Am - w_Am)
            in_Am[at_A, share_Am[at_A].argmin(axis=1)] = False
            w_Am = np.where(in_Am, np.maximum(w_Am, 0), 0)
        # Free: the one outside whose slope is lowest enters, when it is below that of the others.
        slope_Am = (quad_Amm @ w_Am[:, :, None])[:, :, 0] - pull_Am - level_A[:, None]
        slope_Am[in_Am] = np.inf
        enter_A = slope_Am.argmin(axis=1)
        enters_A = ~blocked_A & (slope_Am.min(axis=1) < -_SLOPE * size_T[todo_A])
        at_A = np.flatnonzero(enters_A)
        in_Am[at_A, enter_A[at_A]] = True
        w_Tm[todo_A], in_Tm[todo_A] = w_Am, in_Am
        todo_A = todo_A[blocked_A | enters_A]
        if not len(todo_A):
            break
    return w_Tm / w_Tm.sum(axis=1, keepdims=True)


def _on_support(
    quad_Amm: Floats, pull_Am: Floats, in_Am: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """The minimum with sum 1 over the members inside, of any sign, and the slope they share."""
    outputs, members = pull_Am.shape
    lhs = np.zeros((outputs, members + 1, members + 1))
    lhs[:, :members, :members] = quad_Amm * (in_Am[:, :, None] & in_Am[:, None, :])
    every = np.arange(members)
    lhs[:, every, every] += ~in_Am  # a member outside gets the equation w = 0
    lhs[:, :members, members] = -in_Am.astype(np.float64)
    lhs[:, members, :members] = in_Am
    rhs = np.ones((outputs, members + 1, 1))
    rhs[:, :members, 0] = pull_Am * in_Am
    solved = np.linalg.solve(lhs, rhs)[:, :, 0]
    return solved[:, :members], solved[:, members]
