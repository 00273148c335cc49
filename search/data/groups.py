"""auto_groups: do the images come from slides that were stained or scanned apart?

When nobody says which slide an image is from, random folds leak the slide. Three kinds of evidence
are tried. Targets: batch correction leaves each slide constants of its own where a gene is silent.
Stain, of colour images: what tells slides apart without telling tissues apart is how a stain
absorbs light (its direction in optical density), not how much of it there is. Scanner, of grey
images: range, noise, sharpness and dark margins.
Shapes: N rows, V views, P pixels of a tile, F features, T outputs, K clusters.

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
| pneumonia, chest X-rays (grey, scanner traces) | 0.28 to 0.30 | none |
| adrenal, eight grey views per row | 0.48 | none |
| pneumonia, half with another gamma, range and noise | 0.51 | none |
| grey noise about 60 and about 190 | 0.90 | 2, all right |

Nothing lies between one slide's own variation and real stain shifts of the sample; the threshold
stands in that gap. The sections of her2st were stained alike, so no split is the right answer
there: they have to be named by the user. Shifts of that size are not found; nor are scanners of
grey images that differ less than their patients do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import mutual_info_score, silhouette_score
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
CLEAR = 0.55  # silhouette from which clusters count as slides
MOST = 8  # clusters tried
_FEW = 40  # tiles below which nothing is said
_SIDE = 64  # larger tiles are thinned out to about this many pixels a side
_TISSUE = 0.45  # summed optical density from which a pixel is tissue
_GREY = 4.0  # mean difference of the colour channels (0..255) below which a tile is grey
_AGREEING = 3  # columns of targets that must divide the rows alike
_AGREED = 0.98  # share of the rows, and of the votes, on which they must
_SILENT = 0.01  # share of rows that may have no constant at all
_SAMPLE = 3000  # tiles for the silhouette, whose cost is quadratic


@dataclass(frozen=True, kw_only=True, eq=False)
class AutoGroups:
    """`labels` (N,) count from 0, the largest group first; None when no groups are clear."""

    labels: NDArray[np.int64] | None
    silhouette: float  # of the best clustering of images tried, 0 when none was
    sizes: tuple[int, ...]  # rows per group, empty without labels
    evidence: str  # "targets", "stain", "scanner", or "none" where nothing could be tried
    reason: str  # one sentence for the user


def auto_groups(
    images_NHWC: NDArray[np.uint8],
    seed: int,
    *,
    targets_TN: NDArray[np.floating] | None = None,
    views: int = 1,
) -> AutoGroups:
    """Groups only where constants of the targets tell them, or the images separate clearly.

    `images_NHWC` holds the `views` of each row consecutively; groups are of rows.
    """
    rows = len(images_NHWC) // views
    if rows < _FEW:
        return _none(0.0, "none", f"no groups: {rows} tiles are too few to tell slides by")
    if targets_TN is not None and (labels := target_offsets(targets_TN)) is not None:
        return _found(labels, 0.0, "targets", "each has constants of its own in the targets")
    step = tuple(max(1, side // _SIDE) for side in images_NHWC.shape[1:3])
    tiles_NHWC = images_NHWC[:, :: step[0], :: step[1]]
    grey = _grey(tiles_NHWC)
    evidence, what = ("scanner", "scanner trace") if grey else ("stain", "stain")
    x_NF = scanner_features(images_NHWC) if grey else stain_features(tiles_NHWC)
    x_NF = x_NF.reshape(rows, views, -1).mean(axis=1)
    # Tiles with hardly any tissue have wild estimates; they must not make clusters of their own.
    x_NF = StandardScaler().fit_transform(np.clip(x_NF, *np.percentile(x_NF, (1, 99), axis=0)))
    best, labels = _cluster(x_NF, seed)
    figures = f"(silhouette {best:.2f}, clear from {CLEAR})"
    if labels is None or best < CLEAR:
        reason = f"no groups: the {what} of the images forms no clear clusters {figures}"
        return _none(best, evidence, reason)
    return _found(labels, best, evidence, f"their {what} separates clearly {figures}")


def _found(labels: NDArray[np.int64], silhouette: float, evidence: str, because: str) -> AutoGroups:
    sizes = tuple(int(n) for n in np.bincount(labels))
    return AutoGroups(
        labels=labels,
        silhouette=silhouette,
        sizes=sizes,
        evidence=evidence,
        reason=f"{len(sizes)} groups of {', '.join(map(str, sizes))} rows: {because}",
    )


def _none(silhouette: float, evidence: str, reason: str) -> AutoGroups:
    return AutoGroups(
        labels=None, silhouette=silhouette, sizes=(), evidence=evidence, reason=reason
    )


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
            best, chosen = score, _ranked(labels)
    return best, chosen


def _ranked(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same groups, numbered from the largest."""
    rank = np.argsort(np.argsort(-np.bincount(labels), kind="stable"))
    return rank[labels].astype(np.int64)


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


# --- scanners


def scanner_features(images_NHWC: NDArray[np.uint8]) -> Floats:
    """Traces of the device in each grey image, (N, 9): percentiles 1, 25, 50, 75, 99 of its values,
    log noise, log sharpness, and the shares of its margin that are black and white."""
    return np.stack([_traces(image) for image in images_NHWC])


def _traces(image_HWC: NDArray[np.uint8]) -> Floats:
    grey_HW = image_HWC.mean(axis=2)
    range_5 = np.percentile(grey_HW, (1, 25, 50, 75, 99))
    noise, sharpness = _noise_and_sharpness(grey_HW)
    margin = max(1, min(grey_HW.shape) // 16)
    inner_HW = np.zeros(grey_HW.shape, bool)
    inner_HW[margin:-margin, margin:-margin] = True
    edge_P = grey_HW[~inner_HW]
    return np.array([*range_5, noise, sharpness, (edge_P < 8).mean(), (edge_P > 247).mean()])


def _noise_and_sharpness(grey_HW: Floats) -> tuple[float, float]:
    """Logs of the noise (grey levels, from second differences both ways, in which smooth structure
    vanishes; Immerkaer 1996) and of the mean gradient against the image's contrast."""
    if min(grey_HW.shape) < 3:
        return 0.0, 0.0
    second_HW = np.diff(np.diff(grey_HW, n=2, axis=0), n=2, axis=1)
    noise = np.sqrt(np.pi / 2) / 6 * np.abs(second_HW).mean()
    gradient = np.abs(np.diff(grey_HW, axis=0)).mean() + np.abs(np.diff(grey_HW, axis=1)).mean()
    return float(np.log(noise + 0.1)), float(np.log((gradient + 0.1) / (grey_HW.std() + 1)))


# --- targets


def target_offsets(targets_TN: NDArray[np.floating]) -> NDArray[np.int64] | None:
    """The group of each row by constants that many rows share exactly, (N,); None where there are
    none or they disagree.

    Harmony and its like shift each slide's values, so a gene that most spots do not express has
    one value per slide (gene_expr: 0.000506, -0.000415, -0.000855). A column tells something where
    2 to 8 such values cover more than half of the rows and are no whole numbers (which are counts
    or classes). At least _AGREEING columns must divide the rows in the same way, and those outvote
    the odd row that has a slide's constant by chance.
    """
    rows = targets_TN.shape[1]
    least = max(8, int(np.ceil(0.03 * rows)))
    codes = [code for column in targets_TN if (code := _constants(column, least)) is not None]
    best: list[NDArray[np.int64]] = []
    for count in sorted({int(code.max()) + 1 for code in codes}, reverse=True):
        same = [code for code in codes if code.max() + 1 == count]
        # The column that covers most rows leads; the others follow it or are dropped.
        lead = max(same, key=lambda code: int((code >= 0).sum()))
        agreeing = [told for code in same if (told := _translated(code, lead)) is not None]
        if len(agreeing) > len(best):
            best = agreeing
    if len(best) < _AGREEING:
        return None
    votes_KN = np.stack([sum((code == k).astype(np.int64) for code in best)
                         for k in range(int(best[0].max()) + 1)])  # fmt: skip
    total_N = votes_KN.sum(axis=0)
    agreed = votes_KN.max(axis=0).sum() / max(1, total_N.sum())
    if (total_N == 0).mean() > _SILENT or agreed < _AGREED:
        return None
    return _ranked(votes_KN.argmax(axis=0))  # rows without a vote go with the first constant


def _constants(values_N: NDArray[np.floating], least: int) -> NDArray[np.int64] | None:
    """Which of the column's constants each row has, -1 for none of them; None where the column
    tells nothing."""
    values, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts >= least)
    if not 2 <= len(shared) <= MOST or counts[shared].sum() <= 0.5 * len(values_N):
        return None
    if (values[shared] == np.round(values[shared])).all():
        return None
    code = np.full(len(values), -1, np.int64)
    code[shared] = np.arange(len(shared))
    return code[inverse]


def _translated(code_N: NDArray[np.int64], lead_N: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The column in the lead's numbers, where each of its constants goes with one of the lead's."""
    count = int(lead_N.max()) + 1
    both = (code_N >= 0) & (lead_N >= 0)
    shared_KK = np.zeros((count, count), np.int64)
    np.add.at(shared_KK, (code_N[both], lead_N[both]), 1)
    partner_K = shared_KK.argmax(axis=1)
    if len(set(partner_K.tolist())) < count:
        return None
    if shared_KK.max(axis=1).sum() < _AGREED * max(1, both.sum()):
        return None
    return np.where(code_N >= 0, partner_K[code_N], -1)


# --- for the report


def explained(labels: NDArray[np.integer], targets_TN: NDArray[np.floating]) -> float:
    """The largest share of what there is to know of a class (its entropy) that groups tell."""
    shares = [0.0]
    for true_N in targets_TN:
        if np.ptp(true_N) > 0:
            known = mutual_info_score(labels, true_N)
            shares.append(float(known / mutual_info_score(true_N, true_N)))
    return max(shares)


def how_different(
    images_NHWC: NDArray[np.uint8], labels: NDArray[np.integer], views: int = 1
) -> list[dict[str, float]]:
    """A row per group: its number and size, the mean of each channel (0..255), the spread of grey
    values, noise (grey levels) and sharpness (gradient against contrast), over its images."""
    found: list[dict[str, float]] = []
    for label in np.unique(labels):
        members = np.flatnonzero(np.repeat(labels, views) == label)
        mean_C = np.mean([images_NHWC[i].mean(axis=(0, 1)) for i in members], axis=0)
        greys = [images_NHWC[i].mean(axis=2) for i in members]
        logs = np.mean([_noise_and_sharpness(grey) for grey in greys], axis=0)
        names = ("red", "green", "blue") if len(mean_C) == 3 else range(len(mean_C))
        channels = {
            name if isinstance(name, str) else f"channel {name}": float(value)
            for name, value in zip(names, mean_C, strict=True)
        }
        found.append({
            "group": int(label),
            "rows": len(members) // views,
            **channels,
            "spread": float(np.mean([grey.std() for grey in greys])),
            "noise": float(np.exp(logs[0]) - 0.1),
            "sharpness": float(np.exp(logs[1])),
        })  # fmt: skip
    return found
