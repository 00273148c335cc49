"""Generated cells under four filters, with a protein in some of their parts: a pure core.

Nuclei are blue, the endoplasmic reticulum yellow, microtubules red, and the protein green.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from spaces.samples import drawing

SIDE = 64  # pixels
NEGATIVE = "18"
# Classes of the competition that are drawn.
PLACES = {
    "0": "nucleoplasm", "1": "nuclear membrane", "2": "nucleoli", "13": "plasma membrane",
    "14": "mitochondria", "16": "cytosol", "17": "vesicles", NEGATIVE: "negative",
}  # fmt: skip


def draw_cells(rng: np.random.Generator, labels: Collection[str]) -> dict[str, NDArray[np.uint8]]:
    """Images (SIDE, SIDE) by filter of some cells whose protein is in the places `labels`."""
    filters = {name: np.zeros((SIDE, SIDE)) for name in ("red", "green", "blue", "yellow")}
    centres = drawing.spread(rng, int(rng.integers(3, 6)), SIDE, apart=20)
    # A pixel belongs to the nearest cell.
    away = np.stack([drawing.reach(SIDE, y, x) for y, x in centres])
    nearest = away.argmin(axis=0)
    # A protein is seldom where it is alone: there is a little of it elsewhere, which has no label.
    amounts = {str(rng.choice([p for p in PLACES if p != NEGATIVE])): rng.uniform(0, 0.25)}
    amounts |= {label: rng.uniform(0.3, 1) for label in labels}
    if NEGATIVE in labels:
        amounts = {}
    for i, centre in enumerate(centres):
        cell = _Cell(rng, centre, nearest == i, away)
        filters["blue"] += cell.nucleus * (130 + 15 * drawing.noise(rng, SIDE, 1.5))
        grains = np.clip(1 + 0.5 * drawing.noise(rng, SIDE, 1.0), 0, None)
        filters["yellow"] += cell.cytoplasm * np.exp(-cell.outside / 7) * 110 * grains
        ridges = np.clip(1 - np.abs(drawing.noise(rng, SIDE, 1.3)) * 2, 0, 1)
        filters["red"] += cell.cytoplasm * (25 + 130 * ridges)
        for label, amount in amounts.items():
            filters["green"] += amount * rng.normal(1, 0.1) * 150 * cell.protein(rng, label)
    return {
        name: drawing.to_bytes(np.clip(field, 0, 240) * rng.normal(0.95, 0.06) + _dark(rng))
        for name, field in filters.items()
    }


def _dark(rng: np.random.Generator) -> drawing.Floats:
    """What a camera sees of nothing."""
    return np.asarray(rng.uniform(4, 12) + rng.normal(0, 2.5, (SIDE, SIDE)))


class _Cell:
    """Where one cell's parts are, 0..1 on every pixel."""

    def __init__(
        self,
        rng: np.random.Generator,
        centre: drawing.Floats,
        own: NDArray[np.bool_],
        away: drawing.Floats,
    ) -> None:
        (y, x), self.radius = centre, rng.uniform(5.5, 7.5)
        stretch, angle = rng.uniform(1, 1.5), rng.uniform(0, np.pi)
        # Distance outside the nucleus; negative within it.
        self.outside = drawing.reach(SIDE, y, x, stretch, angle) - self.radius
        self.nucleus = drawing.soft(-self.outside)
        edge = rng.uniform(13, 17) + 1.5 * drawing.noise(rng, SIDE, 5)
        ranked = np.sort(away, axis=0)
        # Distance to the cell's edge: its own, or halfway to a neighbour.
        inside = edge - drawing.reach(SIDE, y, x)
        if len(away) > 1:
            inside = np.minimum(inside, (ranked[1] - ranked[0]) / 2)
        self.inside = np.where(own, inside, -9.0)
        self.cytoplasm = drawing.soft(self.inside) * (1 - self.nucleus)

    def protein(self, rng: np.random.Generator, label: str) -> drawing.Floats:
        match PLACES[label]:
            case "nucleoplasm":
                return self.nucleus * (0.75 + 0.1 * drawing.noise(rng, SIDE, 1.5))
            case "nuclear membrane":
                return np.exp(-((self.outside / 1.1) ** 2))
            case "nucleoli":
                return self._dots(rng, int(rng.integers(2, 4)), -2.0, radius=1.9)
            case "plasma membrane":
                return np.exp(-(((self.inside - 1) / 1.1) ** 2))
            case "mitochondria":
                worms = drawing.noise(rng, SIDE, 1.2) > 0.8
                return self.cytoplasm * worms * np.exp(-np.maximum(self.outside - 5, 0) / 4)
            case "cytosol":
                return self.cytoplasm * (0.55 + 0.06 * drawing.noise(rng, SIDE, 3))
            case _:
                return self._dots(rng, int(rng.integers(12, 20)), 1.0, radius=0.9)

    def _dots(
        self, rng: np.random.Generator, count: int, beyond: float, radius: float
    ) -> drawing.Floats:
        """Discs in the nucleus at least -`beyond` below its edge; in the cytoplasm when it is
        positive, `beyond` the nucleus."""
        if beyond < 0:
            allowed = self.outside < beyond
        else:
            allowed = (self.outside > beyond) & (self.inside > 1)
        spots = np.argwhere(allowed)
        field = np.zeros((SIDE, SIDE))
        for y, x in spots[rng.integers(len(spots), size=count)] if len(spots) else ():
            np.maximum(field, drawing.soft(radius - drawing.reach(SIDE, y, x)), out=field)
        return field
