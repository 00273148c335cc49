"""What generated images are drawn with: soft shapes, curves and smooth noise. Nothing is written.

Fields are (side, side) arrays; lengths are pixels, angles radians.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def soft(depth: Floats) -> Floats:
    """0..1 with an edge one pixel wide; `depth` is the distance inside it."""
    return np.clip(depth + 0.5, 0, 1)


def reach(side: int, y: float, x: float, stretch: float = 1.0, angle: float = 0.0) -> Floats:
    """Distance of every pixel from (y, x), shorter along `angle` by the root of `stretch`, so
    that `reach < radius` is an ellipse of a disc's area."""
    down, right = np.arange(side)[:, None] - y, np.arange(side) - x
    along = right * np.cos(angle) + down * np.sin(angle)
    across = down * np.cos(angle) - right * np.sin(angle)
    return np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch))


def bezier(corners_42: Floats, t: Floats) -> Floats:
    """Points (P, 2) of the cubic curve with these corners, at the shares t (P,) of its way."""
    t = t[:, None]
    weights_P4 = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return weights_P4 @ corners_42


def stroke(side: int, points_P2: Floats, width: float) -> Floats:
    """0..1 within `width` of any of the points (x, y), which may lie outside the image."""
    around = np.arange(-int(width) - 1, int(width) + 2)
    x, y = points_P2.T[..., None, None]
    rows, columns = np.broadcast_arrays(np.rint(y) + around[:, None], np.rint(x) + around)
    inside = soft(width - np.hypot(rows - y, columns - x))
    seen = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    field = np.zeros((side, side))
    np.maximum.at(field, (rows[seen].astype(int), columns[seen].astype(int)), inside[seen])
    return field


def noise(rng: np.random.Generator, side: int, grain: float) -> Floats:
    """Smooth random field of zero mean and unit variance; `grain` is the width of its blur."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    white = np.fft.rfft2(rng.normal(0, 1, (side, side)))
    blurred = white * np.exp(-2 * (np.pi * grain * frequency) ** 2)
    field: Floats = np.fft.irfft2(blurred, s=(side, side))
    return (field - field.mean()) / field.std()


def spread(rng: np.random.Generator, count: int, side: int, apart: float) -> list[Floats]:
    """Up to `count` places (y, x), at least `apart` from each other; at least one."""
    places: list[Floats] = []
    for _ in range(20 * count):
        place = rng.uniform(0.1 * side, 0.9 * side, 2)
        if all(np.hypot(*(place - other)) >= apart for other in places):
            places.append(place)
        if len(places) == count:
            break
    return places


def to_bytes(field: Floats) -> NDArray[np.uint8]:
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)
