"""Generated H&E tiles and the expression of the tissue in them: a pure core, nothing is written.

A tile is drawn in optical densities, as light passes a stained slice (Beer and Lambert): what
haematoxylin and eosin absorb adds up, and the scanner sees white * exp(-absorbed). How much stain
a tile holds in all is drawn apart from how it is arranged (a few large nuclei or many small ones,
round or spindled, scattered or clumped; fibres in step or criss-cross), and genes follow both. So
colour statistics alone explain a part of the expression, and a network that sees shapes more.

Shapes: N tiles, T genes, S slides, P programmes, C nuclei of a tile; pixels are (SIDE, SIDE).
"""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SIDE = 64  # pixels
_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Slide:
    """How one slide was stained and scanned, and which tissue it mostly shows."""

    haematoxylin: tuple[float, float, float]  # absorbed per unit of stain in red, green, blue
    eosin: tuple[float, float, float]
    strength: tuple[float, float]  # of haematoxylin and eosin
    white: tuple[float, float, float]  # what the scanner makes of bare glass, 0..255
    regions: tuple[float, ...]  # shares of REGIONS


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """What is in one tile."""

    cover: float  # share of the area that nuclei cover
    radius: float  # of a nucleus, pixels
    spindle: float  # 0 round .. 1 needle-shaped nuclei
    clump: float  # 0 scattered .. 1 clumped nuclei
    fibre: float  # share of the stroma that is collagen
    align: float  # 0 criss-cross .. 1 fibres in step
    fat: float  # share of fat vacuoles
    blood: float  # share of red cells
    glass: float  # share of bare glass at a tissue's edge


# Mean and spread of Tissue's fields, in order, in each kind of region. The spreads are wide: the
# regions overlap, so no tile is told by its kind alone.
REGIONS = {
    "tumour": (
        (0.27, 3.4, 0.15, 0.35, 0.25, 0.4, 0.00, 0.02, 0),
        (0.10, 0.6, 0.10, 0.2, 0.15, 0.3),
    ),
    "lymphoid": (
        (0.24, 1.9, 0.05, 0.60, 0.25, 0.4, 0.0, 0.03, 0),
        (0.10, 0.3, 0.05, 0.2, 0.1, 0.3),
    ),
    "stroma": (
        (0.12, 2.3, 0.75, 0.10, 0.80, 0.6, 0.02, 0.05, 0),
        (0.05, 0.4, 0.15, 0.1, 0.15, 0.3),
    ),
    "fat": ((0.07, 2.0, 0.40, 0.20, 0.40, 0.4, 0.45, 0.02, 0), (0.03, 0.4, 0.2, 0.1, 0.15, 0.3)),
    "edge": ((0.15, 2.6, 0.35, 0.30, 0.50, 0.4, 0.02, 0.12, 0.3), (0.08, 0.7, 0.2, 0.2, 0.2, 0.3)),
}
_LOW = (0.01, 1.4, 0, 0, 0, 0, 0, 0, 0)
_HIGH = (0.5, 5.0, 1, 1, 1, 1, 0.7, 0.4, 0.6)

# Three training slides, then the test slide, which lies within the range of the three.
SLIDES = (
    Slide(
        haematoxylin=(0.68, 0.66, 0.30), eosin=(0.10, 0.95, 0.28), strength=(1.00, 0.95),
        white=(243, 241, 244), regions=(0.36, 0.16, 0.26, 0.10, 0.12),
    ),
    Slide(
        haematoxylin=(0.76, 0.60, 0.16), eosin=(0.05, 0.86, 0.50), strength=(0.95, 0.85),
        white=(246, 240, 230), regions=(0.26, 0.20, 0.30, 0.12, 0.12),
    ),
    Slide(
        haematoxylin=(0.58, 0.74, 0.40), eosin=(0.20, 0.98, 0.14), strength=(1.15, 1.10),
        white=(232, 236, 246), regions=(0.30, 0.22, 0.22, 0.14, 0.12),
    ),
    Slide(
        haematoxylin=(0.70, 0.64, 0.24), eosin=(0.10, 0.93, 0.36), strength=(1.05, 0.90),
        white=(240, 241, 238), regions=(0.32, 0.18, 0.26, 0.12, 0.12),
    ),
)  # fmt: skip


def draw_tissue(rng: np.random.Generator, slide: Slide) -> Tissue:
    kind = rng.choice(len(REGIONS), p=slide.regions)
    mean, spread = list(REGIONS.values())[kind]
    values = np.array(mean, dtype=float)
    values[: len(spread)] += rng.normal(0, spread)
    # Fat, blood and glass are shares near zero: they vary in proportion to themselves.
    values[len(spread) :] *= rng.gamma(3, 1 / 3, len(values) - len(spread))
    return Tissue(**dict(zip(Tissue.__annotations__, np.clip(values, _LOW, _HIGH), strict=True)))


def draw_tile(rng: np.random.Generator, tissue: Tissue, slide: Slide) -> NDArray[np.uint8]:
    """One tile, (SIDE, SIDE, 3) uint8."""
    bare = _bare(rng, tissue)
    weave = _fibres(rng, tissue.align)
    eosin = rng.uniform(0.2, 0.4) + 0.10 * _noise(rng, 3.0) + 0.33 * tissue.fibre * weave
    red = _discs(rng, tissue.blood, radius=(2.0, 2.8))
    eosin = np.maximum(eosin, 0.05) * (1 - red) + 0.95 * red
    nuclei, chromatin = _nuclei(rng, tissue, bare)
    haematoxylin = 0.06 + 0.04 * _noise(rng, 2.0) + nuclei * chromatin
    eosin = eosin * (1 - 0.5 * nuclei)
    stains = np.stack([haematoxylin * slide.strength[0], eosin * slide.strength[1]], axis=-1) * (
        1 - bare[..., None]
    )
    # No two tiles of a slide are stained alike: the slice's thickness varies.
    stains *= rng.normal(1, 0.09, 2)
    density = np.maximum(stains, 0) @ np.array([slide.haematoxylin, slide.eosin])
    light = np.array(slide.white) * np.exp(-density) + rng.normal(0, 1.8, (SIDE, SIDE, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, smooth: float) -> Floats:
    """Smooth random field of unit variance; `smooth` is its grain in pixels."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    return _shaped(rng, np.exp(-2 * (np.pi * smooth * frequency) ** 2))


def _fibres(rng: np.random.Generator, align: float) -> Floats:
    """Streaks: along one direction when `align` is 1, along any when it is 0."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    main = rng.uniform(0, np.pi)
    field = np.zeros((SIDE, SIDE))
    for turn in rng.uniform(-np.pi / 2, np.pi / 2, 5) * (1 - align):
        angle = main + turn
        along, across = (
            fx * np.cos(angle) + fy * np.sin(angle),
            fy * np.cos(angle) - fx * np.sin(angle),
        )
        band = np.exp(-2 * (np.pi * 6.0 * along) ** 2 - 2 * (np.pi * 0.8 * across) ** 2)
        field += np.abs(_shaped(rng, band))
    return (field - field.mean()) / field.std() * 0.8 + 0.9


def _shaped(rng: np.random.Generator, spectrum: Floats) -> Floats:
    white = np.fft.rfft2(rng.normal(0, 1, (SIDE, SIDE)))
    field = np.fft.irfft2(white * spectrum, s=(SIDE, SIDE))
    return (field - field.mean()) / field.std()


def _discs(rng: np.random.Generator, share: float, radius: tuple[float, float]) -> Floats:
    """Soft-edged discs that cover about `share` of the tile, 0..1."""
    mean_area = np.pi * np.mean(np.square(radius))
    count = rng.poisson(share * SIDE**2 / mean_area)
    cover = np.zeros((SIDE, SIDE))
    for _ in range(count):
        r, y, x = rng.uniform(*radius), *rng.uniform(0, SIDE, 2)
        np.maximum(cover, _soft(r - np.hypot(_Y - y, _X - x)), out=cover)
    return cover


def _soft(depth: Floats) -> Floats:
    """An edge about one pixel wide; `depth` is the distance inside it."""
    return np.clip(depth + 0.5, 0, 1)


def _bare(rng: np.random.Generator, tissue: Tissue) -> Floats:
    """Where no stain is: fat vacuoles with thin walls between them, and glass, 0..1."""
    bare = _discs(rng, 1.3 * tissue.fat, radius=(7, 12)) * 0.97
    if tissue.glass > 0.02:
        angle = rng.uniform(0, 2 * np.pi)
        slope = (_X - SIDE / 2) * np.cos(angle) + (_Y - SIDE / 2) * np.sin(angle)
        slope = slope + 3 * _noise(rng, 5.0)
        bare = np.maximum(bare, _soft(slope - np.quantile(slope, 1 - tissue.glass)))
    return bare


def _nuclei(rng: np.random.Generator, tissue: Tissue, bare: Floats) -> tuple[Floats, Floats]:
    """Where nuclei are, 0..1, and how densely their chromatin is stained."""
    count = max(1, int(tissue.cover * SIDE**2 / (np.pi * tissue.radius**2)))
    places_C2 = _places(rng, count, tissue)
    cover = np.zeros((SIDE, SIDE))
    chromatin = np.zeros((SIDE, SIDE))
    main, dark = rng.uniform(0, np.pi), rng.normal(1.2, 0.15)
    for y, x in places_C2:
        if bare[int(y), int(x)] > 0.5:
            continue
        stretch = 1 + 1.3 * tissue.spindle * rng.uniform(0.7, 1.3)
        size = tissue.radius * rng.lognormal(0, 0.10)
        angle = main + rng.normal(0, 0.25 + 1.5 * (1 - tissue.align))
        # Only the pixels within reach of the nucleus are touched.
        near = _window(y, x, size * np.sqrt(stretch) + 2)
        u = (_X[near] - x) * np.cos(angle) + (_Y[near] - y) * np.sin(angle)
        v = (_Y[near] - y) * np.cos(angle) - (_X[near] - x) * np.sin(angle)
        reach = np.hypot(u / np.sqrt(stretch), v * np.sqrt(stretch))
        inside = _soft((size - reach) / np.sqrt(stretch))
        # Large nuclei are vesicular: pale within a dark rim. Small ones are dark throughout.
        pale = np.clip((size - 2.2) / 2.5, 0, 0.4)
        ink = rng.normal(dark, 0.12) * (1 - pale * np.clip(1 - reach / size, 0, 1) * 1.4)
        chromatin[near] = np.where(inside > cover[near], ink, chromatin[near])
        cover[near] = np.maximum(cover[near], inside)
    return cover, np.maximum(chromatin + 0.10 * _noise(rng, 0.7), 0.3)


def _window(y: float, x: float, reach: float) -> tuple[slice, slice]:
    """The part of the tile within `reach` pixels of a point in it."""
    return (
        slice(max(0, int(y - reach)), int(y + reach) + 2),
        slice(max(0, int(x - reach)), int(x + reach) + 2),
    )


def _places(rng: np.random.Generator, count: int, tissue: Tissue) -> Floats:
    """Centres of nuclei, (C, 2), kept apart where there is room."""
    parents = rng.uniform(4, SIDE - 4, (rng.integers(2, 4), 2))
    places: list[Floats] = []
    apart = (1.5 * tissue.radius) ** 2
    for _ in range(count):
        spot = np.zeros(2)
        for _ in range(8):
            if rng.random() < tissue.clump:
                spot = parents[rng.integers(len(parents))] + rng.normal(0, 8, 2)
            else:
                spot = rng.uniform(0, SIDE, 2)
            spot = np.clip(spot, 0, SIDE - 1)
            if not places or np.square(np.array(places) - spot).sum(axis=1).min() > apart:
                break
        places.append(spot)
    return np.array(places)


# --- expression ------------------------------------------------------------------------------

# Programme -> number of genes. Those of "noise" follow no tissue, those of "silent" hardly vary.
PROGRAMMES = {
    "PROL": 9, "TUM": 9, "LYM": 8, "COL": 8, "MYO": 6, "ADI": 5, "HBB": 3, "MIX": 5, "RND": 4,
    "SIL": 3,
}  # fmt: skip
GENES = sum(PROGRAMMES.values())  # 60


def gene_names() -> list[str]:
    return [f"{name}{i + 1}" for name, count in PROGRAMMES.items() for i in range(count)]


def express(rng: np.random.Generator, tissues: list[Tissue], slide_N: NDArray[np.int64]) -> Floats:
    """Log-normalised-like expression (N, T) of the tiles; genes in the order of `gene_names`."""
    drive_NP = _programmes(tissues)
    names = list(PROGRAMMES)
    slides, rows = int(slide_N.max()) + 1, len(tissues)
    columns = []
    for name, count in PROGRAMMES.items():
        for _ in range(count):
            level = rng.uniform(-0.5, 3.0)
            drive = np.zeros(rows)
            if name == "MIX":
                drive = drive_NP @ rng.normal(0, 0.5, drive_NP.shape[1])
            elif name not in ("RND", "SIL"):
                drive = drive_NP[:, names.index(name)] * rng.uniform(0.6, 1.1)
                drive = drive + drive_NP @ rng.normal(0, 0.12, drive_NP.shape[1])
            noise = rng.normal(0, rng.uniform(0.35, 0.7), rows)
            shift = rng.normal(0, 0.15, slides)[slide_N]
            value = np.log1p(np.exp(level + drive + noise + shift))
            if name == "SIL":
                # A batch-corrected zero: each slide has its own, and few tiles differ.
                zero = rng.normal(0, 5e-4, slides)[slide_N]
                value = zero + np.where(rng.random(rows) < 0.02, 0.3, 0.0)
            columns.append(value)
    values_NT = np.stack(columns, axis=1)
    depth = rng.lognormal(0, 0.08, rows)  # a tile's share of the sequencing
    return np.asarray(values_NT * depth[:, None])


def _programmes(tissues: list[Tissue]) -> Floats:
    """What drives the genes of each programme but the last three, (N, P), standardised."""
    cover, radius, spindle, clump, fibre, align, fat, blood, glass = np.array(
        [astuple(tissue) for tissue in tissues]
    ).T
    body = 1 - 0.6 * glass - 0.5 * fat
    large = 1 / (1 + np.exp(-4 * (radius - 2.8)))
    drive_NP = np.stack(
        [
            np.log(body * cover / radius**2),  # PROL: the number of nuclei
            large * np.sqrt(cover),  # TUM: large nuclei
            (1 - large) * np.sqrt(cover) * (0.4 + clump) * (1 - spindle),  # LYM: small, round
            fibre * (0.1 + align) * body,  # COL: fibres in step
            spindle * fibre,  # MYO: needles within fibres
            np.sqrt(fat),  # ADI
            np.sqrt(blood),  # HBB
        ],
        axis=1,
    )
    return np.asarray((drive_NP - drive_NP.mean(axis=0)) / drive_NP.std(axis=0))
