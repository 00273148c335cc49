"""Recipe: one sampled point of a Space, frozen, strict to and from plain data."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spaces.errors import UserError, near

OPTIMIZERS = ("adamw", "adam", "sgd")
POOLINGS = ("avg", "max", "avgmax", "gem")
HEADS = ("linear", "activation", "mlp")
ACTIVATIONS = ("relu", "silu", "gelu")
TTA = (1, 4, 8)
PROBES = ("none", "ridge", "knn", "mlp")
FUSIONS = ("mean", "max", "attention", "transformer", "concat", "stack", "grid")
NORMALISE = ("imagenet", "minmax", "train", "image")
STAINS = ("none", "macenko", "reinhard")
FREEZES = ("none", "last_layer", "last_block")
SCHEDULES = ("cosine", "exponential", "plateau", "onecycle")


def _outside(owner: object, **rules: tuple[float, float]) -> list[str]:
    """Faults for the fields of `owner` that lie outside their closed interval."""
    faults = []
    for name, (low, high) in rules.items():
        value = getattr(owner, name)
        if not low <= value <= high:
            faults.append(f"{name} is {value!r}; it must lie in [{low:g}, {high:g}]")
    return faults


def _unknown(owner: object, **rules: tuple[Any, ...]) -> list[str]:
    """Faults for the fields of `owner` whose value is none of the known ones."""
    return [
        f"{name} is {getattr(owner, name)!r}; known: {', '.join(map(str, known))}"
        for name, known in rules.items()
        if getattr(owner, name) not in known
    ]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to training images, each drawn anew for every sample of every batch."""

    flip: bool = True  # left-right and top-bottom, each with probability 1/2
    rot90: bool = True  # a quarter turn drawn from 0, 90, 180, 270 degrees
    brightness: float = 0.0  # factor drawn from [1 - b, 1 + b]
    contrast: float = 0.0  # factor drawn from [1 - c, 1 + c], about the image's grey mean
    saturation: float = 0.0  # factor drawn from [1 - s, 1 + s], about each pixel's grey
    hue: float = 0.0  # shift drawn from [-h, h], in turns of the colour circle
    rotate: float = 0.0  # degrees, drawn from [-r, r]
    scale: float = 0.0  # zoom drawn from [1 - s, 1 + s]
    shift: float = 0.0  # fraction of the side, drawn from [-s, s] on each axis
    crop: float = 1.0  # smallest area of a random resized crop; 1 = no crop
    hed: float = 0.0  # stains' factors from [1 - h, 1 + h], offsets from [-h, h] (Tellez 2018)
    mirror: bool = False  # with probability 1/2 left and right change places: pixels, views, labels
    view_drop: float = 0.0  # probability that a view is blanked; one at least stays
    mixup: float = 0.0  # alpha of the Beta that mixes pairs of samples; 0 = off
    cutmix: float = 0.0  # alpha of the Beta for the area of a box from another sample; 0 = off

    def __post_init__(self) -> None:
        faults = _outside(
            self, brightness=(0, 0.9), contrast=(0, 0.9), saturation=(0, 0.9), hue=(0, 0.5),
            rotate=(0, 180), scale=(0, 0.5), shift=(0, 0.5), crop=(0.05, 1), hed=(0, 0.5),
            view_drop=(0, 0.9), mixup=(0, 2), cutmix=(0, 2),
        )  # fmt: skip
        if faults:
            raise UserError(faults)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how one model of a fold is trained, given the data and a seed."""

    backbone: str  # timm's name
    weights: str = "random"  # "pretrained" (hub or local folder) or "random"
    image_size: int = 64  # pixels, side of the square that the backbone sees, of each view
    channels: int = 3  # of the stored images, that the backbone sees: the first ones
    normalise: str = "imagenet"  # the backbone's own; "minmax": 0..1; "train": the fold's; "image"
    stain: str = "none"  # brings the stains of H&E tiles to one reference
    probe: str = "none"  # a head on frozen features, chosen from a grid inside the training rows
    pca: int = 0  # principal components of the features that a probe sees; 0 = the features
    fusion: str = "attention"  # of a row's views; without views nothing
    pooling: str = "avg"
    head: str = "linear"  # "activation": act + dropout + linear; "mlp": one hidden layer
    activation: str = "silu"  # of the head; of the backbone too with activation_backbone
    activation_backbone: bool = False  # replace the backbone's ReLUs by `activation`
    drop: float = 0.0  # dropout before the last layer
    drop_path: float = 0.0  # stochastic depth in the backbone
    optimizer: str = "adamw"
    lr: float = 1e-3  # peak learning rate of the backbone
    head_lr_mult: float = 1.0  # the head learns with lr x this
    weight_decay: float = 1e-2
    batch_size: int = 32  # samples per optimiser step, however many micro-batches that takes
    epochs: int = 10  # scheduled epochs per fold
    schedule: str = "cosine"  # of the learning rate
    warmup: float = 1.0  # epochs of linear warm-up before the schedule
    freeze: str = "none"  # "last_layer": only the head learns; "last_block": and the last stage
    head_warmup: float = 0.0  # epochs at the start in which only the head learns
    layer_decay: float = 1.0  # learning rate of a block relative to the block after it
    ema: float = 0.99  # decay per step of the averaged weights that are evaluated; 0 = off
    swa: float = 0.0  # share of the epochs, the last ones, whose weights are averaged alike
    tta: int = 1  # views averaged at prediction: 1, 4 (flips) or 8 (flips x quarter turn)
    seed: int = 0  # the seed as a late hyperparameter
    augment: Augment = field(default_factory=Augment)
    task: Any = None  # the task's own nested part, a frozen dataclass

    def __post_init__(self) -> None:
        faults = _unknown(
            self, weights=("pretrained", "random"), pooling=POOLINGS, head=HEADS,
            activation=ACTIVATIONS, optimizer=OPTIMIZERS, tta=TTA, probe=PROBES,
            fusion=FUSIONS, normalise=NORMALISE, stain=STAINS, freeze=FREEZES,
            schedule=SCHEDULES,
        )  # fmt: skip
        faults += _outside(
            self, image_size=(8, 4096), drop=(0, 0.9), drop_path=(0, 0.9), lr=(1e-8, 10),
            head_lr_mult=(0.01, 1000), weight_decay=(0, 10), batch_size=(1, 65536),
            epochs=(1, 10000), warmup=(0, 1000), ema=(0, 0.99999), channels=(1, 64),
            pca=(0, 65536), head_warmup=(0, 1000), layer_decay=(0.1, 1), swa=(0, 1),
        )  # fmt: skip
        if self.probe != "none" and self.epochs != 1:
            faults.append(f"epochs is {self.epochs}; a probe has 1, since its features are frozen")
        if faults:
            raise UserError(faults)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], part: type | None) -> "Recipe":
        """Rebuild a recipe whose task part is of the dataclass `part` (None: no part).

        Raises UserError for unknown, missing or impossible fields.
        """
        fields = dict(data)
        if isinstance(fields.get("augment"), Mapping):
            fields["augment"] = _strict(Augment, fields["augment"], "augment.")
        task = fields.pop("task", None)
        fields["task"] = _strict(part, task, "task.") if part and task is not None else None
        return _strict(cls, fields, "")

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name this recipe's content."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _strict(cls: type, data: Mapping[str, Any], prefix: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    faults = [
        f"recipe field {prefix}{name} is unknown; {near(name, known)}"
        for name in data
        if name not in known
    ]
    faults += [
        f"recipe field {prefix}{name} is missing"
        for name, f in known.items()
        if name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if faults:
        raise UserError(faults)
    return cls(**data)
