"""All fold models of a bundle over any number of images, chunk by chunk.

A chunk's images are decoded into a temporary file, every member predicts them, and the blend makes
one prediction of the members'. So neither memory nor disk grows with the number of images.

Shapes: T outputs, n images of one chunk, m members, H W C height, width and channels, B images of
one piece.
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
from search.model.infer import FoldModel
from search.model.memory import OutOfMemory, with_halving
from spaces.errors import UserError

IMAGE_BYTES = 1 << 30  # of a chunk's decoded images, on disk
PREDICTION_BYTES = 256 << 20  # of the members' predictions of a chunk, in memory
MODEL_BYTES = 1 << 30  # of model files that stay loaded from one chunk to the next
_PIECE = 16  # batches between two lines of progress
Predict = Callable[[NDArray[np.uint8], int | None, int], NDArray[np.float32]]
DECODED, PREDICTED = "images decoded", "images x models predicted"


class Inference:
    """A bundle on a device. The batch size goes down when memory runs out, and stays there."""

    def __init__(self, bundle: Bundle, device: str, tta: int | None, batch_size: int) -> None:
        self.bundle, self.device, self.tta = bundle, device, tta
        self.batch_size = batch_size
        self.sizes = sorted({member.decode_size for member in bundle.members})
        # Batches begin at multiples of the batch size, however the images are cut into chunks and
        # pieces: what a value's last bit depends on is then the batch size alone.
        self.piece = batch_size * _PIECE
        fitting = min(
            IMAGE_BYTES // sum(3 * size * size for size in self.sizes),
            PREDICTION_BYTES // (4 * len(bundle.members) * len(bundle.target_names)),
        )
        self.chunk = max(1, fitting // batch_size) * batch_size
        self._loaded: dict[str, FoldModel] = {}

    def chunks(self, root: Path, paths: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """(T, n) predictions of consecutive images."""
        models = sum(len(member.folds) for member in self.bundle.members)
        several = len(paths) > self.chunk
        if several:
            looked = Meter({"images looked at": len(paths)})
            check_headers(root, paths, _steps(looked, "images looked at"))
        keep = several and sum(map(self.bundle.model_bytes, self.bundle.members)) <= MODEL_BYTES
        print(f"{len(paths)} images, {models} models, on {self.device}", file=sys.stderr)
        meter = Meter({DECODED: len(self.sizes) * len(paths), PREDICTED: models * len(paths)})
        for start in range(0, len(paths), self.chunk):
            part = paths[start : start + self.chunk]
            with tempfile.TemporaryDirectory(prefix="rungfold-") as folder:
                images_of = {
                    size: open_store(
                        root, part, size, Path(folder), _steps(meter, DECODED)
                    ).images_NHWC
                    for size in self.sizes
                }
                preds_mTn = [
                    self._member(member, images_of[member.decode_size], keep, meter)
                    for member in self.bundle.members
                ]
            yield self.bundle.blend.apply(preds_mTn)

    def _member(
        self, member: BundleMember, images_nHWC: NDArray[np.uint8], keep: bool, meter: Meter
    ) -> NDArray[np.float32]:
        """(T, n) predictions, the mean over the folds."""
        sum_nT = np.zeros((len(images_nHWC), len(self.bundle.target_names)))
        for fold in member.folds:
            predict = self._predictor(member, fold, keep)
            for start in range(0, len(images_nHWC), self.piece):
                at = slice(start, start + self.piece)
                try:
                    pred_BT = self._halving(predict, images_nHWC[at])
                except OutOfMemory as error:
                    raise UserError(
                        f"member {member.name}: {error} of {self.device}; end other programs "
                        "that use it, or take a machine with more"
                    ) from None
                sum_nT[at] += pred_BT
                meter.add(PREDICTED, len(pred_BT))
        return np.ascontiguousarray((sum_nT / len(member.folds)).T, dtype=np.float32)

    def _predictor(self, member: BundleMember, fold: str, keep: bool) -> Predict:
        """Predictions (B, T) of one fold, from images, views and a batch size."""
        if not member.layers:
            return self._model(member.parts[0].models[fold], keep).predict
        layer = JointLayer.load(self.bundle.root / member.layers[fold])
        models = [
            self._model(part.models[fold], keep) if number in layer.parts else None
            for number, part in enumerate(member.parts)
        ]
        return partial(predict_head, models, layer)

    def fold(
        self, member: BundleMember, fold: str, images_NHWC: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """(T, N) predictions of one fold of a member."""
        pred_NT = self._halving(self._predictor(member, fold, False), images_NHWC)
        return np.ascontiguousarray(pred_NT.T)

    def _halving(self, predict: Predict, images_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        def attempt(batch_size: int) -> NDArray[np.float32]:
            return predict(images_BHWC, self.tta, batch_size)

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
