"""What a combiner is: it fits a blend of members on the rows of some folds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ensemble.bench import Bench
from ensemble.blend import Blend, Post
from ensemble.members import Pool
from ensemble.post import fit_post


def always(pool: Pool) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Combiner:
    """A way to combine members. `choose` may use only the rows of the folds it is given."""

    name: str
    what: str  # in words, for tables
    choose: Callable[[Bench, Sequence[int]], Blend]  # without what is fitted afterwards
    refuses: Callable[[Pool], str | None] = always  # why it cannot work on a pool; None: it can

    def fit(self, bench: Bench, folds: Sequence[int]) -> Blend:
        """The blend chosen on these folds, then thresholds, temperature or shrinkage on the same
        rows."""
        blend = replace(self.choose(bench, folds), post=Post())
        return replace(blend, post=fit_post(bench, blend, folds))
