"""All fold models of a bundle over any number of rows, chunk by chunk.

A chunk's images are decoded into a temporary file, every member predicts them, and the blend makes
one prediction of the members'. So neither memory nor disk grows with the number of images.

Shapes: T outputs, n rows of one chunk, m members, H W C height, width and channels, B rows of one
piece, X images, the views of a row one after the other.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.bundle import Bundle, BundleMember
from ensemble.joint import JointLayer, predict_head
from ensemble.meter import Meter
from search.data.cache import check_headers, open_store
from search.data.cleaning import cleaner
from search.model.infer import FoldModel
from search.model.memory import OutOfMemory, with_halving
from spaces.errors import UserError

IMAGE_BYTES = 1 << 30  # of a chunk's decoded images, on disk
PREDICTION_BYTES = 256 << 20  # of the members' predictions of a chunk, in memory
MODEL_BYTES = 1 << 30  # of model files that stay loaded from one chunk to the next
_PIECE = 16  # batches between two lines of progress
Predict = Callable[[NDArray[np.uint8], int | None, int], NDArray[np.float32]]
DECODED, PREDICTED = "images decoded", "rows x models predicted"


class Inference:
    """A bundle on a device. The batch size goes down when memory runs out, and stays there."""

    def __init__(self, bundle: Bundle, device: str, tta: int | None, batch_size: int) -> None:
        self.bundle, self.device, self.tta = bundle, device, tta
        self.views = bundle.layout.view_count
        self.batch_size = batch_size = max(1, batch_size // self.views)  # rows; given in images
        self.sizes = sorted({member.decode_size for member in bundle.members})
        # Batches begin at multiples of the batch size, however the rows are cut into chunks and
        # pieces: what a value's last bit depends on is then the batch size alone.
        self.piece = batch_size * _PIECE
        numbers = self.views * bundle.layout.channel_count  # of a row's pixel
        fitting = min(
            IMAGE_BYTES // sum(numbers * size * size for size in self.sizes),
            PREDICTION_BYTES // (4 * len(bundle.members) * len(bundle.target_names)),
        )
        self.chunk = max(1, fitting // batch_size) * batch_size
        self._loaded: dict[str, FoldModel] = {}

    def chunks(self, root: Path, files: Sequence[tuple[str, ...]]) -> Iterator[NDArray[np.float32]]:
        """(T, n) predictions of consecutive rows; `files` are those of each image."""
        models = sum(len(member.folds) for member in self.bundle.members)
        rows, step = len(files) // self.views, self.chunk * self.views
        several = rows > self.chunk
        if several:
            looked = Meter({"files looked at": sum(map(len, files))})
            check_headers(root, files, _steps(looked, "files looked at"))
        keep = several and sum(map(self.bundle.model_bytes, self.bundle.members)) <= MODEL_BYTES
        print(f"{len(files)} images, {models} models, on {self.device}", file=sys.stderr)
        meter = Meter({DECODED: len(self.sizes) * len(files), PREDICTED: models * rows})
        clean, clean_key = cleaner(self.bundle.clean)
        for start in range(0, len(files), step):
            part = files[start : start + step]
            with tempfile.TemporaryDirectory(prefix="rungfold-") as folder:
                images_of = {
                    size: open_store(
                        root, part, size, Path(folder), _steps(meter, DECODED),
                        clean=clean, clean_key=clean_key,
                    ).images_NHWC
                    for size in self.sizes
                }  # fmt: skip
                preds_mTn = [
                    self._member(member, images_of[member.decode_size], keep, meter)
                    for member in self.bundle.members
                ]
            yield self.bundle.blend.apply(preds_mTn)

    def _member(
        self, member: BundleMember, images_XHWC: NDArray[np.uint8], keep: bool, meter: Meter
    ) -> NDArray[np.float32]:
        """(T, n) predictions, the mean over the folds."""
        rows = len(images_XHWC) // self.views
        sum_nT = np.zeros((rows, len(self.bundle.target_names)))
        for fold in member.folds:
            predict = self._predictor(member, fold, keep)
            for start in range(0, rows, self.piece):
                stop = start + self.piece
                try:
                    piece_XHWC = images_XHWC[start * self.views : stop * self.views]
                    pred_BT = self._halving(predict, piece_XHWC)
                except OutOfMemory as error:
                    raise UserError(
                        f"member {member.name}: {error} of {self.device}; end other programs "
                        "that use it, or take a machine with more"
                    ) from None
                sum_nT[start:stop] += pred_BT
                meter.add(PREDICTED, len(pred_BT))
        return np.ascontiguousarray((sum_nT / len(member.folds)).T, dtype=np.float32)

    def _predictor(self, member: BundleMember, fold: str, keep: bool) -> Predict:
        """Predictions (B, T) of one fold, from images, flips and turns, and a batch size."""
        if not member.layers:
            return self._model(member.parts[0].models[fold], keep).predict
        layer = JointLayer.load(self.bundle.root / member.layers[fold])
        models = [
            self._model(part.models[fold], keep) if number in layer.parts else None
            for number, part in enumerate(member.parts)
        ]
        return partial(predict_head, models, layer)

    def fold(
        self, member: BundleMember, fold: str, images_XHWC: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """(T, N) predictions of one fold of a member."""
        pred_NT = self._halving(self._predictor(member, fold, False), images_XHWC)
        return np.ascontiguousarray(pred_NT.T)

    def _halving(self, predict: Predict, images_XHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        def attempt(batch_size: int) -> NDArray[np.float32]:
            return predict(images_XHWC, self.tta, batch_size)

        pred_BT, self.batch_size = with_halving(attempt, self.batch_size, lambda: None, self.device)
        return pred_BT

    def _model(self, name: str, keep: bool) -> FoldModel:
        if name in self._loaded:
            return self._loaded[name]
        model = FoldModel.load(self.bundle.root / name, self.device)
        if keep:
            self._loaded[name] = model
        return model


def _steps(meter: Meter, kind: str) -> Callable[[int, int], None]:
    """A callback (done, total) that counts from 0, as steps of the meter."""
    before = 0

    def progress(done: int, total: int) -> None:
        nonlocal before
        meter.add(kind, done - before)
        before = done

    return progress
