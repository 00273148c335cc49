"""Features of fold models for the run's own images, inferred once and kept in the run.

Shapes: N train rows, S test rows, H W C height, width and channels, F features.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.derived.images import Images, run_images, store_folder
from ensemble.derived.sources import load_rows, model_file, stamp
from ensemble.members import Pool
from search.data.disk import need_space
from search.oof import save_rows
from search.run_folder import RunFolder, read_json, write_json
from spaces.errors import UserError


class FeatureStore:
    """Features of members' fold models, inferred once and kept in the run."""

    def __init__(self, pool: Pool, run: RunFolder) -> None:
        self._pool, self._run = pool, run

    def train(self, members: Sequence[int], fold: int) -> NDArray[np.float32]:
        """(N, F) of all train rows, those of the members side by side."""
        return np.concatenate([self._features(m, fold, "train") for m in members], axis=1)

    def test(self, members: Sequence[int], fold: int) -> NDArray[np.float32]:
        """(S, F) of the test rows."""
        return np.concatenate([self._features(m, fold, "test") for m in members], axis=1)

    @cached_property
    def images(self) -> tuple[Images, Images | None]:
        return run_images(self._run)

    def _features(self, m: int, fold: int, which: str) -> NDArray[np.float32]:
        from search.model.infer import FoldModel, fastest_device

        member = self._pool.members[m]
        assert member.origin is not None
        folder = self._run.derived("features") / f"{member.origin.trial:04d}"
        path = folder / (f"fold-{fold}.npy" if which == "train" else f"fold-{fold}.test.npy")
        wanted = {"model": stamp(model_file(member, fold)), "store": store_folder(self._run).name}
        known = self._known(folder)
        if known.get(path.name) != wanted or not path.is_file():
            images_NHWC = self.images[0] if which == "train" else self.images[1]
            assert images_NHWC is not None
            model = FoldModel.load(model_file(member, fold), fastest_device())
            features_NF = model.features(images_NHWC)
            need_space(folder, features_NF.nbytes, f"features of {member.name}")
            save_rows(path, features_NF)
            write_json(folder / "manifest.json", {"files": {**known, path.name: wanted}})
        return load_rows(path)

    @staticmethod
    def _known(folder: Path) -> dict[str, Any]:
        try:
            return dict(read_json(folder / "manifest.json")["files"])
        except (UserError, KeyError):
            return {}
