"""What training costs, learned from the run: seconds per epoch of a model at a size. Pure.

What has not been seen is priced by the published costs, scaled by what the seen ones took; networks
by networks and probes ("resnet50 ridge") by probes, which cost next to nothing.
"""

from collections import defaultdict
from statistics import median

from spaces.backbones import relative_cost


class Costs:
    """Hears every epoch and fold; knows what an epoch takes, with all that belongs to it."""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        self._seconds: defaultdict[tuple[str, int], float] = defaultdict(float)
        self._epochs: defaultdict[tuple[str, int], int] = defaultdict(int)

    def hear(self, backbone: str, size: int, seconds: float, epochs: int) -> None:
        """`seconds` went into `epochs` epochs; 0 epochs: into the end of a fold."""
        self._seconds[backbone, size] += seconds
        self._epochs[backbone, size] += epochs

    def epoch(self, backbone: str, size: int) -> float | None:
        """Seconds per epoch; None before anything was seen."""
        if self._epochs.get((backbone, size)):
            return self._seconds[backbone, size] / self._epochs[backbone, size]
        ratios = [
            self._seconds[name, side] / epochs / self._price(name, side)
            for (name, side), epochs in self._epochs.items()
            if epochs and _probe(name) == _probe(backbone)
        ]
        return median(ratios) * self._price(backbone, size) if ratios else None

    def _price(self, model: str, size: int) -> float:
        return relative_cost(model.partition(" ")[0], size, self._gpu)


def _probe(model: str) -> bool:
    return " " in model
