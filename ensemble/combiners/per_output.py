"""Convex weights of each output, pulled towards those of all outputs together.

Shapes: m members, T outputs, S strengths.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.convex import convex, convex_weights
from ensemble.combiners.moments import output_moments
from ensemble.combiners.simplex import simplex_weights
from ensemble.combiners.strength import best_strength
from ensemble.members import Pool

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # times an output's mean squared error
MOST = 10  # members

Floats = NDArray[np.float64]


def refuses_per_output(pool: Pool) -> str | None:
    if pool.task_type == "multiclass":
        return "weights that differ between classes break their sum of 1; the task is multiclass"
    if len(pool.true_TN) < 2:
        return "the task has one output; its own weights are those of convex"
    return None


def per_output(bench: Bench, folds: Sequence[int]) -> Blend:
    """Each output's own convex weights of the members that have weight in `convex`. How strongly
    they are pulled to the common ones is what does best on folds left out, by squared error."""
    members = convex(bench, folds).members[:MOST]
    moments = output_moments(bench, members, folds)
    unit_T = moments.unit_T()

    def path(fit_on: Sequence[int], strengths: Sequence[float]) -> list[Floats]:
        common_m = convex_weights(bench, members, fit_on)
        return _path(moments.error_gram(fit_on), common_m, strengths)

    def losses(others: Sequence[int], fold: int) -> Floats:
        gram_Tmm = moments.error_gram([fold])
        loss_ST = [np.einsum("tm,tml,tl->t", w_Tm, gram_Tmm, w_Tm, optimize=True)
                   for w_Tm in path(others, STRENGTHS)]  # fmt: skip
        return np.array(loss_ST) @ unit_T

    strength = best_strength(STRENGTHS, folds, losses)
    coef_mT = path(folds, [strength])[0].T
    share_m = coef_mT.mean(axis=1)
    order = [i for i in np.argsort(-share_m, kind="stable").tolist() if share_m[i] > 0]
    return Blend(
        method="per_output",
        task_type=bench.pool.task_type,
        members=tuple(members[i] for i in order),
        weights=tuple((share_m[order] / share_m[order].sum()).tolist()),
        coef_mT=np.ascontiguousarray(coef_mT[order]),
    )


def _path(gram_Tmm: Floats, common_m: Floats, strengths: Sequence[float]) -> list[Floats]:
    """(T, m) weights for each strength, strongest first: each starts where the one before ended."""
    members = len(common_m)
    size_T = np.einsum("tmm->t", gram_Tmm) / members
    scaled_Tmm = gram_Tmm / np.where(size_T > 0, size_T, 1)[:, None, None]
    weights: list[Floats] = []
    start_Tm = np.tile(common_m, (len(gram_Tmm), 1))
    for strength in strengths:
        quad_Tmm = scaled_Tmm + strength * np.eye(members)
        pull_Tm = np.tile(strength * common_m, (len(gram_Tmm), 1))
        start_Tm = simplex_weights(quad_Tmm, pull_Tm, start_Tm)
        weights.append(start_Tm)
    return weights
