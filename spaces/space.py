"""Space: what may be searched, defined by running a function that asks for choices.

A space is a function `define(choose) -> Recipe`. `choose` answers each question; who stands
behind it decides what happens: the sampler draws, `Fixed` replays given values. So one
function serves sampling, known-good first recipes and the membership test.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from spaces.errors import UserError, near
from spaces.recipe import Recipe


class Choose(Protocol):
    """Answers a space's questions. A `default` is what a first recipe gets that does not
    name the parameter. A name must always stand for the same range: give each family its
    own name ("lr@cnn", "lr@transformer") and what follows '@' is dropped in first recipes."""

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any: ...
    def real(
        self, name: str, low: float, high: float, default: float, log: bool = False
    ) -> float: ...


class Fixed:
    """Answers with given values, else the default; records every answer."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._used: set[str] = set()
        self.params: dict[str, Any] = {}
        self.faults: list[str] = []

    def _value(self, name: str, default: Any) -> Any:
        field_name = name.split("@")[0]
        self._used.update({name, field_name} & self._values.keys())
        return self._values.get(name, self._values.get(field_name, default))

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        fallback = default if default in options else options[0]
        value = self.params[name] = self._value(name, fallback)
        if value not in options:
            self.faults.append(f"{name} is {value!r}; the space has {list(options)}")
        return value

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        value = self.params[name] = self._value(name, min(max(default, low), high))
        if not (low <= value <= high):
            self.faults.append(f"{name} is {value!r}; the space has [{low:g}, {high:g}]")
        return value

    def unused(self) -> list[str]:
        return sorted(self._values.keys() - self._used)


@dataclass(frozen=True)
class Space:
    """`define` asks and returns a Recipe; `first` holds known-good recipes as overrides of the
    defaults, tried before anything is sampled."""

    define: Callable[[Choose], Recipe]
    first: Sequence[Mapping[str, Any]] = field(default=())

    def fixed(self, values: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with `values` in place of the defaults, and the parameters to enqueue.

        Raises UserError for a value outside the space and for a name that it never asks for.
        """
        choose = Fixed(values)
        recipe = self.define(choose)
        names = [name.split("@")[0] for name in choose.params]
        faults = choose.faults + [
            f"parameter {name} is not asked for by this space; {near(name, names)}"
            for name in choose.unused()
        ]
        if faults:
            raise UserError(faults)
        return recipe, choose.params

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether the space can sample exactly these parameters."""
        choose = Fixed(params)
        try:
            self.define(choose)
        except UserError:
            return False
        same = choose.params.keys() == params.keys()
        return same and not choose.faults and all(_finite(v) for v in params.values())


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
