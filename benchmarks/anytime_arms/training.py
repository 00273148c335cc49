"""How both peers train: DataLoader, Pillow, torchvision v2, timm, AdamW with warm-up and cosine,
averaged weights, eight views at the end. What a strong competitor brings along from earlier work.

Shapes: T genes, N rows, B batch, H W C height, width and channels.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from anytime_arms.problem import Problem

Config = Mapping[str, Any]  # a value for each of `SEARCHED`
# Of what our space asks for. The rest stays at what is known to serve: AdamW, cosine, targets to
# unit variance, images by the training rows' own statistics, a linear head, eight views at the end.
SEARCHED = (
    "backbone", "lr", "weight_decay", "batch_size", "drop", "pooling", "average",
    "loss", "pearson_weight", "colour", "hue", "rotate", "crop", "mixing",
)  # fmt: skip
LACKING = ("gem", "swa")  # options of ours that neither timm nor these scripts have
POOLING = {"avg": "avg", "avgmax": "catavgmax"}  # ours -> timm's


def ranges_of(problem: Problem) -> dict[str, dict[str, Any]]:
    """The ranges of what the peers search, equal to ours."""
    ranges = {name: dict(problem.ranges[name]) for name in SEARCHED}
    for wanted in ranges.values():
        if "options" in wanted:
            wanted["options"] = [o for o in wanted["options"] if o not in LACKING]
    return ranges


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """All images, resized once, and all targets."""

    train_NHWC: NDArray[np.uint8]
    test_NHWC: NDArray[np.uint8]
    targets_NT: NDArray[np.float32]
    fold_N: NDArray[np.int64]

    @classmethod
    def read(cls, problem: Problem) -> Self:
        train = pd.read_csv(problem.data / "train.csv", dtype={"ID": str})
        test = pd.read_csv(problem.data / "test.csv", dtype={"ID": str})
        fold_of = pd.read_csv(problem.folder / "folds.csv", dtype={"ID": str}).set_index("ID")

        def images(paths: "pd.Series[str]") -> NDArray[np.uint8]:
            side = (problem.size, problem.size)
            opened = (Image.open(problem.data / path).convert("RGB") for path in paths)
            return np.stack([np.asarray(image.resize(side)) for image in opened])

        return cls(
            train_NHWC=images(train["path"]),
            test_NHWC=images(test["path"]),
            targets_NT=train.drop(columns=["ID", "path"]).to_numpy(np.float32),
            fold_N=fold_of.loc[train["ID"], "fold"].to_numpy(),
        )


class Tiles(Dataset[tuple[Tensor, Tensor]]):
    """Augmented training rows."""

    def __init__(
        self, images_NHWC: NDArray[np.uint8], targets_NT: Tensor, transform: nn.Module
    ) -> None:
        self._images_NHWC, self._targets_NT = images_NHWC, targets_NT
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images_NHWC)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self._transform(Image.fromarray(self._images_NHWC[row])), self._targets_NT[row]


def _quarter_turn(image: Image.Image) -> Image.Image:
    return image.rotate(90 * random.randrange(4))


def _augmentation(config: Config, size: int, mean: list[float], std: list[float]) -> nn.Module:
    steps: list[nn.Module] = [v2.RandomHorizontalFlip(), v2.Lambda(_quarter_turn)]
    if config["rotate"]:
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomRotation(config["rotate"], interpolation=bilinear))
    if config["crop"] < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(config["crop"], 1.0)))
    if config["colour"] or config["hue"]:
        colour = config["colour"]
        steps.append(v2.ColorJitter(colour, colour, colour, config["hue"]))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose(steps)


def _mixed(images_BCHW: Tensor, targets_BT: Tensor, mixing: str) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix with another order of the batch."""
    if mixing == "none":
        return images_BCHW, targets_BT
    order = torch.randperm(len(images_BCHW))
    if mixing.startswith("mixup"):
        alpha = float(mixing.removeprefix("mixup"))
        share = float(np.random.beta(alpha, alpha))
        images_BCHW = share * images_BCHW + (1 - share) * images_BCHW[order]
    else:
        height, width = images_BCHW.shape[2:]
        edge = math.sqrt(1 - random.random())
        rows, columns = round(height * edge), round(width * edge)
        top, left = random.randint(0, height - rows), random.randint(0, width - columns)
        box = (..., slice(top, top + rows), slice(left, left + columns))
        images_BCHW = images_BCHW.clone()
        images_BCHW[box] = images_BCHW[order][box]
        share = 1 - rows * columns / (height * width)
    return images_BCHW, share * targets_BT + (1 - share) * targets_BT[order]


def _correlation(pred_BT: Tensor, true_BT: Tensor, dim: int) -> Tensor:
    pred = pred_BT - pred_BT.mean(dim, keepdim=True)
    true = true_BT - true_BT.mean(dim, keepdim=True)
    return nn.functional.cosine_similarity(pred, true, dim=dim, eps=1e-6).mean()


def _loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """On standardised targets. "gene": correlation over the batch; "cell": over a row's genes."""
    name, weight = config["loss"], config["pearson_weight"]
    if name == "huber":
        return nn.HuberLoss()

    def loss(pred_BT: Tensor, true_BT: Tensor) -> Tensor:
        total = nn.functional.mse_loss(pred_BT, true_BT)
        for dim, ending in ((0, "gene"), (1, "cell")):
            if name in (f"mse_pearson_{ending}", "mse_pearson_both"):
                total = total + weight * (1 - _correlation(pred_BT, true_BT, dim))
        return total

    return loss


class Training:
    """One network on its way through its epochs, on the rows outside one fold."""

    def __init__(self, data: Data, fold: int, config: Config, size: int, epochs: int) -> None:
        rows = np.flatnonzero(data.fold_N != fold)
        images_NHWC = data.train_NHWC[rows]
        targets_NT = torch.from_numpy(data.targets_NT[rows])
        self.mean_T, self.std_T = targets_NT.mean(0), targets_NT.std(0).clamp(min=1e-6)
        self.pixel_mean = (images_NHWC.mean((0, 1, 2)) / 255).tolist()
        self.pixel_std = (images_NHWC.std((0, 1, 2)) / 255).tolist()
        transform = _augmentation(config, size, self.pixel_mean, self.pixel_std)
        standard_NT = (targets_NT - self.mean_T) / self.std_T
        # The processes of a loader cost more than they bring with tiles of 64 px on two cores:
        # measured, 0 workers and 2 threads were the fastest way for most networks.
        self._loader = DataLoader(
            Tiles(images_NHWC, standard_NT, transform), config["batch_size"], shuffle=True,
            drop_last=len(rows) >= config["batch_size"],
        )  # fmt: skip
        model = timm.create_model(
            config["backbone"], num_classes=targets_NT.shape[1], drop_rate=config["drop"],
            global_pool=POOLING[config["pooling"]],
        )  # fmt: skip
        self._model = model.to(memory_format=torch.channels_last)
        average = config["average"]
        self._ema = None
        if average != "none":
            decay = float(average.removeprefix("ema"))
            self._ema = ModelEmaV3(self._model, decay, use_warmup=True)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), config["lr"], weight_decay=config["weight_decay"], fused=True
        )
        warmup, total = len(self._loader), len(self._loader) * epochs
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: (step + 1) / warmup if step < warmup
            else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(total - warmup, 1)),
        )  # fmt: skip
        self._loss, self._mixing, self._step = _loss(config), config["mixing"], 0

    @property
    def network(self) -> nn.Module:
        """What is evaluated."""
        return self._model if self._ema is None else self._ema.module

    def epoch(self) -> None:
        self._model.train()
        for images_BCHW, targets_BT in self._loader:
            images_BCHW, targets_BT = _mixed(images_BCHW, targets_BT, self._mixing)
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
            self._optimizer.zero_grad(set_to_none=True)
            self._loss(self._model(images_BCHW), targets_BT).backward()
            self._optimizer.step()
            self._schedule.step()
            self._step += 1
            if self._ema is not None:
                self._ema.update(self._model, step=self._step)

    @torch.inference_mode()
    def predict(self, images_NHWC: NDArray[np.uint8], views: int = 1) -> NDArray[np.float32]:
        """(T, N) predictions; with 8 views, the mean over flips and quarter turns."""
        self.network.eval()
        mean_C11 = torch.tensor(self.pixel_mean)[:, None, None]
        std_C11 = torch.tensor(self.pixel_std)[:, None, None]
        parts = []
        for start in range(0, len(images_NHWC), 64):
            block = torch.from_numpy(images_NHWC[start : start + 64]).permute(0, 3, 1, 2)
            images_BCHW = (block / 255 - mean_C11) / std_C11
            seen = [self.network(view) for view in _views(images_BCHW, views)]
            parts.append(torch.stack(seen).mean(0) * self.std_T + self.mean_T)
        return torch.cat(parts).T.numpy().astype(np.float32)


def _views(images_BCHW: Tensor, count: int) -> Iterator[Tensor]:
    for view in range(count):
        turned = torch.rot90(images_BCHW, view % 4, (2, 3))
        yield (turned.flip(3) if view >= 4 else turned).contiguous(
            memory_format=torch.channels_last
        )


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
