"""Centred inner products of many sets of vectors, and the correlations that follow from them.

A set is the truth and the predictions of all members for the same values: one output within a
fold, or one row. The correlation of a weighted sum of members with the truth needs the members'
products with each other (their Gram matrix) and with the truth, and nothing else.

Shapes: M members, A = M + 1 (the truth, then the members), X = A + 1 (before these a vector of
ones), V sets, B a block of them, C values of a set, L vectors multiplied by all others.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats
from search.metrics import CONSTANT, is_constant

# A sum of squares below this share of what its members bring is what rounding left of members
# that cancel each other: it counts as 0.
_ROUNDING = 1e-13


class Grams:
    """Products of V sets: first `add` all their values, piece by piece, then `finish`."""

    def __init__(self, members: int, count_V: NDArray[np.int64], ready: int) -> None:
        """`count_V` values make up a set; Gram columns are made for the first `ready` members."""
        self.members, self.sets = members, len(count_V)
        self._count_V, self._ready = count_V, ready
        self._sum_AV = np.zeros((members + 1, self.sets))
        self._true_AV = np.zeros((members + 1, self.sets))  # products with the truth
        self._ss_MV = np.zeros((members, self.sets))
        self._column_MV = {j: np.zeros((members, self.sets)) for j in range(ready)}
        # The sum of members that the last step started from, and its products with each.
        self._from_M = np.zeros(members, dtype=np.int64)
        self._from_MV = np.zeros((members, self.sets))

    def add(self, at: slice, x_BXC: Floats) -> None:
        """Values of the sets `at`, each vector shifted by the number that `finish` gets. The
        vector of ones makes the sums, in the same multiplication."""
        left = 2 + self._ready
        made_LAB = (x_BXC[:, :left] @ x_BXC[:, 1:].transpose(0, 2, 1)).transpose(1, 2, 0)
        self._sum_AV[:, at] += made_LAB[0]
        self._true_AV[:, at] += made_LAB[1]
        for j, column_MV in self._column_MV.items():
            column_MV[:, at] += made_LAB[2 + j, 1:]
        late_BMC = x_BXC[:, left:]
        self._ss_MV[self._ready :, at] += np.einsum("bmc,bmc->mb", late_BMC, late_BMC)

    def finish(self, shift_AV: Floats) -> None:
        """Centre the products, and divide those with the truth by its size."""
        mean_AV = shift_AV + self._sum_AV / self._count_V
        sum_V, sum_MV = self._sum_AV[0], self._sum_AV[1:]
        for j, column_MV in self._column_MV.items():
            self._ss_MV[j] = column_MV[j]
            column_MV -= sum_MV[j] / self._count_V * sum_MV
        self._ss_MV -= sum_MV**2 / self._count_V
        np.maximum(self._ss_MV, 0, out=self._ss_MV)
        true_AV = self._true_AV - sum_V / self._count_V * self._sum_AV
        ss_V = np.maximum(true_AV[0], 0)
        void_V = is_constant(ss_V, mean_AV[0], self._count_V)
        self._cross_MV = true_AV[1:] / np.sqrt(np.where(void_V, np.nan, ss_V))
        self._mean_MV, self._size_MV = mean_AV[1:], np.sqrt(self._ss_MV)
        # A weighted sum whose size is above the sum of its members' doubts is neither constant
        # nor cancelled. Most sums pass this linear bound; the rules themselves are not linear.
        self._doubt_MV = 2 * CONSTANT * np.sqrt(self._count_V) * np.abs(self._mean_MV)
        self._doubt_MV += 2 * np.sqrt(_ROUNDING) * self._size_MV

    def missing(self, weights_M: NDArray[Any]) -> list[int]:
        """Members with a weight whose Gram columns are not there."""
        return [int(j) for j in np.flatnonzero(weights_M) if int(j) not in self._column_MV]

    def keep(self, member: int, column_MV: Floats) -> None:
        """A Gram column: the member's centred products with each."""
        self._column_MV[member] = column_MV

    def centred(self, weights_M: Floats, made_MV: Floats) -> Floats:
        """(M, V) centred products with each member of a weighted sum, from those of its values
        with the shifted values."""
        sum_MV = self._sum_AV[1:]
        return np.asarray(made_MV - weights_M @ sum_MV / self._count_V * sum_MV)

    def product(self, weights_M: Floats) -> Floats:
        """(M, V) centred products of a weighted sum with each member."""
        made_MV = np.zeros((self.members, self.sets))
        for j in np.flatnonzero(weights_M):
            made_MV += weights_M[j] * self._column_MV[int(j)]
        return made_MV

    def correlation(self, weights_M: Floats, made_MV: Floats) -> Floats:
        """(V,) correlation of a weighted sum with the truth, NaN where undefined; `made_MV` are
        its products with each member."""
        cross_V, doubt_V = weights_M @ self._cross_MV, weights_M @ self._doubt_MV
        return self._correlation(weights_M, cross_V, weights_M @ made_MV, doubt_V)

    def start_steps(self, counts_M: NDArray[np.int64]) -> None:
        """Get ready for `step` from these counts: cheap when they are the last ones and more."""
        if np.any(counts_M < self._from_M):
            self._from_M[:], self._from_MV[:] = 0, 0.0
        more_M = counts_M - self._from_M
        for j in np.flatnonzero(more_M):
            self._from_MV += more_M[j] * self._column_MV[int(j)]
        self._from_M[:] = counts_M
        weights_M = counts_M.astype(np.float64)
        self._from_ss_V = weights_M @ self._from_MV
        self._from_cross_V = weights_M @ self._cross_MV
        self._from_doubt_V = weights_M @ self._doubt_MV

    def step(self, member: int) -> Floats:
        """(V,) correlation of the counts that `start_steps` got and one more of a member."""
        weights_M = self._from_M.astype(np.float64)
        weights_M[member] += 1
        ss_V = 2 * self._from_MV[member]
        ss_V += self._from_ss_V
        ss_V += self._ss_MV[member]
        cross_V = self._from_cross_V + self._cross_MV[member]
        doubt_V = self._from_doubt_V + self._doubt_MV[member]
        return self._correlation(weights_M, cross_V, ss_V, doubt_V)

    def _correlation(
        self, weights_M: Floats, cross_V: Floats, ss_V: Floats, doubt_V: Floats
    ) -> Floats:
        ss_V = np.maximum(ss_V, 0)
        root_V = np.sqrt(ss_V)
        if np.any(root_V <= doubt_V):
            ss_V[ss_V <= _ROUNDING * (weights_M @ self._size_MV) ** 2] = 0.0
            root_V[is_constant(ss_V, weights_M @ self._mean_MV, self._count_V)] = np.nan
        return np.asarray(np.clip(cross_V / root_V, -1, 1))
