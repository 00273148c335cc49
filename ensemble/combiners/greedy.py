"""Greedy selection as a combiner."""

from collections.abc import Sequence

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.means import mean_blend
from ensemble.greedy import Options, select_members


def greedy(bench: Bench, folds: Sequence[int], options: Options = Options()) -> Blend:  # noqa: B008
    weights_M = select_members(bench, folds, options)
    weights = {m: float(w) for m, w in enumerate(weights_M) if w > 0}
    return mean_blend(bench, "greedy", weights)
