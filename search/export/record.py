"""What other tools are told of a run: settings and series of numbers, from its events."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from search.journal import Event
from search.run_folder import RunFolder, read_json
from search.trials import FINISHED
from spaces.errors import UserError

SERIES = ("score", "loss", "images_per_second")  # of a fold, by epoch
FIXED = ("image_size", "epochs", "seed")  # fields of the recipe that are told even if not searched

Setting = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What run.json says of a run."""

    name: str  # of the run, for people: its task and its folder
    task: str
    fold_order: tuple[int, ...]

    @classmethod
    def read(cls, run: RunFolder) -> Self:
        """Raises UserError when run.json is damaged."""
        about = read_json(run.run)
        try:
            task, order = str(about["task"]), tuple(about["fold_order"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{run.run} lacks {error}; it is damaged: restore it") from None
        name = task.rpartition("/")[2].removesuffix(".py")
        return cls(name=f"{name} {run.root.resolve().name}", task=task, fold_order=order)


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A number of a trial."""

    series: str  # "score/fold_2" by epoch; "score" by folds done
    step: int
    value: float


class Scalars:
    """Hears events in order; what each says in numbers. Epochs that a resumed worker tells again
    are told once."""

    def __init__(self) -> None:
        self._folds: defaultdict[int, dict[int, float]] = defaultdict(dict)  # trial -> scores
        self._epochs: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)  # trial -> told

    def of(self, event: Event) -> list[Scalar]:
        data, scores, told = event.data, self._folds[event.trial], self._epochs[event.trial]
        if event.kind == "epochs":
            found = []
            for point in data["points"]:
                where = point["fold"], point["epoch"]
                if where not in told:
                    told.add(where)
                    found += [
                        Scalar(series=f"{name}/fold_{where[0]}", step=where[1], value=point[name])
                        for name in SERIES
                    ]
            return found
        if event.kind == "fold":
            scores[data["fold"]] = data["score"]
            return [Scalar(series="score", step=len(scores), value=fmean(scores.values()))]
        if event.kind == "end" and data["state"] == FINISHED:
            folds = len(scores)
            return [
                Scalar(series=name, step=folds, value=data[name]) for name in ("score", "pooled")
            ]
        return []


def settings(ask: Event) -> dict[str, Setting]:
    """What was drawn for a trial, and what else its recipe is usually told by; names without what
    follows "@", which tells families' ranges apart."""
    params = {name.split("@")[0]: value for name, value in ask.data["params"].items()}
    fixed = {name: ask.data["recipe"][name] for name in FIXED if name in ask.data["recipe"]}
    return {name: _plain(value) for name, value in {**fixed, **params}.items()}


def _plain(value: Any) -> Setting:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
