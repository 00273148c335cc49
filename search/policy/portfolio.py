"""The first recipes of a run: what did well before, then one of each series of backbones. Pure."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from spaces.backbones import family, series
from spaces.errors import UserError
from spaces.space import Space

Params = dict[str, Any]  # what a recipe is made from, each parameter by its full name


def portfolio(
    space: Space,
    backbones: Sequence[str],
    cost: Callable[[str], float],
    limit: int,
    warm: Sequence[Mapping[str, Any]] = (),
) -> list[Params]:
    """Parameters of at most `limit` different recipes on these backbones, in the order to try.

    First `warm`, parameters of this space that did well in earlier runs; then the task's own
    known-good recipes; then, with the space's defaults, the cheapest backbone of every series that
    none of them covers: cheap series first, CNNs and transformers in turns, so that a few trials
    tell which kind suits the data. `cost` is the price of a trial on a backbone, in any unit.

    Raises UserError for a recipe of the task's own that lies outside its space.
    """
    own = [space.fixed(values)[1] for values in space.first]
    known = _different(dict(params) for params in (*warm, *own) if params["backbone"] in backbones)[
        :limit
    ]
    covered = {series(params["backbone"]) for params in known}
    cheapest: dict[str, str] = {}
    for backbone in sorted(backbones, key=cost):
        cheapest.setdefault(series(backbone), backbone)
    missing = [backbone for name, backbone in cheapest.items() if name not in covered]
    return _different([*known, *_with_defaults(space, _in_turns(missing))])[:limit]


def _different(recipes: Iterable[Params]) -> list[Params]:
    """Each but once, at its first place."""
    found: list[Params] = []
    for params in recipes:
        if params not in found:
            found.append(params)
    return found


def _in_turns(backbones: Sequence[str]) -> Iterator[str]:
    """One of each family after the other while there are any; else in the given order."""
    queues: dict[str, deque[str]] = {}
    for backbone in backbones:
        queues.setdefault(family(backbone), deque()).append(backbone)
    while any(queues.values()):
        yield from [queue.popleft() for queue in queues.values() if queue]


def _with_defaults(space: Space, backbones: Iterable[str]) -> Iterator[Params]:
    for backbone in backbones:
        try:
            yield space.fixed({"backbone": backbone})[1]
        except UserError:
            continue  # the task's space leaves this backbone out
