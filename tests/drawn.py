"""A space's questions, answered at random."""

import random
from collections.abc import Sequence
from typing import Any


class Drawn:
    """Answers at random; keeps what it answered."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.params = rng, dict[str, Any]()

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        self.params[name] = self.rng.choice(list(options))
        return self.params[name]

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        self.params[name] = self.rng.uniform(low, high)
        return self.params[name]
