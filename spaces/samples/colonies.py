"""Generated images of colonies on a dish, which a grade makes ragged: a pure core."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.samples import drawing

SIDE = 48  # pixels


@dataclass(frozen=True, kw_only=True)
class Dish:
    """How one patient's dish was prepared and lit."""

    ground: tuple[float, float, float]  # its colour, 0..255
    ink: tuple[float, float, float]  # what a colony takes from each colour


def draw_dish(rng: np.random.Generator) -> Dish:
    light = rng.normal(0, 10)
    ground = np.array((222, 205, 190)) + light + rng.normal(0, 6, 3)
    ink = np.array((60, 95, 50)) * rng.normal(1, 0.12) + rng.normal(0, 6, 3)
    return Dish(ground=tuple(ground.tolist()), ink=tuple(ink.tolist()))


def draw_colonies(
    rng: np.random.Generator, dish: Dish, severity: float
) -> tuple[NDArray[np.uint8], float, int]:
    """One image (SIDE, SIDE, 3), the percentage of it that colonies cover, and their number.

    `severity` 0..1 makes them ragged at the edge and mottled within.
    """
    centres = drawing.spread(rng, int(rng.integers(2, 9)), SIDE, apart=10)
    cover = np.zeros((SIDE, SIDE))
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    for y, x in centres:
        angle = np.arctan2(rows - y, columns - x)
        lobes = np.sin(rng.integers(5, 8) * angle + rng.uniform(0, 2 * np.pi))
        radius = rng.uniform(3.5, 6) * (1 + 0.4 * severity * lobes)
        np.maximum(cover, drawing.soft(radius - drawing.reach(SIDE, y, x)), out=cover)
    mottle = 1 + 0.35 * severity * drawing.noise(rng, SIDE, 0.8)
    image = np.array(dish.ground) - (cover * mottle)[..., None] * np.array(dish.ink)
    image += (4 * drawing.noise(rng, SIDE, 8))[..., None] + rng.normal(0, 2, image.shape)
    return drawing.to_bytes(image), round(100 * float(cover.mean()), 2), len(centres)
