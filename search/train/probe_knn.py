"""Nearest neighbours on frozen features: one sorted list of neighbours serves every k.

Shapes: N rows, R features, T outputs, K neighbours.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from search.model.probe_head import closeness, distances
from search.train.probe_rows import Choice, Judge, ProbeRows, Settings, best

COUNTS = (3, 5, 7, 10, 14, 19, 26, 35, 45, 60, 80, 100)  # k


def fit_knn(rows: ProbeRows) -> Choice:
    """The distance, weighting and k with the best score when each row is predicted from the others,
    with groups from those of other groups."""
    judge = rows.judge()
    table = [entry for cosine in (True, False) for entry in _scores(rows, cosine, judge)]
    settings = table[best(table)][0]
    tensors = {
        "mean": rows.mean_F.float(),
        "std": rows.std_F.float(),
        "keys": rows.x_NR.float(),
        "values": rows.y_NT.float(),
        "k": torch.tensor(settings["k"]),
        "cosine": torch.tensor(int(settings["distance"] == "cosine")),
        "by_distance": torch.tensor(int(settings["weights"] == "distance")),
    }
    if rows.components_FR is not None:
        tensors["components"] = rows.components_FR.float()
    return Choice(settings=settings, tensors=tensors, table=table)


def _scores(rows: ProbeRows, cosine: bool, judge: Judge) -> list[tuple[Settings, float]]:
    distance_NN = distances(rows.x_NR, rows.x_NR, cosine)
    if rows.group_N is None:
        distance_NN.fill_diagonal_(torch.inf)
    else:
        group_N = torch.from_numpy(rows.group_N).to(rows.device)
        distance_NN.masked_fill_(group_N[:, None] == group_N, torch.inf)
    others = int(distance_NN.isfinite().sum(dim=1).min())
    counts = [k for k in COUNTS if k <= others] or [others]
    distance_NK, rows_NK = distance_NN.topk(counts[-1], largest=False)
    even_NK = torch.ones_like(distance_NK)
    near_NK = closeness(distance_NK, cosine, rows.x_NR.shape[1])
    table = []
    for name, weight_NK in (("uniform", even_NK), ("distance", near_NK)):
        for k, pred_NT in _running_means(rows.y_NT, rows_NK, weight_NK, counts):
            settings = {"k": k, "distance": "cosine" if cosine else "euclidean", "weights": name}
            table.append((settings, judge(pred_NT)))
    return table


def _running_means(
    y_NT: Tensor, rows_NK: Tensor, weight_NK: Tensor, counts: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """(k, weighted means (N, T) over the first k neighbours) for every k of `counts`."""
    sum_NT = torch.zeros_like(y_NT)
    total_NK = weight_NK.cumsum(dim=1)
    for k in range(1, counts[-1] + 1):
        sum_NT += weight_NK[:, k - 1, None] * y_NT[rows_NK[:, k - 1]]
        if k in counts:
            yield k, sum_NT / total_NK[:, k - 1, None]
