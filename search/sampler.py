"""The sampler: which recipe to try next. Optuna's TPE, neighbours of the best, and chance.

It hears every event, live and on replay. Optuna's study is made anew for each ask from what was
heard, and every random choice from (run seed, trial number), so that a resumed run asks as an
unbroken one would.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
RANDOM_SHARE = 0.2  # keeps the others from closing in on an early favourite
NEIGHBOUR_SHARE = 0.4  # one of the best with some parameters drawn anew
NEIGHBOUR_OF = 3  # best trials that are varied
REDRAWN = 0.25  # chance of each of their parameters to be drawn anew
SEED_SHARE = 0.2  # of late trials: another seed of one of the best finished recipes
SEEDS = 3  # of one recipe
STARTUP = 8  # trials at a rung before it is what TPE and neighbours look at
SHOWN = 150  # trials that TPE is shown: the best and the newest; more cost time and tell little

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
        assert isinstance(distribution, FloatDistribution)
        low, high = distribution.low, distribution.high
        if distribution.log:
            return float(np.clip(math.exp(rng.uniform(math.log(low), math.log(high))), low, high))
        return float(rng.uniform(low, high))

    return draw


def _by_optuna(trial: optuna.Trial) -> Draw:
    def draw(name: str, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return trial.suggest_categorical(name, distribution.choices)
        assert isinstance(distribution, FloatDistribution)
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)

    return draw


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
        self._first = list(first)
        self._priors = [(self._known(p.params)[1], p) for p in priors]
        self._seen: dict[int, Observation] = {}
        self._at: dict[Rung, int] = dict.fromkeys(self._rungs, 0)  # arrivals

    # -- hearing -------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "ask":
            _, distributions = self._known(data["params"])
            self._seen[event.trial] = Observation(
                params=data["params"], recipe=data["recipe"], distributions=distributions
            )
        elif event.kind == "rung":
            self._record(event.trial, Rung.parse(data["rung"]), data["value"])
        elif event.kind == "end" and data["state"] == states.FINISHED:
            self._record(event.trial, self._whole, data["score"])
        elif event.kind == "end" and data["state"] == states.DIVERGED:
            self._seen[event.trial].diverged = True

    def _record(self, trial: int, rung: Rung, value: float) -> None:
        if math.isfinite(value):
            self._seen[trial].values[rung] = value
            self._at[rung] += 1

    def _known(self, params: Mapping[str, Any]) -> tuple[Recipe, dict[str, BaseDistribution]]:
        """The recipe of given parameters, and what they were drawn from. A space that has changed
        since answers what it no longer has with its defaults."""
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
        rng = np.random.default_rng(derive(self._seed, "ask", number))
        usable = [params for params in self._first if params["backbone"] in backbones]
        chance = _by_chance(rng)
        if number < len(usable):
            return self._make(chance, usable[number], "first")
        if late and rng.random() < SEED_SHARE and (again := self._another_seed(backbones)):
            return again
        u, best = rng.random(), self._best()
        fixed: dict[str, Any] = {}
        if u >= RANDOM_SHARE and best:
            if u < RANDOM_SHARE + NEIGHBOUR_SHARE:
                params = best[int(rng.integers(min(len(best), NEIGHBOUR_OF)))].params
                fixed = {n: v for n, v in params.items() if rng.random() >= REDRAWN}
                return self._make(chance, self._on(backbones, fixed, rng), "neighbour")
            trial = self._study(int(rng.integers(2**31))).ask()
            return self._make(_by_optuna(trial), self._on(backbones, fixed, rng), "sampler")
        return self._make(chance, self._on(backbones, fixed, rng), "random")

    def _make(
        self, draw: Draw, fixed: Mapping[str, Any], source: str
    ) -> tuple[dict[str, Any], Recipe, str]:
        choose = _Choose(draw, fixed)
        recipe = self._space.define(choose)
        return choose.params, recipe, source

    def _another_seed(
        self, backbones: tuple[str, ...]
    ) -> tuple[dict[str, Any], Recipe, str] | None:
        """The best finished recipe, of which few seeds were tried, with the next seed: it costs no
        luck, and ensembles gain from it."""
        finished = [o for o in self._seen.values() if self._whole in o.values]
        finished.sort(key=lambda o: -o.values[self._whole])
        for seen in finished[:NEIGHBOUR_OF]:
            seeds = [o.recipe["seed"] for o in self._seen.values() if o.params == seen.params]
            if seen.params["backbone"] in backbones and len(seeds) < SEEDS:
                recipe = self._known(seen.params)[0]
                return dict(seen.params), replace(recipe, seed=max(seeds) + 1), "seed"
        return None

    def _on(
        self, backbones: tuple[str, ...], fixed: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """With too little time for some backbones, one of the others is drawn; all else is asked
        for as usual."""
        if self._backbones <= set(backbones) or fixed.get("backbone") in backbones:
            return fixed
        return {**fixed, "backbone": backbones[int(rng.integers(len(backbones)))]}

    def _level(self) -> Rung | None:
        """The deepest rung that enough trials have reached."""
        enough = [rung for rung in self._rungs if self._at[rung] >= STARTUP]
        return enough[-1] if enough else None

    def _best(self) -> list[Observation]:
        """Trials that reached the level that counts, best first."""
        level = self._level()
        there = [(-o.values[level], n, o) for n, o in self._seen.items() if level in o.values]
        return [o for _, _, o in sorted(there, key=lambda item: item[:2])]

    def _study(self, seed: int) -> optuna.Study:
        """A study of what is known: univariate TPE without the constant liar."""
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=False
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        level = self._level()
        best = self._best()[: SHOWN // 3]
        ids = {id(o) for o in best}
        newest = [o for o in reversed(self._seen.values()) if id(o) not in ids]
        study.add_trials(
            [t for o in best + newest[: SHOWN - len(best)] if (t := self._told(o, level))]
        )
        return study

    def _told(self, seen: Observation, level: Rung | None) -> FrozenTrial | None:
        """A trial as Optuna is told of it; None: nothing is known yet."""
        about = {"params": dict(seen.params), "distributions": dict(seen.distributions)}
        if level in seen.values:
            return create_trial(**about, value=seen.values[level])
        if seen.diverged:  # Optuna ranks a pruned trial without a value below all others
            return create_trial(**about, state=TrialState.PRUNED)
        if seen.deepest is None:
            return None
        step = seen.deepest.step(self._epochs)
        return create_trial(
            **about, state=TrialState.PRUNED,
            intermediate_values={step: seen.values[seen.deepest]},
        )  # fmt: skip
