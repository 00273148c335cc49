"""The report of an ensemble, `ensemble.json`: scores with their kind, weights, what each member
brings, why the others were left out, and what size costs.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import TWINS, Bench
from ensemble.blend import Blend, Post
from ensemble.bootstrap import LEVEL, Interval, intervals
from ensemble.combiners import Combiner
from ensemble.greedy import STEPS, Options, path
from ensemble.honest import Estimate, Nested, Nesting, nested_predictions

OPTIMISTIC = "optimistic: selected on the same rows"
OWN = "OOF: by models that did not see the rows; nothing was chosen for it"
NESTED = "nested: chosen without each fold, scored on it"
_CORRELATED = 50  # members in the matrix of error correlations


def make_report(
    nesting: Nesting,
    combiner: Combiner,
    blend: Blend,
    nested: Nested,
    oof_TN: NDArray[np.float32],
    *,
    options: Options,
) -> dict[str, Any]:
    """Everything about a fitted blend but the comparison with other combiners."""
    bench = nesting.bench
    pool = bench.pool
    single = nesting.nested(nesting.find("best_single"))
    return {
        "task": pool.task,
        "task_type": pool.task_type,
        "metric": pool.metric.label,
        "rows": len(pool.fold_N),
        "folds": pool.folds,
        "method": combiner.name,
        "combiner": blend.method,
        "what": combiner.what,
        "weights": {pool.members[m].name: w for m, w in zip(blend.members, blend.weights,
                                                           strict=True)},
        "post": _post(blend),
        "scores": _scores(bench, blend, nested, single, oof_TN),
        "members": _members(bench, blend),
        "discarded": _discarded(bench, blend),
        "error_correlation": _correlation(bench, blend),
        "curve": _curve(bench, options),
    }  # fmt: skip


def compare(
    nesting: Nesting, chosen: Blend, refused: Sequence[tuple[Combiner, str]] = ()
) -> list[dict[str, Any]]:
    """A row per combiner, the simplest first: its nested score, and how far it is behind the best
    in standard errors of the paired difference."""
    bench = nesting.bench
    nested = {c.name: nesting.nested(c).score for c in nesting.combiners}
    best = max(nested.values(), key=lambda score: score.mean)
    simplest = nesting.simplest(bench.folds).name
    rows = []
    for combiner in nesting.combiners:
        blend, score = nesting.fit(combiner, bench.folds), nested[combiner.name]
        behind = best.minus(score)
        rows.append(
            {
                "method": combiner.name,
                "what": combiner.what,
                "members": len(blend.members),
                "optimistic": bench.score(blend, bench.folds),
                "nested": score.mean,
                "standard_error": score.se,
                "per_fold": list(score.per_fold),
                "behind_best": behind.mean,
                "behind_best_standard_error": behind.se,
                "simplest_within_one_standard_error": combiner.name == simplest,
                "used": combiner.name == chosen.method,
            }
        )
    rows += [{"method": c.name, "what": c.what, "refused": reason} for c, reason in refused]
    return rows


def _scores(
    bench: Bench, blend: Blend, nested: Nested, single: Nested, oof_TN: NDArray[np.float32]
) -> list[dict[str, Any]]:
    preds = [oof_TN, nested_predictions(bench, single)]
    thresholds = [[b.post.thresholds_T for b in n.blends] for n in (nested, single)]
    (of_nested, of_single), of_gain = intervals(bench, preds, thresholds)
    optimistic = bench.score(blend, bench.folds)
    return [
        {"name": "ensemble, OOF", "kind": OPTIMISTIC, "score": optimistic},
        _row("ensemble, nested", nested.score, of_nested),
        _row("best single, nested", single.score, of_single),
        _row("ensemble minus best single, nested", nested.score.minus(single.score), of_gain),
        {
            "name": "OOF minus nested",
            "kind": "gap: what selecting on the same rows flatters",
            "score": optimistic - nested.score.mean,
        },
    ]


def _row(name: str, estimate: Estimate, interval: Interval | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "kind": NESTED,
        "score": estimate.mean,
        "standard_error": estimate.se,
        "per_fold": list(estimate.per_fold),
    }
    if interval is not None:
        row["interval"] = {
            "level": LEVEL,
            "bootstrap_of": interval.unit,
            "replicates": interval.replicates,
            "low": interval.low,
            "high": interval.high,
        }
    return row


def _post(blend: Blend) -> dict[str, Any]:
    """What is done after blending, in plain data; empty when nothing is."""
    post = blend.post
    found: dict[str, Any] = {}
    if post.thresholds_T is not None:
        found["thresholds"] = post.thresholds_T.tolist()
    if post.temperature != 1.0:
        found["temperature"] = post.temperature
    if post.mean_T is not None:
        found["shrink"] = post.shrink
    return found


def _members(bench: Bench, blend: Blend) -> list[dict[str, Any]]:
    """The members in use, heaviest first. The gain is what the weighted mean's OOF score loses
    without one, the other weights kept; null for blends that are no weighted mean."""
    blend = replace(blend, post=Post())
    whole = bench.score(blend, bench.folds)
    weights_M = blend.weights_of(len(bench.pool.members))
    rows = []
    for m, weight in zip(blend.members, blend.weights, strict=True):
        gain = None
        if blend.is_mean and len(blend.members) > 1:
            rest_M = weights_M.copy()
            rest_M[m] = 0
            gain = whole - bench.engine.score(rest_M, bench.folds)
        member = bench.pool.members[m]
        rows.append(
            {
                "name": member.name,
                "weight": weight,
                "score": float(bench.single_KM[:, m].mean()),
                "score_kind": OWN,
                "per_fold": bench.single_KM[:, m].tolist(),
                "gain": gain,
                **asdict(member.cost),
            }
        )
    return rows


def _discarded(bench: Bench, blend: Blend) -> list[dict[str, Any]]:
    """The members that are not used, best first, each with the reason."""
    blend = replace(blend, post=Post())
    names = [member.name for member in bench.pool.members]
    like_MM = bench.errors.likeness(bench.folds)
    candidates = bench.candidates(bench.folds)
    rows = []
    for place, m in enumerate(ranked := bench.ranked(bench.folds)):
        if m in blend.members:
            continue
        better = [b for b in ranked[:place] if b in candidates and like_MM[m, b] > TWINS]
        if better:
            alike = like_MM[m, better[0]]
            reason = f"twin of {names[better[0]]}: predictions and errors correlate {alike:.4f}"
        elif not bench.budget.admits([m]):
            reason = "exceeds a limit alone"
        else:
            reason = _no_gain(bench, blend, m)
        rows.append(
            {
                "name": names[m],
                "score": float(bench.single_KM[:, m].mean()),
                "score_kind": OWN,
                "reason": reason,
            }
        )
    return rows


def _no_gain(bench: Bench, blend: Blend, member: int) -> str:
    if not blend.is_mean:
        return f"not among those that {blend.method} took"
    weights_M = blend.weights_of(len(bench.pool.members))
    more_M = weights_M.copy()
    more_M[member] += 1 / STEPS
    change = bench.engine.score(more_M, bench.folds) - bench.engine.score(weights_M, bench.folds)
    text = f"adding it with weight {1 / (STEPS + 1):.3f} changes the OOF score by {change:+.5f}"
    full = not bench.budget.admits([*blend.members, member])
    return text + ("; the limits leave no room for it" if full else "")


def _correlation(bench: Bench, blend: Blend) -> dict[str, Any]:
    """Correlations of errors: those in use first, then the best others."""
    others = [m for m in bench.ranked(bench.folds) if m not in blend.members]
    shown = [*blend.members, *others][:_CORRELATED]
    matrix = bench.errors.correlation(bench.folds)[np.ix_(shown, shown)]
    names = [bench.pool.members[m].name for m in shown]
    return {"names": names, "matrix": np.round(matrix, 4).tolist()}


def _curve(bench: Bench, options: Options) -> list[dict[str, Any]]:
    """Greedy selection stopped at 1, 2, ... different members: what size brings and costs."""
    whole = path(bench, bench.folds, options)
    parts = [path(bench, [k for k in bench.folds if k != fold], options) for fold in bench.folds]
    most = len(set(whole.order))
    rows = []
    for count in range(1, most + 1):
        order = _stopped(whole.order, whole.trace, count)
        costs = [bench.pool.members[m].cost for m in set(order)]
        scores = []
        for fold, part in zip(bench.folds, parts, strict=True):
            counts_M = np.bincount(_stopped(part.order, part.trace, count),
                                   minlength=len(bench.pool.members))  # fmt: skip
            others = [k for k in bench.folds if k != fold]
            scores.append(bench.engine.held_out(counts_M, fold, others))
        nested = Estimate(tuple(scores))
        rows.append(
            {
                "members": count,
                "mb": _total([cost.mb for cost in costs]),
                "ms": _total([cost.ms for cost in costs]),
                "optimistic": whole.trace[len(order) - 1],
                "nested": nested.mean,
                "standard_error": nested.se,
            }
        )
    return rows


def _stopped(order: Sequence[int], trace: Sequence[float], count: int) -> list[int]:
    """The best part of a path, from its start, with at most `count` different members."""
    within = [i + 1 for i in range(len(order)) if len(set(order[: i + 1])) <= count]
    best = max(within, key=lambda length: (trace[length - 1], -length))
    return list(order[:best])


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
