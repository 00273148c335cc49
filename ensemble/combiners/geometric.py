"""The geometric mean: sure members weigh more than in the mean of probabilities."""

from collections.abc import Sequence

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners.prefix import best_size, equal_blend, mean_of
from ensemble.combiners.tasks import no_probabilities, not_classification
from ensemble.members import Pool
from ensemble.transforms import transformed


def refuses_geometric(pool: Pool) -> str | None:
    what = "a geometric mean"
    return not_classification(pool, what) or no_probabilities(pool, what)


def geometric(bench: Bench, folds: Sequence[int]) -> Blend:
    """The mean of the k best members' logits, or of the logarithms of their classes'
    probabilities."""
    order = bench.budget.fill(bench.candidates(folds))
    multiclass = bench.pool.task_type == "multiclass"
    transform, link = ("log", "softmax") if multiclass else ("logit", "sigmoid")
    grow = mean_of(lambda _, pred_TB: transformed(pred_TB, transform), link)
    k = best_size(bench, folds, order, grow)
    return equal_blend(bench, "geometric", order[:k], transform=transform, link=link)
