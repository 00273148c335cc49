"""Metrics: scores of predictions against truth, on arrays; higher is always better.

A metric is fitted once on all training rows (which freezes its gene lists) and then scores any
rows. Shapes: T outputs, N rows, K folds, R and C the rows and columns of any matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spaces.errors import UserError, near

# A vector whose spread is below this share of its own size (root mean square) is constant: what
# varies in it is the rounding of float32, and its correlation would be a correlation of noise.
CONSTANT = 1e-6
_BLOCK = 256  # rows held in float64 at a time: 3467 x 6992 values never exist in float64 at once


@dataclass(frozen=True)
class Score:
    """A score and the named quantities behind it. `value` is better when higher; `parts` are
    quantities under their own names (an rmse is positive there)."""

    value: float
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FittedMetric:
    """A metric with its gene lists frozen. Equal lists and arguments make equal metrics."""

    name: str
    args: dict[str, Any]
    outputs: int  # T
    lists: dict[str, tuple[int, ...]]  # list name -> indices of outputs, highest first

    direction = "max"

    @property
    def label(self) -> str:
        """Name of the value for people; a leading '-' says that it is negated."""
        return _FORMULAS[self.name].label

    def score(self, pred_TN: ArrayLike, true_TN: ArrayLike) -> Score:
        """Score of these rows. Raises ValueError for NaN, infinity or a wrong shape."""
        pred, true = np.asarray(pred_TN), np.asarray(true_TN)
        if pred.shape != true.shape or pred.ndim != 2 or pred.shape[0] != self.outputs:
            raise ValueError(
                f"predictions have shape {pred.shape} and truth {true.shape}; "
                f"both must be ({self.outputs}, rows)"
            )
        if pred.shape[1] == 0:
            raise ValueError("there is no row to score; at least one is needed")
        _refuse_non_finite("predictions", pred)
        _refuse_non_finite("truth", true)
        return _FORMULAS[self.name].score(self, pred, true)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        lists = {name: list(indices) for name, indices in self.lists.items()}
        return {
            "name": self.name,
            "args": dict(self.args),
            "outputs": self.outputs,
            "lists": lists,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FittedMetric":
        """Rebuild what `to_dict` wrote. Raises UserError for an unknown or damaged metric."""
        metric = get_metric(str(data.get("name")), **data.get("args", {}))
        outputs, lists = data.get("outputs"), data.get("lists")
        if not isinstance(outputs, int) or not isinstance(lists, Mapping):
            raise UserError("a fitted metric needs the fields outputs and lists; restore the file")
        frozen = {str(name): tuple(int(i) for i in indices) for name, indices in lists.items()}
        wrong = [name for name, ids in frozen.items() if any(not 0 <= i < outputs for i in ids)]
        if wrong or frozen.keys() != set(_FORMULAS[metric.name].lists):
            raise UserError(
                f"metric {metric.name} has the gene lists {sorted(frozen)} with {outputs} outputs; "
                f"it needs {sorted(_FORMULAS[metric.name].lists)}, all indices below the number "
                "of outputs; restore the file"
            )
        return cls(name=metric.name, args=metric.args, outputs=outputs, lists=frozen)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by name with complete arguments, not yet fitted."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)

    direction = "max"

    def fit(self, targets_TN: ArrayLike) -> FittedMetric:
        """Freeze the gene lists from the training targets: pass ALL training rows, once."""
        targets = np.asarray(targets_TN)
        if targets.ndim != 2 or 0 in targets.shape:
            raise ValueError(f"targets have shape {targets.shape}; it must be (outputs, rows)")
        _refuse_non_finite("targets", targets)
        return FittedMetric(
            name=self.name,
            args=self.args,
            outputs=targets.shape[0],
            lists=_FORMULAS[self.name].fit(targets, self.args),
        )


def get_metric(name: str, **args: Any) -> Metric:
    """The metric called `name`; `args` replace its defaults.

    Raises UserError with all faults for an unknown name, unknown and impossible arguments.
    """
    if name not in _FORMULAS:
        raise UserError(f"metric {name!r} is unknown; {near(name, _FORMULAS)}")
    defaults = _FORMULAS[name].defaults
    faults = [
        f"metric {name} has no argument {key!r}; "
        + (near(key, defaults) if defaults else "it takes none")
        for key in args
        if key not in defaults
    ]
    full = {**defaults, **args}
    for key in ("heg_n", "hvg_n"):
        if key in defaults and (type(full[key]) is not int or full[key] < 1):
            faults.append(f"{key} is {full[key]!r}; it must be a whole number of genes, 1 or more")
    for key, known in (("hvg_stat", ("var", "cv")), ("nan", ("zero", "drop"))):
        if key in defaults and full[key] not in known:
            faults.append(f"{key} is {full[key]!r}; known: {', '.join(known)}")
    if faults:
        raise UserError(faults)
    return Metric(name=name, args=full)


def known_metrics() -> list[str]:
    return sorted(_FORMULAS)


def fold_scores(
    fitted: FittedMetric, pred_TN: ArrayLike, true_TN: ArrayLike, fold_N: ArrayLike
) -> list[Score]:
    """The score of each fold's rows; the index in the list is the fold.

    Raises ValueError when a fold between 0 and the last has no rows.
    """
    pred, true, fold = np.asarray(pred_TN), np.asarray(true_TN), np.asarray(fold_N)
    if pred.ndim != 2 or pred.shape != true.shape or fold.shape != pred.shape[1:]:
        raise ValueError(
            f"predictions {pred.shape}, truth {true.shape} and folds {fold.shape} do not match; "
            "they must be (outputs, rows) twice and (rows,)"
        )
    present = np.unique(fold)
    if not np.array_equal(present, np.arange(len(present))):
        raise ValueError(f"folds are {present.tolist()}; they must be 0..K-1, none empty")
    return [fitted.score(pred[:, fold == k], true[:, fold == k]) for k in present]


def mean_score(scores: Sequence[Score]) -> Score:
    """Unweighted mean over folds, of the value and of each part."""
    if not scores:
        raise ValueError("there is no fold's score to average; at least one is needed")
    parts = {name: float(np.mean([s.parts[name] for s in scores])) for name in scores[0].parts}
    return Score(float(np.mean([s.value for s in scores])), parts)


def trial_score(scores: Sequence[Score]) -> float:
    """The score of a trial: the unweighted mean over its folds."""
    return mean_score(scores).value


def row_correlations(a_RC: NDArray[Any], b_RC: NDArray[Any]) -> NDArray[np.float64]:
    """Pearson correlation of each row of `a` with the same row of `b`, NaN where either is
    constant (see `is_constant`). Sums are float64, centred before they are multiplied."""
    corr_R = np.empty(len(a_RC))
    for start in range(0, len(a_RC), _BLOCK):
        rows = slice(start, start + _BLOCK)
        a, a_mean, a_ss = _centred(a_RC[rows])
        b, b_mean, b_ss = _centred(b_RC[rows])
        columns = a.shape[1]
        void = is_constant(a_ss, a_mean, columns) | is_constant(b_ss, b_mean, columns)
        cross = np.einsum("rc,rc->r", a, b)
        # The two roots are taken apart: their product under one root would underflow sooner.
        norm = np.where(void, np.nan, np.sqrt(a_ss) * np.sqrt(b_ss))
        corr_R[rows] = np.clip(cross / norm, -1, 1)
    return corr_R


def is_constant(
    centred_ss: NDArray[np.float64], mean: NDArray[np.float64], count: int | NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether vectors of `count` values are constant up to float32 rounding, from their centred
    sum of squares and their mean, so that an engine that keeps only Grams can apply the rule."""
    return centred_ss <= CONSTANT**2 * (centred_ss + count * mean**2)


def _centred(
    x_RC: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    # C order whatever comes in: the order of summation, so the last bit, depends on the layout.
    x = np.array(x_RC, dtype=np.float64, order="C")
    mean = x.mean(axis=1)
    x -= mean[:, None]
    return x, mean, np.einsum("rc,rc->r", x, x)


def _mean(corr: NDArray[np.float64], nan: str) -> float:
    """Mean of correlations; the undefined ones count as 0 or are dropped (none left: 0)."""
    kept = np.nan_to_num(corr) if nan == "zero" else corr[~np.isnan(corr)]
    return float(kept.mean()) if len(kept) else 0.0


def _max(corr: NDArray[np.float64], nan: str) -> float:
    kept = np.nan_to_num(corr) if nan == "zero" else corr[~np.isnan(corr)]
    return float(kept.max()) if len(kept) else 0.0


def _refuse_non_finite(what: str, x_RC: NDArray[Any]) -> None:
    count = sum(
        int(np.size(block) - np.isfinite(block).sum())
        for block in (x_RC[i : i + _BLOCK] for i in range(0, len(x_RC), _BLOCK))
    )
    if count:
        raise ValueError(f"{what} hold {count} values that are NaN or infinite; none may be")


def _top(stat_T: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Indices of the `count` highest values (all, when there are fewer), highest first; ties go
    to the earlier gene."""
    return tuple(int(i) for i in np.argsort(-stat_T, kind="stable")[:count])


# --- gene_expr -------------------------------------------------------------------------------


def _fit_gene_expr(targets_TN: NDArray[Any], args: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    mean = targets_TN.mean(axis=1, dtype=np.float64)
    var = np.concatenate(
        [_centred(targets_TN[i : i + _BLOCK])[2] for i in range(0, len(targets_TN), _BLOCK)]
    )
    var /= targets_TN.shape[1]
    spread = var
    if args["hvg_stat"] == "cv":
        # Batch-corrected genes can have a mean of 0 or below, where std / mean says nothing.
        spread = np.full_like(var, -np.inf)
        np.divide(np.sqrt(var), mean, out=spread, where=mean > 0)
    return {"heg": _top(mean, args["heg_n"]), "hvg": _top(spread, args["hvg_n"])}


def _score_gene_expr(fitted: FittedMetric, pred: NDArray[Any], true: NDArray[Any]) -> Score:
    """The score of the Dacon competition 236382 (MAI): its four parts are those that BLEEP
    (Xie et al. 2023) prints; the list sizes are unpublished, BLEEP's 50 and 50 are the default."""
    nan = fitted.args["nan"]
    genes = row_correlations(pred, true)
    cells = row_correlations(pred.T, true.T)
    parts = {
        "mean_corr_cells": _mean(cells, nan),
        "max_corr_genes": _max(genes, nan),
        "heg_corr": _mean(genes[list(fitted.lists["heg"])], nan),
        "hvg_corr": _mean(genes[list(fitted.lists["hvg"])], nan),
    }
    return gene_expr_score(parts, mean_corr_genes=_mean(genes, nan))


def gene_expr_score(parts: Mapping[str, float], mean_corr_genes: float) -> Score:
    """max((MeanCorr_Cells + MaxCorr_Genes + HEG_Corr + HVG_Corr) / 4, 0); the mean over all
    genes is reported beside it and takes no part in it."""
    value = max(sum(parts.values()) / 4, 0.0)
    return Score(value, {**parts, "mean_corr_genes": mean_corr_genes})


# --- plain metrics ---------------------------------------------------------------------------


def _no_lists(targets_TN: NDArray[Any], args: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {}


def _score_pearson(fitted: FittedMetric, pred: NDArray[Any], true: NDArray[Any]) -> Score:
    value = _mean(row_correlations(pred, true), fitted.args["nan"])
    return Score(value, {"mean_corr_genes": value})


def _score_rmse(fitted: FittedMetric, pred: NDArray[Any], true: NDArray[Any]) -> Score:
    rmse = _mean_error(pred, true, np.square) ** 0.5
    return Score(-rmse, {"rmse": rmse})


def _score_mae(fitted: FittedMetric, pred: NDArray[Any], true: NDArray[Any]) -> Score:
    mae = _mean_error(pred, true, np.abs)
    return Score(-mae, {"mae": mae})


def _mean_error(
    pred: NDArray[Any], true: NDArray[Any], of: Callable[[NDArray[Any]], NDArray[Any]]
) -> float:
    total = 0.0
    for start in range(0, len(pred), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += float(of(pred[rows].astype(np.float64) - true[rows]).sum())
    return total / pred.size


@dataclass(frozen=True, kw_only=True)
class _Formula:
    label: str
    score: Callable[[FittedMetric, NDArray[Any], NDArray[Any]], Score]
    fit: Callable[[NDArray[Any], Mapping[str, Any]], dict[str, tuple[int, ...]]] = _no_lists
    lists: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


_FORMULAS = {
    "gene_expr": _Formula(
        label="gene_expr",
        score=_score_gene_expr,
        fit=_fit_gene_expr,
        lists=("heg", "hvg"),
        defaults={"heg_n": 50, "hvg_n": 50, "hvg_stat": "var", "nan": "zero"},
    ),
    "pearson": _Formula(label="pearson", score=_score_pearson, defaults={"nan": "zero"}),
    "rmse": _Formula(label="-rmse", score=_score_rmse),
    "mae": _Formula(label="-mae", score=_score_mae),
}
