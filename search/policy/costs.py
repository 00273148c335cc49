"""What training costs, learned from the run: seconds per epoch of a model at a size. Pure.

What has not been seen is priced by the published costs, scaled by what the seen ones took; networks
by networks and probes ("resnet50 ridge") by probes, which cost next to nothing. Machines of several
kinds differ by a factor, the same for all models.
"""

from collections import defaultdict
from statistics import median

from spaces.backbones import relative_cost

Key = tuple[str, int]  # model, side in pixels


class Costs:
    """Hears every epoch and fold; knows what an epoch takes, with all that belongs to it."""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        # machine -> model and size -> seconds, epochs
        self._seconds: defaultdict[str, defaultdict[Key, float]] = defaultdict(_seconds)
        self._epochs: defaultdict[str, defaultdict[Key, int]] = defaultdict(_epochs)

    def hear(
        self, backbone: str, size: int, seconds: float, epochs: int, machine: str = ""
    ) -> None:
        """`seconds` went into `epochs` epochs; 0 epochs: into the end of a fold."""
        self._seconds[machine][backbone, size] += seconds
        self._epochs[machine][backbone, size] += epochs

    def epoch(self, backbone: str, size: int, machine: str | None = None) -> float | None:
        """Seconds per epoch on a machine of that name, or on any, as the work is spread over them;
        None before anything was seen."""
        slowness = self._slowness()
        if not slowness:
            return None
        seconds: defaultdict[Key, float] = defaultdict(float)  # of the machine with most epochs
        epochs: defaultdict[Key, int] = defaultdict(int)
        for name, factor in slowness.items():
            for key, count in self._epochs[name].items():
                seconds[key] += self._seconds[name][key] / factor
                epochs[key] += count
        here = slowness.get(machine) if machine is not None else None
        if here is None:
            spent = {name: sum(self._seconds[name].values()) for name in slowness}
            total = sum(spent.values())
            here = sum(spent[n] * slowness[n] for n in slowness) / total if total else 1.0
        if epochs.get((backbone, size)):
            return here * seconds[backbone, size] / epochs[backbone, size]
        ratios = [
            seconds[name, side] / count / self._price(name, side)
            for (name, side), count in epochs.items()
            if count and _probe(name) == _probe(backbone)
        ]
        return here * median(ratios) * self._price(backbone, size) if ratios else None

    def _slowness(self) -> dict[str, float]:
        """Of each machine that finished an epoch, against the one that has finished most."""
        seen = [name for name, epochs in self._epochs.items() if any(epochs.values())]
        if not seen:
            return {}
        first = max(seen, key=lambda name: sum(self._epochs[name].values()))
        return {name: self._factor(name, first) for name in seen}

    def _factor(self, machine: str, other: str) -> float:
        if machine == other:
            return 1.0
        own, others = self._rates(machine), self._rates(other)
        if both := own.keys() & others.keys():
            ratios = [own[key] / others[key] for key in both]
        else:  # no model was on both: by what they should cost
            ratios = [
                median(rate / self._price(*key) for key, rate in own.items())
                / median(rate / self._price(*key) for key, rate in others.items())
            ]
        return median(ratios)

    def _rates(self, machine: str) -> dict[Key, float]:
        """Seconds per epoch of what was seen on a machine; never 0."""
        return {
            key: max(self._seconds[machine][key], 1e-9) / count
            for key, count in self._epochs[machine].items()
            if count
        }

    def _price(self, model: str, size: int) -> float:
        return relative_cost(model.partition(" ")[0], size, self._gpu)


def _seconds() -> defaultdict[Key, float]:
    return defaultdict(float)


def _epochs() -> defaultdict[Key, int]:
    return defaultdict(int)


def _probe(model: str) -> bool:
    return " " in model
