"""One pass over the predictions of all members, by output within a fold and by row at once.

Predictions may be memory-mapped files of many gigabytes. They are handed out in float64 in blocks
that fit a core's cache; files are read from start to end.

Shapes: M members, A = M + 1 (the truth, then the members), X = A + 1 (before these a vector of
ones), T outputs, N rows, K folds, V sets of vectors (an output within a fold, or a row), B a block
of them, C values of each.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.engines.base import Floats
from ensemble.engines.threads import each

_BLOCK_BYTES = 4 << 20  # float64 values that a thread works on
_OUTPUTS = 256  # outputs between two visits of a row: what they read lies close together
_SAMPLE = 64  # values whose mean is near enough to a vector's to shift by

Use = Callable[[slice, Floats], None]  # gets the sets' places among the V, and values (B, X, C)


class Values:
    """The truth and the members' predictions, less a number per vector near its mean: sums of
    squares then lose no digits, and centring takes the shift out again."""

    def __init__(
        self, true_TN: NDArray[Any], preds_MTN: Sequence[NDArray[Any]], fold_N: NDArray[np.int64]
    ) -> None:
        # As plain arrays: np.memmap costs microseconds per slice.
        self._arrays = [np.asarray(a) for a in (true_TN, *preds_MTN)]
        self.outputs, self.rows = true_TN.shape
        self.fold_rows = [np.flatnonzero(fold_N == k) for k in range(int(fold_N.max()) + 1)]
        # The sample is of the vector itself, so no vector can lie far from its shift, measured in
        # its own spread.
        self.output_shift_AV = np.zeros((len(self._arrays), len(self.fold_rows) * self.outputs))
        self.row_shift_AN = np.stack(
            [a[:_SAMPLE].mean(axis=0, dtype=np.float64) for a in self._arrays]
        )

    def read(self, by_output: Use, by_row: Use | None) -> None:
        """Hand out everything: outputs within folds (the fold varies slowest), and rows.

        Threads work on different sets, and each set gets its values in the same order every time.
        """
        for group in _slices(0, self.outputs, _OUTPUTS):
            fold_size = self.rows // len(self.fold_rows)
            jobs = [
                partial(self._read_outputs, by_output, outputs)
                for outputs in _slices(group.start, group.stop, self._block(fold_size))
            ]
            if by_row:
                jobs += [
                    partial(self._read_rows, by_row, group, rows)
                    for rows in _slices(0, self.rows, self._block(group.stop - group.start))
                ]
            each(_call, jobs)

    def _read_outputs(self, use: Use, outputs: slice) -> None:
        for fold, rows in enumerate(self.fold_rows):
            first = fold * self.outputs
            at = slice(first + outputs.start, first + outputs.stop)
            shift_AB = self.output_shift_AV[:, at]
            for piece in _slices(0, len(rows), max(_SAMPLE, self._block(1))):
                x_BXC = self._empty(outputs, len(rows[piece]))
                for index, a in enumerate(self._arrays):
                    x_BXC[:, index + 1] = _columns(a[outputs], rows[piece])
                if piece.start == 0:
                    stride = -(-x_BXC.shape[2] // _SAMPLE)
                    shift_AB[:] = x_BXC[:, 1:, ::stride].mean(axis=2).T
                x_BXC[:, 1:] -= shift_AB.T[:, :, None]
                use(at, x_BXC)

    def _read_rows(self, use: Use, outputs: slice, rows: slice) -> None:
        x_BXC = self._empty(rows, outputs.stop - outputs.start)
        for index, a in enumerate(self._arrays):
            x_BXC[:, index + 1] = a[outputs, rows].T
        x_BXC[:, 1:] -= self.row_shift_AN[:, rows].T[:, :, None]
        use(rows, x_BXC)

    def _block(self, values: int) -> int:
        """How many sets of this many values fill a block."""
        return max(1, _BLOCK_BYTES // (8 * (len(self._arrays) + 1) * max(values, 1)))

    def _empty(self, sets: slice, values: int) -> Floats:
        x_BXC = np.empty((sets.stop - sets.start, len(self._arrays) + 1, values))
        x_BXC[:, 0] = 1.0
        return x_BXC


def _columns(block_BN: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The columns `rows`, which ascend."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return block_BN[:, rows[0] : rows[-1] + 1]
    out_BC = np.empty((len(block_BN), len(rows)), dtype=block_BN.dtype)
    # "clip" skips a check of the indices that doubles the time.
    return np.take(block_BN, rows, axis=1, out=out_BC, mode="clip")


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for at in range(start, stop, size):
        yield slice(at, min(at + size, stop))


def _call(job: Callable[[], None]) -> None:
    job()
