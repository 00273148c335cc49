"""The peer's way to feed a network: image files, decoded by PIL and augmented by torchvision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from spaces.recipe import Augment


class Files(Dataset[tuple[Tensor, Tensor]]):
    """Each image is decoded and transformed when it is asked for."""

    def __init__(
        self,
        paths: Sequence[Path],
        targets_NT: Tensor,
        augment: Augment,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Of `augment` its rotation and colours are taken; flips and quarter turns are on."""
        self.paths, self.targets_NT = paths, targets_NT
        self.transform = v2.Compose([
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomChoice([v2.RandomRotation((a, a)) for a in (0, 90, 180, 270)]),
            v2.RandomRotation(augment.rotate, interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB")), self.targets_NT[row]


def write_tiles(folder: Path, count: int, size: int, suffix: str) -> list[str]:
    """Tiles with a texture, so that they take as long to decode as stained tissue does; names."""
    rng, names = np.random.default_rng(0), []
    for i in range(count):
        coarse = rng.integers(90, 255, (size // 8, size // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        names.append(f"{i:05}{suffix}")
        Image.fromarray(noisy).save(folder / names[-1])
    return names
