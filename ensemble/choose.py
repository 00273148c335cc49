"""From a pool of members to the choice of an ensemble: how to combine them, and how good it is."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.bench import Bench
from ensemble.blend import Blend
from ensemble.combiners import COMBINERS
from ensemble.combiners.greedy import greedy
from ensemble.greedy import Options
from ensemble.honest import AUTO, Estimate, Nesting, nested_predictions
from ensemble.limits import Limits
from ensemble.members import Pool
from ensemble.meter import Tell, silent
from ensemble.report import compare, make_report
from spaces.errors import UserError, near


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What was chosen from a pool, and how good it is."""

    pool: Pool
    blend: Blend
    nested: Estimate
    oof_TN: NDArray[np.float32]  # each row by what was chosen without its fold
    report: dict[str, Any]  # the content of ensemble.json

    @property
    def score(self) -> float:
        """OOF score of the ensemble: optimistic, selected on the same rows."""
        return float(self.report["scores"][0]["score"])


def choose(
    pool: Pool,
    *,
    method: str = "greedy",
    limits: Limits | None = None,
    options: Options | None = None,
    compared: bool = False,
    tell: Tell = silent,
) -> Choice:
    """Fit a combiner on all folds and score it nested; with `compared` all other combiners too.

    Raises UserError for an unknown method, one that cannot work here, and impossible limits.
    """
    names = [*(c.name for c in COMBINERS), AUTO]
    if method not in names:
        raise UserError(f"--method is {method!r}; {near(method, names)}")
    options = options or Options()
    own = partial(greedy, options=options)
    combiners = [replace(c, choose=own) if c.name == "greedy" else c for c in COMBINERS]
    reasons = [(c, c.refuses(pool)) for c in combiners]
    nesting = Nesting(Bench(pool, limits), [c for c, reason in reasons if reason is None])
    combiner = nesting.find(method)
    others = nesting.combiners if compared or method == AUTO else ()
    for number, other in enumerate(others):
        tell(number, len(others) + 1, other.what)
        nesting.nested(other)
    tell(len(others), len(others) + 1, combiner.what)
    blend, nested = nesting.fit(combiner, nesting.bench.folds), nesting.nested(combiner)
    oof_TN = nested_predictions(nesting.bench, nested)
    report = make_report(nesting, combiner, blend, nested, oof_TN, options=options)
    if others:
        refused = [(c, reason) for c, reason in reasons if reason is not None]
        report["comparison"] = compare(nesting, blend, refused)
    tell(len(others) + 1, len(others) + 1, "done")
    return Choice(pool=pool, blend=blend, nested=nested.score, oof_TN=oof_TN, report=report)
