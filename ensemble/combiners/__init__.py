"""Combiners by name, in the order of their simplicity."""

from ensemble.combiners.base import Combiner as Combiner
from ensemble.combiners.convex import convex
from ensemble.combiners.geometric import geometric, refuses_geometric
from ensemble.combiners.greedy import greedy
from ensemble.combiners.means import best_single, mean_all, performance_weighted, top_k
from ensemble.combiners.per_output import per_output, refuses_per_output
from ensemble.combiners.ranks import rank_mean, refuses_rank_mean
from ensemble.combiners.stacking import refuses_stacking, stacking
from ensemble.combiners.votes import hard_vote, median, refuses_hard_vote
from spaces.errors import UserError, near

# Between combiners that are equally good the first one is taken.
COMBINERS: tuple[Combiner, ...] = (
    Combiner(name="best_single", what="the best member alone", choose=best_single),
    Combiner(name="top_k", what="mean of the k best", choose=top_k),
    Combiner(name="mean_all", what="mean of all", choose=mean_all),
    Combiner(
        name="weighted",
        what="mean of the k best, weighted by score",
        choose=performance_weighted,
    ),
    Combiner(
        name="rank_mean",
        what="mean of the k best members' ranks",
        choose=rank_mean,
        refuses=refuses_rank_mean,
    ),
    Combiner(
        name="geometric",
        what="mean of the k best members' logits",
        choose=geometric,
        refuses=refuses_geometric,
    ),
    Combiner(name="median", what="median of the k best", choose=median),
    Combiner(
        name="hard_vote",
        what="votes of the k best",
        choose=hard_vote,
        refuses=refuses_hard_vote,
    ),
    Combiner(name="greedy", what="greedy selection with replacement", choose=greedy),
    Combiner(name="convex", what="weights >= 0 of least squared error", choose=convex),
    Combiner(
        name="per_output",
        what="weights >= 0 of each output",
        choose=per_output,
        refuses=refuses_per_output,
    ),
    Combiner(
        name="stacking",
        what="a regression on the members",
        choose=stacking,
        refuses=refuses_stacking,
    ),
)


def get_combiner(name: str) -> Combiner:
    """Raises UserError for an unknown name."""
    for combiner in COMBINERS:
        if combiner.name == name:
            return combiner
    names = [combiner.name for combiner in COMBINERS]
    raise UserError(f"combiner {name!r} is unknown; {near(name, names)}")
