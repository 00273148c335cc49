"""A linear layer over the features of several models, one layer per fold, and its predictions.

Shapes: T outputs, N rows, F features of all parts side by side, B rows of a block.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensemble.transforms import linked
from search.run_folder import write_file
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.model.infer import FoldModel

FORMAT = "1"  # version of a layer's file
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class JointLayer:
    """The layer of one fold. The features' means and scales are folded into it."""

    weight_TF: NDArray[np.float32]
    bias_T: NDArray[np.float64]
    link: str  # identity | sigmoid | softmax
    parts: tuple[int, ...]  # the parts of the member whose features it reads, in this order

    def apply(self, features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predictions (N, T), in float64 and rounded once: a row does not depend on those beside
        it."""
        weight_FT = self.weight_TF.T.astype(np.float64)
        pred_NT = np.empty((len(features_NF), len(self.bias_T)), dtype=np.float32)
        for start in range(0, len(features_NF), _BLOCK):
            rows = slice(start, start + _BLOCK)
            sum_BT = features_NF[rows].astype(np.float64) @ weight_FT + self.bias_T
            pred_NT[rows] = linked(sum_BT.T, self.link).T
        return pred_NT

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {
            "weight": np.ascontiguousarray(self.weight_TF, dtype=np.float32),
            "bias": np.ascontiguousarray(self.bias_T, dtype=np.float64),
        }
        facts = {"format": FORMAT, "link": self.link, "parts": json.dumps(self.parts)}
        write_file(path, lambda temporary: save_file(tensors, temporary, facts))

    @classmethod
    def load(cls, path: Path) -> "JointLayer":
        """Raises UserError when the file is no layer."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is no layer ({error}); restore the file") from error
        if facts.get("format") != FORMAT or "parts" not in facts:
            got = facts.get("format")
            raise UserError(f"{path} has format {got!r}; this version reads layers {FORMAT}")
        return cls(
            weight_TF=tensors["weight"],
            bias_T=tensors["bias"],
            link=facts["link"],
            parts=tuple(json.loads(facts["parts"])),
        )


def predict_head(
    models: Sequence["FoldModel | None"],
    layer: JointLayer,
    images_NHWC: NDArray[np.uint8],
    tta: int | None = None,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Predictions (N, T) of a feature head's one fold.

    `models` has an entry for each part of the member, of the same fold as the layer; those that
    are not in `layer.parts` are not used and may be None. `tta` None: each recipe's own.
    """
    features = []
    for number in layer.parts:
        model = models[number]
        assert model is not None, f"the layer reads part {number}"
        features.append(model.features(images_NHWC, tta, batch_size))
    return layer.apply(np.concatenate(features, axis=1))
