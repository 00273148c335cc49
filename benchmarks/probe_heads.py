"""Heads per minute on frozen features: ours, and one fit after the other.

    python benchmarks/probe_heads.py [--rows 1000] [--features 512] [--outputs 250] [--cores 2]

A head counts when all folds have its inner score; all folds take as long, so the first is timed, in
turns, of which the median is given. Ours fits the best head again. The peers fit some of the
settings: scikit-learn's with five inner folds, so that each training row is predicted by a fit
without it, as in ours; torch's networks with our schedule and our rule to stop.
"""

import argparse
import functools
import itertools
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from torch import nn

from search.metrics import get_metric
from search.train import probe_mlp
from search.train.optim import learning_rate
from search.train.probe_heads import fit_head

FOLDS = 5
INNER = 5
DROP = 0.3  # the middle one of the grid
TARGETS = {"ridge": 100, "knn": 100, "mlp": 6}  # heads per minute
Floats = NDArray[np.float32]
Score = Callable[[Floats, Floats], float]


def made(rows: int, features: int, outputs: int) -> tuple[Floats, Floats]:
    """Features (N, F) with a falling spectrum, and targets (T, N) that follow some directions."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, features)) * np.geomspace(1, 0.05, features)
    x_NF = hidden @ rng.normal(size=(features, features))
    y_NT = hidden[:, :40] @ rng.normal(size=(40, outputs)) + 5 * rng.normal(size=(rows, outputs))
    return x_NF.astype(np.float32), np.ascontiguousarray(y_NT.T, dtype=np.float32)


def ours(kind: str, x_NF: Floats, y_TN: Floats, score: Score) -> float:
    """Seconds of a head for all folds."""
    train = np.arange(len(x_NF)) % FOLDS != 0
    started = time.perf_counter()
    head = fit_head(kind, x_NF[train], y_TN[:, train], score=score)
    head.predict(x_NF[~train])
    return FOLDS * (time.perf_counter() - started) / head.heads_tried


def naive(kind: str, x_NF: Floats, y_TN: Floats, score: Score) -> float:
    """The same, fitted one by one."""
    train = np.arange(len(x_NF)) % FOLDS != 0
    x_NF, y_NT = x_NF[train], y_TN[:, train].T
    x_NF = (x_NF - x_NF.mean(axis=0)) / x_NF.std(axis=0)
    inner_N = np.arange(len(x_NF)) % INNER
    y_TN = np.ascontiguousarray(y_NT.T)

    def crossed(make: Callable[[], Any]) -> None:
        pred_NT = np.empty_like(y_NT)
        for fold in range(INNER):
            rest = inner_N != fold
            pred_NT[~rest] = make().fit(x_NF[rest], y_NT[rest]).predict(x_NF[~rest])
        score(np.ascontiguousarray(pred_NT.T), y_TN)

    started, heads = time.perf_counter(), 0
    if kind == "ridge":
        for alpha in np.geomspace(1, 1e6, 8):
            crossed(functools.partial(Ridge, alpha))
            heads += 1
    elif kind == "knn":
        for k, distance in itertools.product((5, 14, 35, 80), ("cosine", "euclidean")):
            crossed(functools.partial(KNeighborsRegressor, k, metric=distance))
            heads += 1
    else:
        held = inner_N == 0
        given = x_NF[~held], y_NT[~held], x_NF[held], y_NT[held]
        for hidden, rates in itertools.product(probe_mlp.HIDDEN, probe_mlp.RATES):
            _trained(hidden, rates, given, score)
            heads += 1
    return FOLDS * (time.perf_counter() - started) / heads


def _trained(
    hidden: int, rates: tuple[float, float], given: tuple[Floats, ...], score: Score
) -> None:
    true_TN = np.ascontiguousarray(given[3].T)
    x_NF, y_NT, new_NF, _ = (torch.from_numpy(np.ascontiguousarray(part)) for part in given)
    mean_T, std_T = y_NT.mean(dim=0), y_NT.std(dim=0)
    y_NT = (y_NT - mean_T) / std_T
    inner, outer = nn.Linear(x_NF.shape[1], hidden), nn.Linear(hidden, y_NT.shape[1])
    network = nn.Sequential(inner, nn.ReLU(), nn.Dropout(DROP), outer)
    lr, decay = rates
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=decay)
    best, since = -np.inf, 0
    order = torch.empty(0, dtype=torch.int64)
    for step in range(probe_mlp.STEPS):
        if len(order) < probe_mlp.BATCH:
            order = torch.randperm(len(x_NF))
        rows, order = order[: probe_mlp.BATCH], order[probe_mlp.BATCH :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, probe_mlp.STEPS, 10, lr)
        optimizer.zero_grad()
        nn.functional.mse_loss(network(x_NF[rows]), y_NT[rows]).backward()
        optimizer.step()
        if (step + 1) % probe_mlp.JUDGED_EVERY == 0:
            network.eval()
            with torch.inference_mode():
                pred_NT = network(new_NF) * std_T + mean_T
            value = score(np.ascontiguousarray(pred_NT.numpy().T), true_TN)
            network.train()
            best, since = (value, 0) if value > best else (best, since + 1)
            if since == probe_mlp.PATIENCE:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=250)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few rows and outputs, one turn")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.features, args.outputs, args.turns = 150, 64, 4, 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
    torch.set_num_threads(args.cores)
    x_NF, y_TN = made(args.rows, args.features, args.outputs)
    metric = get_metric("pearson").fit(y_TN)

    def score(pred_TN: Floats, true_TN: Floats) -> float:
        return metric.score(pred_TN, true_TN).value

    print(
        f"{args.rows} rows, {args.features} features, {args.outputs} outputs, {FOLDS} folds, "
        f"{args.cores} core(s); heads per minute"
    )
    print(f"{'':8}{'ours':>10}{'one by one':>12}{'ratio':>8}")
    for kind, target in TARGETS.items():
        seconds: list[tuple[float, float]] = []
        for _ in range(args.turns if kind != "mlp" else 1):  # which takes long enough
            seconds.append((ours(kind, x_NF, y_TN, score), naive(kind, x_NF, y_TN, score)))
        rate, peer = (60 / median(column) for column in zip(*seconds, strict=True))
        print(
            f"{kind:8}{rate:10.0f}{peer:12.0f}{rate / peer:8.1f}"
            f"   (target {target}: {'kept' if rate >= target else 'MISSED'})"
        )


if __name__ == "__main__":
    main()
