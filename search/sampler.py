"""The sampler: which recipe to try next. Optuna's TPE, neighbours of the best, and chance.

It hears every event, live and on replay. Optuna's study is made anew for each ask from what was
heard, and every random choice from (run seed, trial number), so that a resumed run asks as an
unbroken one would.
"""

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search import trials as states
from search.journal import Event
from search.policy.priors import PriorObservation
from search.policy.rungs import Rung
from spaces.recipe import Recipe
from spaces.seeds import derive
from spaces.space import Space

# Shares of the trials after the first recipes; the rest is TPE's (benchmarks/search_policies.py).
RANDOM_SHARE = 0.3  # keeps the others from closing in on an early favourite
NEIGHBOUR_SHARE = 0.6  # a step from one of the best
NEIGHBOUR_OF = 5  # best trials that are stepped from
STEP = 0.2  # standard deviation of a number's step, as a share of its (logarithmic) range
REDRAWN = 0.25  # chance of a choice to be made anew
SEED_SHARE = 0.2  # of late trials: another seed of one of the best finished recipes
SEEDS = 3  # of one recipe
COMPARED = 3  # trials at a rung before neighbours compare there
MODELLED = 8  # trials at a rung before TPE's model does
SHOWN = 100  # trials that TPE is shown: the best and the newest; more cost time and tell little
PRIORS = 24  # trials of earlier runs that it is shown at most
COPY = 0.02  # recipes whose every number differs by less of its range are near copies
TRIES = 20  # to find something that is no near copy

Draw = Callable[[str, BaseDistribution], Any]


class _Choose:
    """A space's questions, answered with `fixed` values where the space has them, else by `draw`.
    Keeps the answers and what they were drawn from."""

    def __init__(self, draw: Draw, fixed: Mapping[str, Any]) -> None:
        self._draw, self._fixed = draw, fixed
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        return self._answer(name, CategoricalDistribution(list(options)))

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        return float(self._answer(name, FloatDistribution(low, high, log=log)))

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._fixed.get(name)
        if name not in self._fixed or not _within(distribution, value):
            value = self._draw(name, distribution)
        self.params[name], self.distributions[name] = value, distribution
        return value


def _within(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


def _by_chance(rng: np.random.Generator) -> Draw:
    def draw(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(rng.integers(len(distribution.choices)))]
        return _at(distribution, rng.random())

    return draw


def _around(params: Mapping[str, Any], rng: np.random.Generator) -> Draw:
    """A step from given parameters: numbers move a little, some choices are made anew."""
    chance = _by_chance(rng)

    def draw(name: str, distribution: BaseDistribution) -> Any:
        if name not in params or not _within(distribution, params[name]):
            return chance(name, distribution)
        if isinstance(distribution, CategoricalDistribution):
            return chance(name, distribution) if rng.random() < REDRAWN else params[name]
        share = abs(_share(distribution, params[name]) + rng.normal(0, STEP))
        return _at(distribution, min(max(2 - share if share > 1 else share, 0), 1))  # reflected

    return draw


def _share(distribution: BaseDistribution, value: float) -> float:
    """Where in its (logarithmic) range a number lies, from 0 to 1."""
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0


def _at(distribution: BaseDistribution, share: float) -> float:
    """The inverse of _share."""
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    return min(max(value, low), high)


def _by_optuna(trial: optuna.Trial) -> Draw:
    def draw(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        assert isinstance(distribution, FloatDistribution)
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    return draw


def _words(params: Mapping[str, Any]) -> frozenset[Any]:
    """The choices among words, which alike recipes share: only those that do are compared."""
    return frozenset((name, value) for name, value in params.items() if isinstance(value, str))


@dataclass(kw_only=True)
class Observation:
    """What the sampler knows of a trial."""

    params: Mapping[str, Any]
    recipe: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: dict[Rung, float] = field(default_factory=dict)  # also at the end of all folds
    diverged: bool = False

    @property
    def deepest(self) -> Rung | None:
        return max(self.values, default=None)


class Sampler:
    """First recipes, then a mix of TPE, neighbours of the best and random draws.

    TPE and neighbours compare trials at one rung, the deepest that enough have reached, where their
    values mean the same; those that came less far count as pruned, at the step they reached. Many
    dimensions with few trials: independent draws are seldom good in all of them, while a neighbour
    keeps most of what made a trial good (the idea of PriorBand, Mallik et al. 2023).
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        backbones: Sequence[str],
        rungs: Sequence[Rung],
        folds: int,
        epochs: int,
        first: Sequence[Mapping[str, Any]],
        priors: Sequence[PriorObservation] = (),
    ) -> None:
        """`backbones`: all that the space may draw. `first`: parameters of the recipes to begin
        with. `priors`: trials of earlier runs."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._seed, self._epochs = space, seed, epochs
        self._backbones, self._whole = set(backbones), Rung(folds, 0)
        self._rungs = (*rungs, self._whole)
        self._first = list(first)  # those that were not asked yet
        self._changes: list[Mapping[str, Any]] = []  # of an ablation, that were not asked yet
        self._priors = [(self._known(p.params)[1], p) for p in priors]
        self._seen: dict[int, Observation] = {}
        # What each ask looks up is kept as it is heard: a long run asks as quickly as a short one.
        self._at: dict[Rung, int] = dict.fromkeys(self._rungs, 0)  # arrivals
        # (-value, trial), the best first; without those that diverged
        self._ranking: dict[Rung, list[tuple[float, int]]] = {rung: [] for rung in self._rungs}
        self._like: defaultdict[frozenset[Any], list[Observation]] = defaultdict(list)
        self._ranges: dict[str, BaseDistribution] = {}

    # -- hearing -------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "ask":
            _, distributions = self._known(data["params"])
            if data.get("source") == "ablate":
                self._changes.pop(0)
            if data["params"] in self._first:
                self._first.remove(data["params"])
            seen = self._seen[event.trial] = Observation(
                params=data["params"], recipe=data["recipe"],
                distributions={name: self._range(name, d) for name, d in distributions.items()},
            )  # fmt: skip
            self._like[_words(seen.params)].append(seen)
        elif event.kind == "ablate":
            self._changes += data["changes"]
        elif event.kind == "rung":
            self._record(event.trial, Rung.parse(data["rung"]), data["value"])
        elif event.kind == "end" and data["state"] == states.FINISHED:
            self._record(event.trial, self._whole, data["score"])
        elif event.kind == "end" and data["state"] == states.DIVERGED:
            seen = self._seen[event.trial]
            seen.diverged = True
            for rung, value in seen.values.items():
                self._ranking[rung].remove((-value, event.trial))

    def _record(self, trial: int, rung: Rung, value: float) -> None:
        if math.isfinite(value):
            self._seen[trial].values[rung] = value
            self._at[rung] += 1
            insort(self._ranking[rung], (-value, trial))

    def _range(self, name: str, drawn_from: BaseDistribution) -> BaseDistribution:
        """The object that other trials hold for the same range: thousands of them need room."""
        known = self._ranges.setdefault(name, drawn_from)
        return known if known == drawn_from else drawn_from

    def _known(self, params: Mapping[str, Any]) -> tuple[Recipe, dict[str, BaseDistribution]]:
        """The recipe of given parameters, and what they were drawn from. A space that has changed
        since answers what it no longer has with a draw that is always the same."""
        choose = _Choose(_by_chance(np.random.default_rng(0)), params)
        return self._space.define(choose), choose.distributions

    # -- asking --------------------------------------------------------------------------------

    def ask(
        self, number: int, backbones: tuple[str, ...], late: bool
    ) -> tuple[dict[str, Any], Recipe, str]:
        """Parameters, recipe and source of trial `number`, on one of these backbones; `late`: the
        search is nearing its end.

        A given trial number and history always give the same answer.
        """
        if self._changes:
            change = self._changes[0]
            recipe = self._known(change["params"])[0]
            return dict(change["params"]), replace(recipe, seed=change["seed"]), "ablate"
        rng = np.random.default_rng(derive(self._seed, "ask", number))
        for params in self._first:
            if params["backbone"] in backbones:
                return self._make(_by_chance(rng), params, "first")
        if late and rng.random() < SEED_SHARE and (again := self._another_seed(backbones)):
            return again
        best = self._best(COMPARED, NEIGHBOUR_OF)
        study = cache(lambda: self._study(int(rng.integers(2**31))))
        for _ in range(TRIES):
            proposal = self._propose(rng, backbones, best, study)
            if not self._near_copy(proposal[0]):
                break
        return proposal

    def _propose(
        self,
        rng: np.random.Generator,
        backbones: tuple[str, ...],
        best: Sequence[Observation],
        study: Callable[[], optuna.Study],
    ) -> tuple[dict[str, Any], Recipe, str]:
        fixed: dict[str, Any] = {}
        if not self._backbones <= set(backbones):
            # Too little time for the others; all else is asked for as usual.
            fixed["backbone"] = backbones[int(rng.integers(len(backbones)))]
        u = rng.random()
        if u < RANDOM_SHARE or not (best or self._priors):
            return self._make(_by_chance(rng), fixed, "random")
        if u < RANDOM_SHARE + NEIGHBOUR_SHARE and best:
            params = best[int(rng.integers(len(best)))].params
            if fixed and params["backbone"] in backbones:
                fixed["backbone"] = params["backbone"]
            return self._make(_around(params, rng), fixed, "neighbour")
        return self._make(_by_optuna(study().ask()), fixed, "tpe")

    def _make(
        self, draw: Draw, fixed: Mapping[str, Any], source: str
    ) -> tuple[dict[str, Any], Recipe, str]:
        choose = _Choose(draw, fixed)
        recipe = self._space.define(choose)
        return choose.params, recipe, source

    def _another_seed(
        self, backbones: tuple[str, ...]
    ) -> tuple[dict[str, Any], Recipe, str] | None:
        """The best finished recipe of which few seeds were tried, with the next seed: models that
        differ by nothing else still make different errors, and ensembles gain from it."""
        for seen in self._first_of(self._whole, NEIGHBOUR_OF):
            like = self._like[_words(seen.params)]
            seeds = [o.recipe["seed"] for o in like if o.params == seen.params]
            if seen.params["backbone"] in backbones and len(seeds) < SEEDS:
                recipe = self._known(seen.params)[0]
                return dict(seen.params), replace(recipe, seed=max(seeds) + 1), "seed"
        return None

    def _near_copy(self, params: Mapping[str, Any]) -> bool:
        """Whether a recipe all but like this was tried: it would teach nothing, and an ensemble
        gains nothing from it."""
        return any(
            seen.params.keys() == params.keys()
            and all(
                abs(_share(d, params[name]) - _share(d, seen.params[name])) < COPY
                if isinstance(d, FloatDistribution)
                else params[name] == seen.params[name]
                for name, d in seen.distributions.items()
            )
            for seen in self._like.get(_words(params), ())
        )

    def _level(self, enough: int) -> Rung | None:
        """The deepest rung that enough trials have reached."""
        return max((rung for rung in self._rungs if self._at[rung] >= enough), default=None)

    def _best(self, enough: int, count: int) -> list[Observation]:
        """The best `count` trials at the level that counts."""
        level = self._level(enough)
        return [] if level is None else self._first_of(level, count)

    def _first_of(self, rung: Rung, count: int) -> list[Observation]:
        return [self._seen[trial] for _, trial in self._ranking[rung][:count]]

    def _study(self, seed: int) -> optuna.Study:
        """A study of what is known: univariate TPE without the constant liar."""
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=MODELLED, multivariate=False, constant_liar=False
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        level = self._level(MODELLED)
        best = self._best(MODELLED, SHOWN // 3)
        ids = {id(o) for o in best}
        others = (o for o in reversed(self._seen.values()) if id(o) not in ids)
        newest = list(islice(others, SHOWN - len(best)))
        told = (self._told(o, level) for o in best + newest)
        study.add_trials([*self._told_priors(level), *(t for t in told if t)])
        return study

    def _told_priors(self, level: Rung | None) -> list[FrozenTrial]:
        """Trials of earlier runs, fewer the more this one has of its own.

        Their scores cannot be compared with this run's, but their ranks can: one that beat a share
        r of its run counts as good as what beats a share r of the own trials.
        """
        count = min(len(self._priors), max(0, PRIORS - len(self._seen) // 3))
        if not count:
            return []
        own = sorted(o.values[level] for o in self._seen.values() if level in o.values)
        by_rank = sorted(self._priors, key=lambda known: known[1].rank)
        chosen = [by_rank[i * len(by_rank) // count] for i in range(count)]
        return [
            create_trial(
                params=dict(prior.params), distributions=distributions,
                value=float(np.quantile(own, prior.rank)) if len(own) >= COMPARED else prior.rank,
            )
            for distributions, prior in chosen
        ]  # fmt: skip

    def _told(self, seen: Observation, level: Rung | None) -> FrozenTrial | None:
        """A trial as Optuna is told of it; None: nothing is known yet."""
        tell = partial(
            create_trial, params=dict(seen.params), distributions=dict(seen.distributions)
        )
        if seen.diverged:  # Optuna ranks a pruned trial without a value below all others
            return tell(state=TrialState.PRUNED)
        if level in seen.values:
            return tell(value=seen.values[level])
        if seen.deepest is None:
            return None
        step = seen.deepest.step(self._epochs)
        return tell(state=TrialState.PRUNED, intermediate_values={step: seen.values[seen.deepest]})
