"""The frozen network of a probe, and what it says of all rows of a job.

Shapes: N rows, F features.
"""

import hashlib
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search.data.features import Features, load_or_compute
from search.model.backbone import Network
from search.model.infer import FoldModel
from search.model.memory import with_halving
from search.train.job import Diverged, FoldJob, Images
from search.train.loop import epoch_seed
from search.train.network import image_scale, seen_channels, start_network

# Fields of a recipe that decide features; the weights, which others decide, have a digest.
_SEEN = ("backbone", "image_size", "normalise", "stain", "pooling", "activation_backbone",
         "activation", "fusion", "tta")  # fmt: skip


class Frozen:
    """A network without a head. Random weights are those of the recipe's seed, the same for all
    folds: their features are shared."""

    def __init__(self, job: FoldJob) -> None:
        self.job, recipe = job, job.recipe
        self.channels = seen_channels(job)
        mean, std = image_scale(job)
        self.image_facts = {"image.mean": torch.tensor(mean), "image.std": torch.tensor(std)}
        torch.manual_seed(epoch_seed(recipe.seed, -1))
        network = start_network(job, 1)
        network.head = torch.nn.Identity()
        network = network.to(job.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = FoldModel(network, self.image_facts, recipe, job.device, views=job.views)
        self._features: Features | None = None

    def features(self) -> Features:
        """Features of all rows, those of the test set after the others: from the cache, where they
        are kept for all that see these images through this network in the same way."""
        if self._features is None:
            job = self.job
            if job.cache is None:
                started = time.perf_counter()
                values_NF = self._compute()
                seconds = time.perf_counter() - started
                self._features = Features(values_NF=values_NF, seconds=seconds)
            else:
                self._features = load_or_compute(job.cache, self._facts(), self._compute)
        return self._features

    def _facts(self) -> dict[str, Any]:
        """All that features depend on."""
        job, recipe = self.job, self.job.recipe
        test = job.test_images_NHWC
        return {
            "images": job.store_key,
            "rows": [len(job.images_NHWC), 0 if test is None else len(test)],
            "views": job.views,
            "channels": self.channels,
            "weights": _digest(self.model.network),
            "mean": self.image_facts["image.mean"].tolist(),
            "std": self.image_facts["image.std"].tolist(),
            "device": torch.device(job.device).type,
            **{name: getattr(recipe, name) for name in _SEEN},
        }

    def _compute(self) -> NDArray[np.float32]:
        job = self.job
        size = max(64 // job.views, 1)
        parts = []
        for images in (job.images_NHWC, job.test_images_NHWC):
            if images is None or not len(images):
                continue

            def attempt(batch_size: int, images: Images = images) -> NDArray[np.float32]:
                return self.model.features(images, batch_size=batch_size)

            values_NF, size = with_halving(attempt, size, lambda: None, job.device)
            parts.append(values_NF)
        values_NF = np.concatenate(parts)
        if not np.isfinite(values_NF).all():
            raise Diverged(f"a feature of {job.recipe.backbone} is not finite")
        return values_NF


def _digest(network: Network) -> str:
    """Names a network's weights by their content, whatever file or seed they came from."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
