"""auto_groups: do the tiles come from slides that were stained or scanned apart?

When nobody says which slide a tile is from, random folds leak the slide. What tells slides apart
without telling tissues apart is how a stain absorbs light (its direction in optical density), not
how much of it there is. Shapes: N tiles, P pixels of a tile, F features, K clusters.

Best silhouette over k = 2..8 as measured with these features:

| images | silhouette | split |
|---|---|---|
| sample of gene_expr, three slides (seeds 0 to 5) | 0.75 to 0.79 | 3, 97.8 to 99.7 % right |
| sample of gene_expr, two of its slides | 0.70 to 0.80 | 2, 98.6 to 100 % right |
| sample of gene_expr, one slide (seeds 0 to 5) | 0.34 to 0.46 | none |
| her2st, five sections, one laboratory | 0.27 | none |
| her2st, one section | 0.31 to 0.41 | none |
| her2st, each tile's stains scaled at random by 6 % | 0.24 | none |
| pixels of random noise | 0.38 | none |
| chest X-rays (grey) | not tried | none |

Nothing lies between one slide's own variation and real stain shifts of the sample; the threshold
stands in that gap. The sections of her2st were stained alike, so no split is the right answer
there: they have to be named by the user. Shifts of that size are not found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
CLEAR = 0.55  # silhouette from which clusters count as slides
MOST = 8  # clusters tried
_FEW = 40  # tiles below which nothing is said
_SIDE = 64  # larger tiles are thinned out to about this many pixels a side
_TISSUE = 0.45  # summed optical density from which a pixel is tissue
_GREY = 4.0  # mean difference of the colour channels (0..255) below which a tile is grey
_SAMPLE = 3000  # tiles for the silhouette, whose cost is quadratic


@dataclass(frozen=True, kw_only=True, eq=False)
class AutoGroups:
    """`labels` (N,) count from 0, the largest group first; None when no groups are clear."""

    labels: NDArray[np.int64] | None
    silhouette: float  # of the best clustering tried, 0 when none was
    sizes: tuple[int, ...]  # tiles per group, empty without labels
    reason: str  # one sentence for the user


def auto_groups(images_NHWC: NDArray[np.uint8], seed: int) -> AutoGroups:
    """Cluster the stain of the tiles; groups only where the clusters separate clearly."""
    rows = len(images_NHWC)
    if rows < _FEW:
        return _none(0.0, f"no groups: {rows} tiles are too few to tell slides by their stain")
    step = tuple(max(1, side // _SIDE) for side in images_NHWC.shape[1:3])
    tiles_NHWC = images_NHWC[:, :: step[0], :: step[1]]
    if _grey(tiles_NHWC):
        return _none(0.0, "no groups: the images are grey, so no stain tells slides apart")
    x_NF = stain_features(tiles_NHWC)
    # Tiles with hardly any tissue have wild estimates; they must not make clusters of their own.
    x_NF = StandardScaler().fit_transform(np.clip(x_NF, *np.percentile(x_NF, (1, 99), axis=0)))
    best, labels = _cluster(x_NF, seed)
    if labels is None or best < CLEAR:
        return _none(
            best,
            "no groups: the stain of the tiles forms no clear clusters "
            f"(silhouette {best:.2f}, clear from {CLEAR})",
        )
    sizes = tuple(int(n) for n in np.bincount(labels))
    return AutoGroups(
        labels=labels,
        silhouette=best,
        sizes=sizes,
        reason=f"{len(sizes)} groups of {', '.join(map(str, sizes))} tiles: their stain separates "
        f"clearly (silhouette {best:.2f}, clear from {CLEAR})",
    )


def _none(silhouette: float, reason: str) -> AutoGroups:
    return AutoGroups(labels=None, silhouette=silhouette, sizes=(), reason=reason)


def _grey(images_NHWC: NDArray[np.uint8]) -> bool:
    def colour(tile: NDArray[np.uint8]) -> float:
        return float((tile.max(axis=2).astype(np.int16) - tile.min(axis=2)).mean())

    return float(np.median([colour(tile) for tile in images_NHWC])) < _GREY


def _cluster(x_NF: Floats, seed: int) -> tuple[float, NDArray[np.int64] | None]:
    """The clustering with the highest silhouette among those without splinters."""
    rows = len(x_NF)
    least = max(8, int(np.ceil(0.03 * rows)))
    best, chosen = 0.0, None
    for k in range(2, MOST + 1):
        if k > len(np.unique(x_NF, axis=0)):
            break
        labels = KMeans(k, n_init=5, random_state=seed).fit_predict(x_NF)
        sizes = np.bincount(labels, minlength=k)
        if sizes.min() < least:
            continue
        sample = _SAMPLE if rows > _SAMPLE else None
        score = float(silhouette_score(x_NF, labels, sample_size=sample, random_state=seed))
        if score > best:
            rank = np.argsort(np.argsort(-sizes, kind="stable"))
            best, chosen = score, rank[labels].astype(np.int64)
    return best, chosen


def stain_features(images_NHWC: NDArray[np.uint8]) -> Floats:
    """Directions of light absorption of each tile, (N, 9): the two extreme stains of its tissue
    (after Macenko et al. 2009) and the normal of the plane that both span."""
    return np.stack([_stains(tile) for tile in images_NHWC])


def _stains(tile_HWC: NDArray[np.uint8]) -> Floats:
    density_P3 = -np.log(np.maximum(tile_HWC.reshape(-1, 3), 1) / 255.0)
    _, axes = np.linalg.eigh(density_P3.T @ density_P3)
    normal = axes[:, 0] * _sign(axes[np.argmax(np.abs(axes[:, 0])), 0])

    total_P = density_P3.sum(axis=1)
    # Where tissue is scarce, the densest pixels stand in for it.
    tissue_P3 = density_P3[total_P >= min(_TISSUE, np.sort(total_P)[-min(100, len(total_P))])]
    _, axes = np.linalg.eigh(np.cov(tissue_P3.T, bias=True))
    first, second = (axes[:, i] * _sign(axes[:, i].sum()) for i in (2, 1))
    angle_P = np.arctan2(tissue_P3 @ second, tissue_P3 @ first)
    stains = [
        first * np.cos(angle) + second * np.sin(angle) for angle in np.percentile(angle_P, (2, 98))
    ]
    stains.sort(key=lambda stain: float(stain[0]))  # eosin absorbs less red than haematoxylin
    return np.concatenate([*stains, normal])


def _sign(value: float) -> float:
    return 1.0 if value >= 0 else -1.0
