"""What timm knows about a backbone, without its weights."""

import functools
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from search.model.weights import HUB, hub_id
from spaces.errors import UserError, near
from spaces.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What timm knows about a backbone; `mean` and `std` belong to its pretrained weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int  # pixels, side of the square it was trained on
    fixed_size: bool  # whether it is built for one size (position embeddings, windows)
    params: int  # of the backbone without a classifier


def known_backbone(name: str) -> None:
    """Raises UserError unless timm has a model `name` ("arch" or "arch.tag"). What the hub has,
    "hf-hub:OWNER/MODEL", is not asked here."""
    if name.startswith(HUB):
        if hub_id(name) is None:
            raise UserError(f"backbone {name!r} is no model of the hub; write {HUB}OWNER/MODEL")
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"backbone {name!r} is unknown to timm; {near(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(f"backbone {name!r} has an unknown tag; {near(tag, tags)}")
    if get_pretrained_cfg(name) is None:
        known = (n for n in timm.list_models() if n != architecture)
        raise UserError(f"backbone {name!r} is an unknown or retired name; {near(name, known)}")


@functools.cache
def model_facts(backbone: str) -> ModelFacts:
    """Facts of a backbone, without building its weights. Raises UserError for an unknown one."""
    known_backbone(backbone)
    try:
        with torch.device("meta"):
            model = timm.create_model(backbone, num_classes=0)
    except OSError as error:
        raise UserError(not_fetched(backbone, error)) from error
    config: dict[str, Any] = vars(model)["pretrained_cfg"]
    return ModelFacts(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=config["input_size"][-1],
        fixed_size=bool(config.get("fixed_input_size")),
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


def normalisation(
    recipe: Recipe, facts: ModelFacts, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, that images are normalised
    with. Channels beyond the colours that the backbone knows, and a single one, get the average.

    0 and 1 where nothing is to be known of the backbone: "minmax", "image", whose batches use each
    image's own, and "train", whose numbers come from the training rows.
    """
    if recipe.normalise != "imagenet":
        return (0.0,) * channels, (1.0,) * channels

    def each(values: tuple[float, ...]) -> tuple[float, ...]:
        known = values if len(values) <= channels else ()
        return known + (sum(values) / len(values),) * (channels - len(known))

    return each(facts.mean), each(facts.std)


def has_fixed_size(backbone: str) -> bool:
    """Whether it is built for one size. Quicker than all facts."""
    config = get_pretrained_cfg(backbone)  # knows nothing of the hub's
    if config is None:
        return model_facts(backbone).fixed_size
    return bool(config.fixed_input_size)


def not_fetched(backbone: str, error: Exception) -> str:
    return (
        f"pretrained weights of {backbone} could not be fetched ({error}); use --weights DIR for "
        "local files, or --weights random"
    )
