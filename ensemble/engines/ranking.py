"""The exact engine for auroc, average_precision and presence_locations: one sort of values that
carry their label.

The bits of floats >= 0 are in the order of the floats, and their sign bit is free. Shifted by one,
with the label as the lowest bit, they sort as 32-bit integers, which is twice as fast as 64-bit
ones and several times faster than sorting positions. Where a member has predictions below 0 the
sort is 64-bit. Either way nothing is lost: ties stay ties, their negatives first.

Shapes: M members, T outputs, N rows (in the order of their folds), K folds, B a block of members,
P the positives of a fold.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats, FoldwiseEngine
from ensemble.engines.threads import each, workers
from search.metrics import FittedMetric

_BLOCK = 1 << 17  # values that a thread works on at a time: about 4 MB with all that is made
_KEPT_BYTES = 2 << 30  # of predictions in the order of folds; where they are more, read every step

Ints = NDArray[np.int64]


class RankingEngine(FoldwiseEngine):
    """Engine for metrics that are, in each fold, a weighted sum of the outputs' aurocs or average
    precisions."""

    def __init__(
        self,
        metric: FittedMetric,
        preds_MTN: Sequence[NDArray[Any]],
        true_TN: NDArray[Any],
        fold_N: NDArray[np.int64],
    ) -> None:
        super().__init__(len(preds_MTN), int(fold_N.max()) + 1)
        self._score = _average_precision if metric.name == "average_precision" else _auroc
        self._preds_MTN = [np.asarray(pred_TN) for pred_TN in preds_MTN]
        self._order_N = np.argsort(fold_N, kind="stable")
        ends_K = np.cumsum(np.bincount(fold_N)).tolist()
        self._rows_K = [slice(a, b) for a, b in zip([0, *ends_K[:-1]], ends_K, strict=True)]
        self._label_TN = (true_TN == 1).astype(np.uint32)[:, self._order_N]
        self._weight_KT = np.stack(
            [metric.weights(true_TN[:, fold_N == k]) for k in range(self.folds)]
        )
        if void := np.flatnonzero(~self._weight_KT.any(axis=1)).tolist():
            raise ValueError(
                f"{metric.name} is undefined in fold {void[0]}: there {metric.void}; "
                "use fewer folds"
            )
        self._outputs = np.flatnonzero(self._weight_KT.any(axis=0)).tolist()  # that count at all
        self._kept_TMN: NDArray[np.float32] | None = None
        if self.members * true_TN.size * 4 <= _KEPT_BYTES:
            outputs, rows = true_TN.shape
            self._kept_TMN = np.empty((outputs, self.members, rows), dtype=np.float32)
        self._unsigned = min(each(self._keep, range(self.members))) >= 0

    def _keep(self, member: int) -> float:
        pred_TN = self._preds_MTN[member]
        if self._kept_TMN is not None:
            self._kept_TMN[:, member] = pred_TN[:, self._order_N]
        return float(pred_TN.min())

    def _block(self, output: int, members: range) -> NDArray[np.float32]:
        """(B, N) one output's predictions of these members."""
        if self._kept_TMN is not None:
            return self._kept_TMN[output, members.start : members.stop]
        return np.stack([self._preds_MTN[m][output][self._order_N] for m in members])

    def fold_scores(self, weights_M: NDArray) -> Floats:
        total = float(np.sum(weights_M))

        def scores(output: int) -> Floats:
            return self._scores(output, (self._sum(output, weights_M) / total)[None])

        return np.sum(each(scores, self._outputs), axis=0)[:, 0]

    def fold_steps(self, counts_M: NDArray[np.int64]) -> Floats:
        total = float(np.sum(counts_M)) + 1
        rows, outputs = self._label_TN.shape[1], len(self._outputs)
        found = each(lambda output: self._sum(output, counts_M), self._outputs)
        sums = dict(zip(self._outputs, found, strict=True))
        # At least two blocks for a thread, so that none waits long for the last.
        step = max(1, min(_BLOCK // rows, self.members * outputs // (2 * workers())))
        blocks = [range(m, min(m + step, self.members)) for m in range(0, self.members, step)]
        items = [(output, members) for output in self._outputs for members in blocks]

        def scores(item: tuple[int, range]) -> Floats:
            output, members = item
            mean_BN = self._block(output, members) + sums[output]
            mean_BN /= total
            return self._scores(output, mean_BN)

        scores_KM = np.zeros((self.folds, self.members))
        for (_, members), scores_KB in zip(items, each(scores, items), strict=True):
            scores_KM[:, members.start : members.stop] += scores_KB
        return scores_KM

    def _sum(self, output: int, weights_M: NDArray) -> Floats:
        sum_N = np.zeros(self._label_TN.shape[1])
        for member in np.flatnonzero(weights_M).tolist():
            pred_N = self._block(output, range(member, member + 1))[0].astype(np.float64)
            sum_N += np.float64(weights_M[member]) * pred_N
        return sum_N

    def _scores(self, output: int, mean_BN: Floats) -> Floats:
        """(K, B) what one output brings to the score of each fold."""
        keys_BN = _keys(mean_BN.astype(np.float32), self._label_TN[output], self._unsigned)
        scores_KB = np.zeros((self.folds, len(mean_BN)))
        for fold in np.flatnonzero(self._weight_KT[:, output]).tolist():
            sorted_BN = keys_BN[:, self._rows_K[fold]]
            sorted_BN.sort(axis=1)
            scores_KB[fold] = self._weight_KT[fold, output] * self._score(sorted_BN)
        return scores_KB


def _keys(
    pred_BN: NDArray[np.float32], label_N: NDArray[np.uint32], unsigned: bool
) -> NDArray[Any]:
    """Integers in the order of the predictions, negatives before positives where those tie."""
    bits_BN = pred_BN.view(np.uint32)
    if unsigned:
        bits_BN <<= np.uint32(1)  # the sign of -0.0 drops out
        bits_BN |= label_N
        return bits_BN
    pred_BN += np.float32(0)  # -0.0 becomes 0.0
    sign = np.uint32(1 << 31)
    keys_BN = np.where(bits_BN >= sign, ~bits_BN, bits_BN | sign).astype(np.uint64)
    return (keys_BN << np.uint64(1)) | label_N


def _auroc(sorted_BN: NDArray[Any]) -> Floats:
    """(B,) share of pairs in which the positive is higher; a tie counts half."""
    place_BP, ties = _places(sorted_BN)
    rows, positives = sorted_BN.shape[1], place_BP.shape[1]
    below_B = place_BP.sum(axis=1) - positives * (positives - 1) / 2
    if ties is not None:
        # The negatives of its own group stand before a positive: half of them were too many.
        member, which = ties.member, ties.which
        equals = place_BP[member, which] - ties.start - (which - ties.before)
        below_B -= np.bincount(member, equals, minlength=len(below_B)) / 2
    return below_B / (positives * (rows - positives))


def _average_precision(sorted_BN: NDArray[Any]) -> Floats:
    """(B,) mean over positives of the precision among rows predicted as high or higher."""
    place_BP, ties = _places(sorted_BN)
    rows, positives = sorted_BN.shape[1], place_BP.shape[1]
    precision_BP = np.arange(positives, 0, -1) / (rows - place_BP)
    if ties is not None:
        tied = (positives - ties.before) / (rows - ties.start)
        precision_BP[ties.member, ties.which] = tied
    return precision_BP.mean(axis=1)


class _Ties(NamedTuple):
    """Positives whose prediction equals the one that stands before them."""

    member: Ints  # the row of the block
    which: Ints  # the number of the positive in it
    start: Ints  # the place where the group of equal predictions begins
    before: Ints  # how many positives stand before that group


def _places(sorted_BN: NDArray[Any]) -> tuple[Ints, _Ties | None]:
    """(B, P) places of the positives, from 0, and the ties among them. Even continuous predictions
    have some, as float32, but few: they are looked at alone."""
    (members, rows), one = sorted_BN.shape, sorted_BN.dtype.type(1)
    positive = (sorted_BN & one).astype(bool).ravel()
    flat = np.flatnonzero(positive)
    place_BP = flat.reshape(members, -1) - rows * np.arange(members)[:, None]
    apart_BN = np.empty_like(sorted_BN)
    apart_BN[:, 0] = 2
    np.bitwise_xor(sorted_BN[:, 1:], sorted_BN[:, :-1], out=apart_BN[:, 1:])
    equal = (apart_BN <= one).ravel()  # to the value before it, the label aside
    tied = np.flatnonzero(equal)
    tied_positive = positive.take(tied)
    if not tied_positive.any():
        return place_BP, None
    # A run of tied places is a group without its first.
    begins = np.where(np.diff(tied, prepend=-1) > 1, tied - 1, 0)
    start = np.maximum.accumulate(begins)[tied_positive]
    # Its positives are at its end, side by side; all may be, then the first of them is its first.
    which = np.flatnonzero(equal.take(flat))
    first = np.where(np.diff(start, prepend=-1) > 0, which, 0)
    before = np.maximum.accumulate(first) - positive.take(start)
    member, which = np.divmod(which, place_BP.shape[1])
    ties = _Ties(member, which, start - member * rows, before - member * place_BP.shape[1])
    return place_BP, ties
