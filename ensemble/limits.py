"""What an ensemble may cost: members, members of one family, megabytes, milliseconds.

Shapes: M members.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.errors import UserError

MAX_MEMBERS = 10  # each costs K models at prediction


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper limits; None: no limit. Each value is checked at once."""

    max_members: int | None = MAX_MEMBERS
    max_per_family: int | None = None
    max_mb: float | None = None  # of all fold models together
    max_ms: float | None = None  # to predict one image with all fold models

    def __post_init__(self) -> None:
        given = (
            ("--max-members", self.max_members, 1),
            ("--max-per-family", self.max_per_family, 1),
            ("--max-mb", self.max_mb, 0),
            ("--max-ms", self.max_ms, 0),
        )
        faults = [
            f"{flag} is {value}; it must be {'1 or more' if least else 'above 0'}"
            for flag, value, least in given
            if value is not None and (value < least or value <= 0)
        ]
        if faults:
            raise UserError(faults)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one member costs; None: not known."""

    family: str
    mb: float | None = None
    ms: float | None = None


class Budget:
    """Limits applied to the members of one pool."""

    def __init__(self, limits: Limits, costs: Sequence[Cost], names: Sequence[str]) -> None:
        """Raises UserError for a limit on something unknown, or that no member keeps."""
        self.limits, self._costs = limits, costs
        self._family_M = np.unique([cost.family for cost in costs], return_inverse=True)[1]
        self._mb_M, self._ms_M = (
            np.array([value or 0.0 for value in values], dtype=np.float64)
            for values in ([cost.mb for cost in costs], [cost.ms for cost in costs])
        )
        faults = []
        for flag, limit, values in (
            ("--max-mb", limits.max_mb, [cost.mb for cost in costs]),
            ("--max-ms", limits.max_ms, [cost.ms for cost in costs]),
        ):
            unknown = [n for n, value in zip(names, values, strict=True) if value is None]
            if limit is not None and unknown:
                faults.append(
                    f"{flag} is given, but nothing is known of that cost for {len(unknown)} "
                    f"members ({', '.join(unknown[:3])}); leave {flag} out"
                )
            elif limit is not None and limit < min(value for value in values if value is not None):
                least = min(value for value in values if value is not None)
                faults.append(
                    f"{flag} is {limit:g}, but the cheapest member needs {least:.3g}; "
                    "raise it, or search smaller models"
                )
        if not faults and not any(self.admits([m]) for m in range(len(costs))):
            faults.append("no member keeps --max-mb and --max-ms together; raise one of them")
        if faults:
            raise UserError(faults)

    def admits(self, members: Iterable[int]) -> bool:
        """Whether these members may stand in one ensemble."""
        used, limits = [self._costs[m] for m in members], self.limits
        families = Counter(cost.family for cost in used)
        totals = (
            (limits.max_members, len(used)),
            (limits.max_per_family, max(families.values(), default=0)),
            (limits.max_mb, sum(cost.mb or 0 for cost in used)),
            (limits.max_ms, sum(cost.ms or 0 for cost in used)),
        )
        return all(limit is None or total <= limit for limit, total in totals)

    def mask(self, counts_M: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(M,) which members may be added to those that are in; these may always."""
        inside_M, limits = counts_M > 0, self.limits
        fits_M = np.ones(len(counts_M), dtype=bool)
        if limits.max_members is not None:
            fits_M &= np.count_nonzero(inside_M) < limits.max_members
        if limits.max_per_family is not None:
            same_MM = self._family_M[:, None] == self._family_M
            fits_M &= (same_MM & inside_M).sum(axis=1) < limits.max_per_family
        for limit, cost_M in ((limits.max_mb, self._mb_M), (limits.max_ms, self._ms_M)):
            if limit is not None:
                fits_M &= cost_M[inside_M].sum() + cost_M <= limit
        return inside_M | fits_M

    def fill(self, order: Iterable[int]) -> tuple[int, ...]:
        """The members in this order, leaving out each that no longer fits."""
        taken: list[int] = []
        for member in order:
            if self.admits([*taken, member]):
                taken.append(member)
        return tuple(taken)
