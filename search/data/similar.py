"""Near duplicates: images that were saved, resized, brightened or cropped again.

Copies on both sides of a fold leak their labels, and random folds do not see them. Images of one
kind look alike (chests, glands), so what counts is how an image departs from the usual image of its
kind. The sign of 64 low frequencies against their median is its hash, every bit of which halves the
data; candidates within RADIUS bits are confirmed on thumbnails: one image must explain at least
COPY of what sets the other apart from the usual image, up to gain, offset, a small shift and zoom.

Shapes: N images, T outputs, F frequencies, P pixels of a thumbnail, K unknowns of a fit.

Share of copies found (400 images of each set), and what is found among the originals, which should
be exact copies alone. The corner crop shifts the image as well; half resizes to 50 % and back.

| images | JPEG 75, 50 | half | brighter 8 % | crop 2 % | same, JPEG 60 | corner 2 % | originals |
|---|---|---|---|---|---|---|---|
| pneumonia, 5232 X-rays, 28 px | 100, 99.8 % | 100 % | 100 % | 100 % | 100 % | 99.2 % | 30 pairs |
| her2st, 828 H&E tiles, 64 px | 100, 100 % | 100 % | 100 % | 100 % | 100 % | 98.0 % | none |
| adrenal, 8 x 1286 grey views | 100, 100 % | 100 % | 100 % | 100 % | 100 % | 92.2 % | 3, no row |

Of the 30 pairs of X-rays 28 are equal bit by bit; the others show one chest twice. 10,000 images of
64 px take 2 s on one core, the 10,288 views of adrenal, which look alike, 3 s.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pairs = list[tuple[int, int]]
Floats = NDArray[np.float32]
RADIUS = 12  # bits of 64
COPY = 0.96  # share of the departure from the usual image that a copy explains
_HASH_SIDE, _SIDE = 32, 16  # pixels of the thumbnails that are hashed and compared
_FEW = 32  # images that weigh as much as the assumption of no usual image at all
_DETAIL = 2.5  # grey levels (standard deviation) below which an image is too flat to be told apart
_ALIKE = 0.75  # correlation of departures below which the fit is not tried
_GAIN = (0.6, 1.6)  # contrast of a copy
_SHIFT, _ZOOM = 0.03, 0.06  # of the side
_SMOOTH = 1.2  # pixels of the larger thumbnail, standard deviation
_CHUNK = 512  # images against all others, or fits times 8, at a time
_APART = 1.0  # standard deviations, root mean square over outputs; 1.4 between unrelated rows


def near_duplicates(images_NHWC: NDArray[np.uint8], views: int = 1) -> Pairs:
    """Pairs (i < j) of images that are near duplicates, sorted.

    With several views per row (consecutive), only images of the same view are compared. Images
    without detail (blank glass) are never paired.
    """
    found: Pairs = []
    for view in range(views):
        thumbs = thumbnails(images_NHWC[view::views])
        found += [(i * views + view, j * views + view) for i, j in _copies(thumbs)]
    return sorted(found)


def hashes(images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits per image, (N,): near duplicates within these images differ in few of them. Bits are
    relative to the other images, so hashes of two calls cannot be compared."""
    return _hash(thumbnails(images_NHWC))


def thumbnails(images_NHWC: NDArray[np.uint8]) -> Floats:
    """Grey thumbnails, (N, 32, 32), 0..255."""
    thumbs = np.empty((len(images_NHWC), _HASH_SIDE, _HASH_SIDE), np.float32)
    for i, image_HWC in enumerate(images_NHWC):
        grey = Image.fromarray(image_HWC.mean(axis=2, dtype=np.float32))
        thumbs[i] = np.asarray(
            grey.resize(thumbs.shape[1:], Image.Resampling.LANCZOS, reducing_gap=3.0)
        )
    return thumbs


def _hash(thumbs: Floats) -> NDArray[np.uint64]:
    line = np.arange(_HASH_SIDE)
    waves = np.cos(np.pi / _HASH_SIDE * np.outer(np.arange(9), line + 0.5)).astype(np.float32)
    waves[0] /= np.sqrt(2)
    spectrum = (waves @ thumbs @ waves.T).reshape(len(thumbs), -1)
    # The 64 lowest frequencies but the mean: by |k|, which crosses the square's corner.
    down, right = np.divmod(np.arange(spectrum.shape[1]), 9)
    spectrum_NF = spectrum[:, np.argsort(down + right + down / 100, kind="stable")[1:65]]
    length = np.linalg.norm(spectrum_NF, axis=1, keepdims=True)
    spectrum_NF /= np.maximum(length, 1e-6)  # a brighter copy has the same hash
    usual_F = np.median(spectrum_NF, axis=0) * _trust(len(thumbs)) if len(thumbs) else 0
    bits = np.packbits(np.ascontiguousarray(spectrum_NF > usual_F), axis=1)
    return np.ascontiguousarray(bits).view(np.uint64)[:, 0]


def _trust(images: int) -> float:
    """How far the average of so many images is the usual image: of two copies it is both."""
    return images / (images + _FEW)


def _copies(thumbs: Floats) -> Iterator[tuple[int, int]]:
    if len(thumbs) < 2:
        return
    small = _shrunk(thumbs)
    usual = small.mean(axis=0)
    usual_P = (usual - usual.mean()).ravel()
    trust = _trust(len(thumbs))
    apart_NP = small.reshape(len(small), -1)
    apart_NP = apart_NP - apart_NP.mean(axis=1, keepdims=True)
    flat_N = apart_NP.std(axis=1) < _DETAIL
    apart_NP -= trust * usual_P
    length_N = np.linalg.norm(apart_NP, axis=1)
    apart_NP /= np.maximum(length_N, 1e-6)[:, None]
    index = np.flatnonzero(~flat_N)
    for first, second in _close(_hash(thumbs)[index]):
        i, j = index[first], index[second]
        alike = np.einsum("np,np->n", apart_NP[i], apart_NP[j]) >= _ALIKE
        i, j = i[alike], j[alike]
        for start in range(0, len(i), 8 * _CHUNK):
            a, b = i[start : start + 8 * _CHUNK], j[start : start + 8 * _CHUNK]
            explained = np.minimum(
                _explained(small[a], small[b], usual_P, trust),
                _explained(small[b], small[a], usual_P, trust),
            )
            good = explained >= COPY
            yield from zip(a[good].tolist(), b[good].tolist(), strict=True)


def _shrunk(thumbs: Floats) -> Floats:
    """Half the side, smoothed: what changes from pixel to pixel cannot be followed by a fit."""
    line = np.arange(_HASH_SIDE)
    centre = 2 * np.arange(_SIDE) + 0.5
    weight = np.exp(-((line - centre[:, None]) ** 2) / (2 * _SMOOTH**2))
    weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return weight @ thumbs @ weight.T


def _close(hash_N: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (i < j) of hashes within RADIUS bits, a chunk at a time. Comparing all is fastest here:
    5e7 pairs take half a second, and nothing is learned about tables of bands."""
    for start in range(0, len(hash_N), _CHUNK):
        chunk = hash_N[start : start + _CHUNK]
        close = np.bitwise_count(chunk[:, None] ^ hash_N[None, start:]) <= RADIUS
        first, second = np.nonzero(np.triu(close, 1))
        if len(first):
            yield first + start, second + start


def _explained(one_NHW: Floats, other_NHW: Floats, usual_P: Floats, trust: float) -> Floats:
    """The share of what sets each `other` apart from the usual image that `one` explains, when it
    may be changed in contrast, brightness, and a little in place and size; -1 where that would
    need more than a little."""
    down_NHW, right_NHW = np.gradient(one_NHW, axis=(1, 2))
    line = np.arange(_SIDE, dtype=np.float32) - (_SIDE - 1) / 2
    zoom_NHW = right_NHW * line + down_NHW * line[:, None]
    parts = [one_NHW, np.ones_like(one_NHW), down_NHW, right_NHW, zoom_NHW]
    design_NPK = np.stack([part.reshape(len(one_NHW), -1) for part in parts], axis=2)
    # Columns of unit length, and a hair of ridge where a gradient vanishes.
    length_N1K = np.sqrt(np.einsum("npk,npk->nk", design_NPK, design_NPK))[:, None] + 1e-3
    design_NPK /= length_N1K
    other_NP = other_NHW.reshape(len(other_NHW), -1)
    gram_NKK = design_NPK.transpose(0, 2, 1) @ design_NPK + 1e-6 * np.eye(5, dtype=np.float32)
    moment_NK1 = design_NPK.transpose(0, 2, 1) @ other_NP[:, :, None]
    fit_NK1 = np.linalg.solve(gram_NKK.astype(np.float64), moment_NK1.astype(np.float64))
    left_NP = other_NP - (design_NPK @ fit_NK1.astype(np.float32))[:, :, 0]
    weight_NK = fit_NK1[:, :, 0] / length_N1K[:, 0]
    gain_N = weight_NK[:, 0]
    moved_NK = np.abs(weight_NK[:, 2:]) / np.maximum(gain_N, 1e-3)[:, None]
    small_N = (gain_N > _GAIN[0]) & (gain_N < _GAIN[1])
    small_N &= (moved_NK <= np.array([_SHIFT * _SIDE, _SHIFT * _SIDE, _ZOOM])).all(axis=1)

    apart_NP = other_NP - other_NP.mean(axis=1, keepdims=True)
    length = max(float(usual_P @ usual_P), 1e-6)
    apart_NP -= trust * (apart_NP @ usual_P / length)[:, None] * usual_P
    total_N = (apart_NP**2).sum(axis=1)
    explained_N = 1 - (left_NP**2).sum(axis=1) / np.maximum(total_N, 1e-6)
    return np.where(small_N, explained_N, -1).astype(np.float32)


# --- from pairs to rows and groups


def unite(pairs: Sequence[tuple[int, int]], count: int) -> NDArray[np.int64]:
    """The component of each of `count` things that pairs connect, (N,), numbered as they appear."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    # Every root is the first of its component, so sorting the roots keeps their order.
    return np.unique([root(i) for i in range(count)], return_inverse=True)[1].astype(np.int64)


def row_pairs(pairs: Sequence[tuple[int, int]], views: int) -> Pairs:
    """Pairs of rows of which at least half of the views are near duplicates, each with the same
    view of the other row; image i is view i % views of row i // views."""
    shared: dict[tuple[int, int], set[int]] = {}
    for i, j in pairs:
        low, high = sorted((i // views, j // views))
        if low != high and i % views == j % views:
            shared.setdefault((low, high), set()).add(i % views)
    return sorted(rows for rows, same in shared.items() if 2 * len(same) >= views)


def joined_groups(
    groups: Sequence[str] | None, pairs: Sequence[tuple[int, int]], rows: int
) -> tuple[str, ...]:
    """Groups in which near duplicates never part: groups that share a pair of rows become one, with
    the name that sorts first. Without groups every row is one of its own, named by its number."""
    width = len(str(rows))
    names = [f"row {r:0{width}}" for r in range(rows)] if groups is None else list(groups)
    first: dict[str, int] = {}
    same = [(first.setdefault(name, r), r) for r, name in enumerate(names)]
    joined = unite([*same, *pairs], rows).tolist()
    name_of: dict[int, str] = {}
    for label, name in zip(joined, names, strict=True):
        name_of[label] = min(name, name_of.get(label, name))
    return tuple(name_of[label] for label in joined)


def conflicts(
    pairs: Sequence[tuple[int, int]], targets_TN: NDArray[np.floating], task_type: str
) -> Pairs:
    """Those pairs of rows whose labels differ: in any class, or in values by at least one standard
    deviation (root mean square over the outputs; unrelated rows differ by 1.4, copies by 0)."""
    if not len(pairs):
        return []
    i, j = np.array(pairs, dtype=np.int64).T
    difference_TP = np.abs(targets_TN[:, i].astype(np.float64) - targets_TN[:, j])
    if task_type == "regression":
        std_T = targets_TN.std(axis=1, dtype=np.float64)
        varies_T = std_T > 0
        if not varies_T.any():
            return []
        scaled_TP = difference_TP[varies_T] / std_T[varies_T, None]
        differ = np.sqrt((scaled_TP**2).mean(axis=0)) >= _APART
    else:
        differ = (difference_TP > 0).any(axis=0)
    return [pair for pair, differs in zip(pairs, differ.tolist(), strict=True) if differs]
