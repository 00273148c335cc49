"""Generated angiographies: a pure core, nothing is written.

A patient has eight views: the arteries of either side (L, R), with contrast agent in the carotid
(I) or the vertebral artery (V), from ahead (A) and from aside (B). An aneurysm is a sac on its
artery, seen in the views in which that artery is. A right side is drawn as the mirror image of a
left one, so what a mirror shows is a patient of the same kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.samples import drawing

SIDE = 64  # pixels
# Share of vessels that wind towards the viewer somewhere, which looks like a small sac.
END_ON = 0.06


@dataclass(frozen=True)
class Vessel:
    """A cubic curve by its corners (x, y) in shares of the image's side, x away from the middle
    of the head; `sites` are the arteries with a place on it, as shares of its way."""

    width: float  # half of it, pixels
    corners: tuple[tuple[float, float], ...]
    sites: tuple[tuple[str, float], ...] = ()


# The left side; what each view shows of it.
ANATOMY = {
    "I-A": (
        Vessel(2.0, ((0.55, 1.1), (0.62, 0.85), (0.42, 0.78), (0.52, 0.55)), (("ICA", 0.5),)),
        Vessel(1.5, ((0.52, 0.55), (0.68, 0.5), (0.78, 0.42), (1.1, 0.3)), (("MCA", 0.5),)),
        Vessel(
            1.4, ((0.52, 0.55), (0.36, 0.52), (0.28, 0.4), (0.32, -0.1)),
            (("ACOM", 0.4), ("ACA", 0.8)),
        ),
        Vessel(0.8, ((0.5, 0.68), (0.4, 0.7), (0.33, 0.73), (0.2, 0.8)), (("PCOM", 0.35),)),
        Vessel(0.9, ((0.75, 0.45), (0.8, 0.6), (0.9, 0.66), (1.1, 0.7))),
    ),
    "I-B": (
        Vessel(2.0, ((0.5, 1.1), (0.45, 0.8), (0.25, 0.78), (0.45, 0.58)), (("ICA", 0.55),)),
        Vessel(1.5, ((0.45, 0.58), (0.6, 0.48), (0.75, 0.46), (1.1, 0.35)), (("MCA", 0.5),)),
        Vessel(1.4, ((0.45, 0.58), (0.22, 0.5), (0.16, 0.15), (0.6, 0.05)), (("ACA", 0.55),)),
        Vessel(0.8, ((0.42, 0.7), (0.55, 0.78), (0.7, 0.78), (0.9, 0.85)), (("PCOM", 0.35),)),
        Vessel(0.7, ((0.46, 0.58), (0.6, 0.62), (0.72, 0.6), (0.9, 0.64)), (("AntChor", 0.5),)),
    ),
    "V-A": (
        Vessel(1.7, ((0.72, 1.1), (0.7, 0.88), (0.6, 0.78), (0.5, 0.66)), (("VA", 0.5),)),
        Vessel(2.0, ((0.5, 0.66), (0.47, 0.55), (0.53, 0.45), (0.5, 0.32)), (("BA", 0.5),)),
        Vessel(1.2, ((0.5, 0.32), (0.6, 0.2), (0.75, 0.28), (1.0, 0.1)), (("PCA", 0.45),)),
        Vessel(1.2, ((0.5, 0.32), (0.4, 0.2), (0.25, 0.28), (0.0, 0.1))),
        Vessel(0.8, ((0.5, 0.4), (0.64, 0.42), (0.75, 0.48), (1.0, 0.44)), (("SCA", 0.5),)),
    ),
    "V-B": (
        Vessel(1.7, ((0.6, 1.1), (0.62, 0.9), (0.5, 0.82), (0.42, 0.68)), (("VA", 0.5),)),
        Vessel(2.0, ((0.42, 0.68), (0.36, 0.56), (0.34, 0.45), (0.4, 0.34)), (("BA", 0.5),)),
        Vessel(1.2, ((0.4, 0.34), (0.55, 0.22), (0.75, 0.28), (1.1, 0.15)), (("PCA", 0.5),)),
        Vessel(0.8, ((0.55, 0.85), (0.75, 0.82), (0.75, 0.62), (1.0, 0.7)), (("PICA", 0.5),)),
    ),
}  # fmt: skip


def draw_view(rng: np.random.Generator, view: str, radii: Mapping[str, float]) -> NDArray[np.uint8]:
    """One view such as "LI-A", (SIDE, SIDE); `radii` are those of the patient's sacs, in pixels,
    by location such as "L_ICA" or "BA"."""
    side, kind = view[0], view[1:]
    bend = _bend(rng)
    # Contrast agent darkens by how much of it lies in the way; vessels that cross add up.
    agent = np.zeros((SIDE, SIDE))
    for vessel in ANATOMY[kind]:
        corners_42 = np.array(vessel.corners)
        points_P2 = bend(drawing.bezier(corners_42, np.linspace(0, 1, 48)))
        inside = drawing.stroke(SIDE, points_P2, vessel.width)
        agent = np.maximum(agent, inside * min(1.0, 0.4 + 0.3 * vessel.width))
        if rng.random() < END_ON:
            loop_12 = points_P2[[rng.integers(len(points_P2))]]
            agent = np.maximum(agent, drawing.stroke(SIDE, loop_12, rng.uniform(1.5, 3.2)))
        for artery, share in vessel.sites:
            radius = radii.get(artery if artery == "BA" else f"{side}_{artery}")
            if radius is not None:
                x, y = bend(drawing.bezier(corners_42, np.array([share])))[0]
                turn = rng.uniform(0, 2 * np.pi)
                x, y = x + 0.6 * radius * np.cos(turn), y + 0.6 * radius * np.sin(turn)
                depth = radius - drawing.reach(SIDE, y, x, rng.uniform(1, 1.4), turn)
                agent = np.maximum(agent, 1.1 * drawing.soft(depth))
    light = rng.normal(195, 10) + 7 * drawing.noise(rng, SIDE, 8) + rng.normal(0, 3, agent.shape)
    image = drawing.to_bytes(light - rng.normal(105, 12) * agent)
    return image if side == "L" else np.ascontiguousarray(image[:, ::-1])


def _bend(rng: np.random.Generator) -> Callable[[drawing.Floats], drawing.Floats]:
    """From anatomy to pixels for one view: how the head lay, and how these vessels wind."""
    angle, size = rng.normal(0, 0.08), rng.normal(1, 0.05)
    turn = size * np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    shift, winding = rng.normal(0, 0.03, 2), rng.normal(0, 0.02, 2)
    waves, phase = rng.uniform(4, 9, 2), rng.uniform(0, 2 * np.pi, 2)

    def bent(points_P2: drawing.Floats) -> drawing.Floats:
        wound_P2 = points_P2 + winding * np.sin(waves * points_P2[:, ::-1] + phase)
        return ((wound_P2 - 0.5) @ turn + 0.5 + shift) * SIDE

    return bent
