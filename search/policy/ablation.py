"""One change at a time around a recipe: which changes there are, and what each did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from spaces.errors import UserError, near
from spaces.space import Fixed, Space

OPTIONS = 3  # other options of a choice that are tried at most
FACTOR = 3.0  # by which a number on a logarithmic scale is changed
SHARE = 0.25  # of its range by which another number is changed
AGAIN = "nothing, another seed"  # how much a score differs without any change


@dataclass(frozen=True, kw_only=True)
class Change:
    """A recipe's parameters with one of them changed, and whatever hangs on it."""

    name: str
    old: Any
    new: Any
    params: dict[str, Any]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def words(self) -> str:
        if self.name == AGAIN:
            return self.name
        old, new = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in (self.old, self.new))
        return f"{self.name} {old} -> {new}"


class _Asked(Fixed):
    """Answers with given values and records what else could have been answered."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.others: dict[str, list[Any]] = {}

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        value = super().pick(name, options, default)
        self.others[name] = [option for option in options if option != value][:OPTIONS]
        return value

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        value = super().real(name, low, high, default, log)
        step = SHARE * (high - low)
        tried = (value / FACTOR, value * FACTOR) if log else (value - step, value + step)
        self.others[name] = [new for new in tried if low <= new <= high]
        return value


def changes(
    space: Space, params: Mapping[str, Any], seed: int, names: Sequence[str] = ()
) -> list[Change]:
    """The recipe again with another seed, then every single change of the parameters `names` (none:
    of all). Raises UserError for a name that the recipe does not have."""
    asked = _Asked(params)
    space.define(asked)
    plain = {name.split("@")[0]: name for name in asked.others}
    if unknown := [name for name in names if name not in plain]:
        raise UserError(
            f"--ablate names {', '.join(unknown)}, which the best recipe does not have; "
            f"{near(unknown[0], plain, 30)}"
        )
    again = Change(name=AGAIN, old=None, new=None, params=dict(params), seed=seed + 1)
    found = [again]
    for short, name in plain.items():
        for new in asked.others[name] if not names or short in names else []:
            answers = Fixed({**params, name: new})
            space.define(answers)
            found.append(
                Change(
                    name=short, old=asked.params[name], new=new, params=answers.params, seed=seed
                )
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a change did to the score: mean over folds, and the 95 % interval of that mean."""

    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def effect(scores: Sequence[float], base: Sequence[float]) -> Effect:
    """From the scores of the same folds with and without the change: paired, Student's t."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(scores, base, strict=True)]
    mean, folds = fmean(differences), len(differences)
    if folds < 2:
        return Effect(difference=mean, low=float("-inf"), high=float("inf"))
    half = float(t.ppf(0.975, folds - 1)) * stdev(differences) / folds**0.5
    return Effect(difference=mean, low=mean - half, high=mean + half)
