"""Means: what the plan found to search with."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the plan found to search with; a task's space is a function of it."""

    gpu: bool
    pretrained: bool  # whether pretrained weights can be had
    image_sizes: tuple[int, ...]  # pixels, that may be searched
    backbones: tuple[str, ...]  # timm names that may be searched
    epochs: int  # scheduled epochs per fold
    train_rows: int  # rows of the smallest training fold
    views: int = 1  # images per row
    channels: int = 3  # of a stored image
    outputs: int = 1  # targets, or classes
