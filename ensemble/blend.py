"""A blend: how members' predictions become the ensemble's. Plain data, written into the bundle.

Each member's predictions are transformed, then added with coefficients (or their median is taken),
then a link turns the sum into predictions, then comes what was fitted afterwards.

Shapes: m members of the blend, T outputs, N rows, B rows of a block, Q quantiles.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.transforms import linked, ranked, running_medians, temper, transformed, voted
from search.run_folder import write_file
from spaces.errors import UserError

FORMAT = "1"  # version of a blend's file
_VALUES = 4_000_000  # numbers held in float64 at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Post:
    """What happens to the blended predictions; fitted after the blend, on the same rows."""

    thresholds_T: Floats | None = None  # for hard decisions; changes no value
    temperature: float = 1.0  # of probabilities: above 1 less sure, below 1 surer
    shrink: float = 1.0  # pred -> mean + shrink (pred - mean)
    mean_T: Floats | None = None

    def apply(self, pred_TB: Floats, task_type: str) -> Floats:
        if self.temperature != 1.0:
            pred_TB = temper(pred_TB, self.temperature, task_type)
        if self.mean_T is not None:
            mean_TB = self.mean_T[:, None]
            pred_TB = mean_TB + self.shrink * (pred_TB - mean_TB)
        return pred_TB


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend:
    """What a combiner's fit returns and what `apply` needs."""

    method: str  # the combiner's name
    task_type: str
    members: tuple[int, ...]  # indices of the members that it reads, heaviest first
    weights: tuple[float, ...]  # share of each, >= 0, sum 1
    transform: str = "identity"  # identity | logit | log | rank | vote
    reduce: str = "sum"  # sum | median
    coef_mT: Floats | None = None  # of each member and output, or (m, 1); None: the weights
    intercept_T: Floats | None = None
    quantiles_mTQ: Floats | None = None  # rank: each member's OOF quantiles, ascending
    link: str = "identity"  # identity | sigmoid | softmax | normalise | sigmoid_normalise
    post: Post = field(default_factory=Post)

    @property
    def is_mean(self) -> bool:
        """Whether it is a plain weighted mean, which an engine can score; thresholds may follow."""
        return (
            (self.transform, self.reduce, self.link) == ("identity", "sum", "identity")
            and self.coef_mT is None
            and self.intercept_T is None
            and self.post.temperature == 1.0
            and self.post.mean_T is None
        )

    def weights_of(self, members: int) -> Floats:
        """(M,) weights of all members of the pool."""
        weights_M = np.zeros(members)
        weights_M[list(self.members)] = self.weights
        return weights_M

    def apply(self, preds_mTN: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """(T, N) predictions from those of `members`, in that order, which may be memory-mapped.

        Computed in float64 block by block and rounded once: a value does not depend on the rows
        beside it.
        """
        outputs, rows = preds_mTN[0].shape
        pred_TN = np.empty((outputs, rows), dtype=np.float32)
        size = max(1, _VALUES // (outputs * (len(preds_mTN) if self.reduce == "median" else 1)))
        for start in range(0, rows, size):
            at = slice(start, start + size)
            pred_TN[:, at] = self._block([pred_TN_[:, at] for pred_TN_ in preds_mTN])
        return pred_TN

    def _block(self, preds_mTB: Sequence[NDArray[Any]]) -> Floats:
        moved = (self._moved(i, np.asarray(p, dtype=np.float64)) for i, p in enumerate(preds_mTB))
        if self.reduce == "median":
            *_, sum_TB = running_medians(moved)
        else:
            sum_TB = np.zeros(preds_mTB[0].shape)
            for i, moved_TB in enumerate(moved):
                coef = self.weights[i] if self.coef_mT is None else self.coef_mT[i][:, None]
                sum_TB += coef * moved_TB
        if self.intercept_T is not None:
            sum_TB += self.intercept_T[:, None]
        return self.post.apply(linked(sum_TB, self.link), self.task_type)

    def _moved(self, index: int, pred_TB: Floats) -> Floats:
        if self.transform == "rank":
            assert self.quantiles_mTQ is not None
            return ranked(pred_TB, self.quantiles_mTQ[index])
        if self.transform == "vote":
            return voted(pred_TB, self.task_type)
        return transformed(pred_TB, self.transform)

    def save(self, path: Path) -> None:
        """One safetensors file; `load` reads it."""
        from safetensors.numpy import save_file

        plain, tensors = {}, {}
        for prefix, part in (("", self), ("post.", self.post)):
            for f in fields(part):
                value = getattr(part, f.name)
                if isinstance(value, np.ndarray):
                    tensors[prefix + f.name] = np.ascontiguousarray(value, dtype=np.float64)
                elif not isinstance(value, Post):
                    plain[prefix + f.name] = value
        metadata = {"format": FORMAT, "blend": json.dumps(plain)}
        write_file(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def load(cls, path: Path) -> "Blend":
        """Raises UserError when the file is no blend."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is no blend ({error}); restore the file") from error
        if metadata.get("format") != FORMAT:
            got = metadata.get("format")
            raise UserError(f"{path} has format {got!r}; this version reads blends {FORMAT}")
        try:
            values = {**json.loads(metadata["blend"]), **tensors}
            post = {n.removeprefix("post."): values.pop(n) for n in list(values) if "post." in n}
            values |= {name: tuple(values[name]) for name in ("members", "weights")}
            return cls(**values, post=Post(**post))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no blend ({error}); restore the file") from error
