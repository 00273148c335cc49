"""Stratified folds: each label is spread over the folds as evenly as their sizes allow.

Units are rows, or groups of rows that stay together. Shapes: U units, L labels, K folds, S kinds
of units (those of one kind have the same labels and size).
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Finding the best exchange compares each kind of unit with each. Where there are more kinds there
# are so many units that the first assignment is even enough.
_KINDS = 2500
_DIGITS = 9  # costs that differ by less are equal, on every machine


def stratify(counts_UL: Ints, size_U: Ints, k: int) -> Ints:
    """(U,) the fold of each unit; `counts_UL` says how many of its rows have each label, `size_U`
    how many it has. Equal choices go to the earlier unit and the lower fold.

    First the iterative stratification of Sechidis et al. 2011: label by label, the rarest of those
    left first, each unit goes to the fold that has least of the label among those with room for it.
    Labels that come along with rarer ones may lie unevenly then, so units are exchanged between
    two folds as long as that helps.
    """
    fold_U = _assign(counts_UL, size_U, k)
    _exchange(np.column_stack([counts_UL, size_U]), fold_U, k)
    return fold_U


def _assign(counts_UL: Ints, size_U: Ints, k: int) -> Ints:
    rows = int(size_U.sum())
    # The same for all, so that an empty fold has most room and is preferred to any other. Single
    # rows fill all room there is: then it is what the fold will have.
    room_K = np.full(k, -(-rows // k))
    if (size_U == 1).all():
        room_K[rows % k :] = rows // k
    fold_U = np.full(len(size_U), -1)
    have_LK = np.zeros((counts_UL.shape[1], k), dtype=np.int64)
    left_L = counts_UL.sum(axis=0)
    share_L = 1 / np.maximum(left_L, 1)

    def put(unit: int, has_K: Ints) -> None:
        fits = room_K >= size_U[unit]
        folds = np.flatnonzero(fits if fits.any() else room_K == room_K.max())
        its = np.flatnonzero(counts_UL[unit])
        others_K = (share_L[its] @ have_LK[its]).round(_DIGITS)
        best = folds[np.lexsort((-room_K[folds], others_K[folds], has_K[folds]))[0]]
        fold_U[unit] = best
        room_K[best] -= size_U[unit]
        have_LK[:, best] += counts_UL[unit]
        left_L[:] -= counts_UL[unit]

    while left_L.any():
        label = int(np.where(left_L > 0, left_L, rows + 1).argmin())
        units = np.flatnonzero((fold_U < 0) & (counts_UL[:, label] > 0))
        for unit in units[np.lexsort((-size_U[units], -counts_UL[units, label]))].tolist():
            put(unit, have_LK[label])
    for unit in np.argsort(-size_U, kind="stable").tolist():
        if fold_U[unit] < 0:
            put(unit, np.zeros(k, dtype=np.int64))
    return fold_U


def _exchange(counts_UL: Ints, fold_U: Ints, k: int) -> None:
    """Exchange units of two folds, the best exchange first, while the sum of squares of labels per
    fold falls, each label's divided by its total. Changes `fold_U`."""
    kinds_SL, kind_U = np.unique(counts_UL, axis=0, return_inverse=True)
    if len(kinds_SL) > _KINDS:
        return
    share_L = 1 / np.maximum(counts_UL.sum(axis=0), 1)
    length_S = np.square(kinds_SL) @ share_L
    apart_SS = length_S[:, None] + length_S - 2 * (kinds_SL * share_L) @ kinds_SL.T
    have_SK = np.zeros((len(kinds_SL), k), dtype=np.int64)
    np.add.at(have_SK, (kind_U, fold_U), 1)

    def improve(a: int, b: int) -> bool:
        more_S = kinds_SL @ (share_L * (kinds_SL.T @ (have_SK[:, a] - have_SK[:, b])))
        from_a, from_b = np.flatnonzero(have_SK[:, a]), np.flatnonzero(have_SK[:, b])
        cost_ab = apart_SS[np.ix_(from_a, from_b)] - more_S[from_a][:, None] + more_S[from_b]
        cost_ab = cost_ab.round(_DIGITS)
        best_a, best_b = np.unravel_index(cost_ab.argmin(), cost_ab.shape)
        if cost_ab[best_a, best_b] >= 0:
            return False
        moves = [(from_a[best_a], a, b), (from_b[best_b], b, a)]
        units = [np.flatnonzero((kind_U == kind) & (fold_U == old))[0] for kind, old, _ in moves]
        for unit, (kind, old, new) in zip(units, moves, strict=True):
            fold_U[unit] = new
            have_SK[kind, old] -= 1
            have_SK[kind, new] += 1
        return True

    improved = True
    while improved:
        improved = False
        for a, b in combinations(range(k), 2):
            while improve(a, b):
                improved = True
