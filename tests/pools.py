"""Small pools of members for tests of the ensemble: made predictions of every task type.

Shapes: M members, T outputs, N rows, K folds.
"""

import numpy as np

from ensemble.limits import Cost
from ensemble.members import Member, Pool
from search.metrics import get_metric

# A metric of each engine, its task type, and its arguments.
METRICS = {
    "gene_expr": ("regression", {"heg_n": 3, "hvg_n": 2}),
    "gene_expr-drop": ("regression", {"heg_n": 3, "hvg_n": 2, "nan": "drop"}),
    "pearson": ("regression", {}),
    "rmse": ("regression", {}),
    "r2": ("regression", {}),
    "mae": ("regression", {}),
    "log_loss": ("binary", {}),
    "log_loss-classes": ("multiclass", {"multiclass": True}),
    "log_loss-labels": ("multilabel", {}),
    "auroc": ("binary", {}),
    "auroc-labels": ("multilabel", {}),
    "presence_locations": ("multilabel", {"min_positives": 3}),
    "auroc-classes": ("multiclass", {}),
    "average_precision": ("multilabel", {}),
    "khd": ("binary", {}),
    "f1": ("multilabel", {}),
    "accuracy": ("binary", {}),
    "accuracy-classes": ("multiclass", {"multiclass": True}),
    "sensitivity": ("binary", {}),
}
OUTPUTS = {"regression": 6, "binary": 1, "multilabel": 3, "multiclass": 4}


def metric_of(key):
    """(metric, task type) of a key of METRICS."""
    task_type, arguments = METRICS[key]
    return get_metric(key.partition("-")[0], **arguments), task_type


def arrays(task_type, seed=0, members=5, rows=60, folds=3, noise=1.0):
    """(members' predictions, truth, folds): a signal that members see through noise."""
    rng = np.random.default_rng(seed)
    shape = (OUTPUTS[task_type], rows)
    signal_TN = rng.normal(size=shape)
    raw = [rng.uniform(0.3, 1) * signal_TN + noise * rng.normal(size=shape) for _ in range(members)]
    if task_type == "regression":
        profile_T1 = rng.normal(3, 2, (shape[0], 1))
        true_TN, preds = profile_T1 + signal_TN, [profile_T1 + r for r in raw]
    elif task_type == "multiclass":
        best_N = (signal_TN + 0.5 * rng.normal(size=shape)).argmax(axis=0)
        true_TN = np.arange(shape[0])[:, None] == best_N
        preds = [np.exp(r) / np.exp(r).sum(axis=0) for r in raw]
    else:
        true_TN = signal_TN + 0.5 * rng.normal(size=shape) > 0.3
        preds = [1 / (1 + np.exp(-r)) for r in raw]
    fold_N = rng.permutation(np.arange(rows) % folds)
    return [np.float32(p) for p in preds], np.float32(true_TN), fold_N


def make_pool(preds, true_TN, fold_N, metric, task_type, costs=None, group_N=None):
    """A pool of these arrays; members are called a, b, c, ..."""
    names = [chr(ord("a") + m) if m < 26 else f"z{m}" for m in range(len(preds))]
    costs = costs or [Cost(family=name) for name in names]
    members = tuple(
        Member(name=name, pred_TN=pred_TN, cost=cost)
        for name, pred_TN, cost in zip(names, preds, costs, strict=True)
    )
    return Pool(
        task="test", task_type=task_type, metric=metric.fit(true_TN),
        target_names=tuple(f"t{t}" for t in range(len(true_TN))), members=members,
        true_TN=true_TN, fold_N=np.asarray(fold_N), group_N=group_N,
    )  # fmt: skip


def pool_for(key, **options):
    """A pool for a key of METRICS."""
    metric, task_type = metric_of(key)
    more = {name: options.pop(name) for name in ("costs", "group_N") if name in options}
    return make_pool(*arrays(task_type, **options), metric, task_type, **more)
