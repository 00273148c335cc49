"""Optuna ask/tell behind Ray's Searcher.

Optuna's study lives in memory and is rebuilt from the journal: the sampler hears every event, live
and on replay. It is reseeded for each ask from (run seed, trial number), so a resumed run asks as
an unbroken one would.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search import trials as states
from search.journal import Event
from search.policy.rungs import Rung
from spaces.recipe import Recipe
from spaces.seeds import derive
from spaces.space import Space

if TYPE_CHECKING:
    from search.director import Director

# Shares of the trials after the first recipes; the rest is TPE's.
RANDOM_SHARE = 0.2  # keeps the others from closing in on an early favourite
NEIGHBOUR_SHARE = 0.4  # one of the best members with some parameters drawn anew
NEIGHBOUR_OF = 3  # best members that are varied
REDRAWN = 0.25  # chance of each of their parameters to be drawn anew
STARTUP = 8  # told trials before TPE's model replaces random draws


class _OptunaChoose:
    """A space's questions, answered by an Optuna trial."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def pick(self, name: str, options: Sequence[Any], default: Any) -> Any:
        return self._trial.suggest_categorical(name, list(options))

    def real(self, name: str, low: float, high: float, default: float, log: bool = False) -> float:
        return self._trial.suggest_float(name, low, high, log=log)


class OptunaSampler:
    """Known-good recipes first, then univariate TPE, neighbours of the best, and random draws.

    Many dimensions with few trials: independent draws are seldom good in all of them, while a
    neighbour keeps most of what made a member good (the idea of PriorBand, Mallik et al. 2023).
    Univariate without the constant liar: in a simulation on LCBench curves with eight workers that
    ended with half the regret of Optuna's multivariate default (docs/decisions.md).
    """

    def __init__(self, space: Space, seed: int, epochs: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._seed, self._epochs = space, seed, epochs
        self._study = optuna.create_study(direction="maximize")
        self._trials: dict[int, optuna.Trial] = {}
        self._told: list[tuple[float, int]] = []  # (score, number) of members
        self._first = [space.fixed(values)[1] for values in space.first]

    def ask(self, number: int, backbones: tuple[str, ...]) -> tuple[dict[str, Any], Recipe, str]:
        """Parameters, recipe and source of trial `number`, on one of these backbones.

        A given trial number and history always give the same answer.
        """
        rng = np.random.default_rng(derive(self._seed, "ask", number))
        usable = [p for p in self._first if p["backbone"] in backbones]
        fixed: dict[str, Any] = {}
        if number < len(usable):
            source, fixed = "first", usable[number]
        else:
            draw = rng.random()
            if draw < RANDOM_SHARE:
                source = "random"
            elif draw < RANDOM_SHARE + NEIGHBOUR_SHARE and self._told:
                source, fixed = "neighbour", self._neighbour(rng)
            else:
                source = "sampler"
            known = {str(p["backbone"]) for p in self._first}
            if not known <= set(backbones) and fixed.get("backbone") not in backbones:
                # Too little time for the others: all but the backbone is drawn as usual.
                fixed = {**fixed, "backbone": backbones[int(rng.integers(len(backbones)))]}
        seed = int(rng.integers(2**31))
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if source in ("random", "neighbour")
            else optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=False
            )
        )
        trial, recipe = self._ask(fixed)
        self._trials[number] = trial
        return trial.params, recipe, source

    def _neighbour(self, rng: np.random.Generator) -> dict[str, Any]:
        """Most of the parameters of one of the best members; the others are to be drawn."""
        best = sorted(self._told, key=lambda told: (-told[0], told[1]))[:NEIGHBOUR_OF]
        params = self._trials[best[int(rng.integers(len(best)))][1]].params
        return {name: value for name, value in params.items() if rng.random() >= REDRAWN}

    def _ask(self, fixed: dict[str, Any]) -> tuple[optuna.Trial, Recipe]:
        if fixed:
            self._study.enqueue_trial(fixed)
        trial = self._study.ask()
        return trial, self._space.define(_OptunaChoose(trial))

    def apply(self, event: Event) -> None:
        if event.kind == "ask":
            if event.trial not in self._trials:  # on replay: a live ask has made it already
                self._trials[event.trial] = self._ask(event.data["params"])[0]
        elif event.kind == "decision":
            rung = Rung(*map(int, event.data["rung"].split("+")))
            step = rung.folds * self._epochs + rung.epoch
            self._trials[event.trial].report(event.data["value"], step)
        elif event.kind == "end":
            self._tell(event.trial, event.data)

    def _tell(self, number: int, data: dict[str, Any]) -> None:
        trial, state = self._trials[number], data["state"]
        if state == states.FINISHED:
            self._study.tell(trial, data["score"])
            self._told.append((data["score"], number))
        elif state in (states.PRUNED, states.DIVERGED):
            # A diverged recipe has no value: Optuna ranks it below all pruned ones.
            self._study.tell(trial, state=TrialState.PRUNED)
        else:  # out of memory, failed, out of time: says nothing about the recipe's worth
            self._study.tell(trial, state=TrialState.FAIL)


class DirectorSearcher(Searcher):
    """Ray Tune's Searcher interface over the director."""

    def __init__(self, director: "Director", workers: int) -> None:
        super().__init__()
        self._director, self._workers = director, workers
        self.numbers: dict[str, int] = {}  # Ray's trial id -> our trial number

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next free worker's task. Asked as late as possible, when a worker is free, so that
        the sampler knows all that can be known and a resumed run asks at the same moments."""
        if self._director.running() >= self._workers:
            return None
        config = self._director.next_config()
        if config is None:
            # Trials in hand may yet be lost and come back; only then is the search over.
            return None if self._director.running() else Searcher.FINISHED
        self.numbers[trial_id] = config["trial"]
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the scheduler has told the director already."""

    # The journal is the truth: what Ray pickles and saves of this object is empty.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        return None
