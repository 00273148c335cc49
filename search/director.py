"""The director: decides what each trial does next, and journals why. Knows neither Ray nor Optuna.

Workers report plain dictionaries; everything that is decided goes to the journal first and changes
the state (trials, rungs, sampler) by being heard from there, so a replay gives the same state.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from search import trials as states
from search.journal import Event, Journal
from search.plan import FINISH, Plan
from search.policy.rungs import Rungs
from search.run_folder import RunFolder, write_json
from search.trials import Trial, Trials
from spaces.recipe import Recipe

BROKEN = 3  # first trials that all fail end the run
LOST_LIMIT = 3  # attempts of a trial whose worker died before the trial counts as failed


class Sampler(Protocol):
    """Proposes recipes; hears all events."""

    def ask(
        self, number: int, backbones: tuple[str, ...]
    ) -> tuple[dict[str, Any], Recipe, str]: ...
    def apply(self, event: Event) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When the run must be over; `deadline` in seconds of time.monotonic(), None: never."""

    deadline: float | None = None

    def left(self) -> float:
        """Seconds until trials must have ended, so that the finish still fits."""
        return float("inf") if self.deadline is None else self.deadline - FINISH - time.monotonic()


class Director:
    """One per run. Calls are not concurrent: Ray Tune's loop is one thread."""

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        journal: Journal,
        sampler: Sampler,
        *,
        fold_order: list[int],
        clock: Clock,
        finalise: Callable[[Trial], Mapping[str, Any]],
        on_member: Callable[[], None] = lambda: None,
    ) -> None:
        """`finalise` assembles a whole trial's OOF and returns what its "end" event adds."""
        self.run, self.plan, self.clock = run, plan, clock
        self.trials, self.rungs = Trials(), Rungs()
        self.fold_order = fold_order
        self.interrupted = False  # set by Ctrl-C: start nothing, finish what is cheap
        self._journal, self._sampler = journal, sampler
        self._finalise, self._on_member = finalise, on_member
        self._decided: dict[tuple[int, str], bool] = {}  # (trial, rung) -> go on
        self._waiting: list[int] = []  # trials to be taken up again, by number
        journal.listen(self._hear)
        self._recover()
        live = {trial.number for trial in self.trials.live()}
        self._ended_before = self.trials.all.keys() - live

    # -- state ---------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        self.trials.apply(event)
        self._sampler.apply(event)
        if event.kind == "decision":
            rung = event.data["rung"]
            self._decided[event.trial, rung] = event.data["go_on"]
            self.rungs.record(rung, event.trial, event.data["value"])

    def _recover(self) -> None:
        """Bring trials that a dead driver left open to their end or into the queue."""
        for trial in self.trials.live():
            if not self._passes(trial):
                self._end(trial, states.PRUNED, self._pruned_reason(trial.number))
            elif len(trial.folds) == self.plan_folds:
                self._finish(trial)
            else:
                self._waiting.append(trial.number)

    @property
    def plan_folds(self) -> int:
        return len(self.fold_order)

    def running(self) -> int:
        """Trials that are in a worker's hands."""
        return len(self.trials.live()) - len(self._waiting)

    def broken(self) -> bool:
        """Whether nothing but failures came of this session's trials: a bug, not bad luck."""
        ended = [
            t.state
            for t in self.trials.all.values()
            if t.state != states.RUNNING and t.number not in self._ended_before
        ]
        wrong = (states.FAILED, states.OUT_OF_MEMORY)
        enough = len(ended) >= BROKEN or len(self.trials.all) == self.plan.trials
        return enough and bool(ended) and all(state in wrong for state in ended)

    def anything_left(self) -> bool:
        """Whether a free worker would get something to do."""
        if self.clock.left() <= 0:
            return False
        more = self.plan.trials is None or len(self.trials.all) < self.plan.trials
        return bool(self._waiting) or more

    # -- asking --------------------------------------------------------------------------------

    def next_config(self) -> dict[str, Any] | None:
        """What the next free worker should do; None when nothing more is to be started."""
        if self.interrupted or self.clock.left() <= 0 or self.broken():
            return None
        if self._waiting:
            number = self._waiting.pop(0)
            return self._attempt(self.trials.all[number])
        number = len(self.trials.all)
        if self.plan.trials is not None and number >= self.plan.trials:
            return None
        backbones = self._affordable()
        if not backbones:
            return None
        params, recipe, source = self._sampler.ask(number, backbones)
        self._journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
        return self._attempt(self.trials.all[number])

    def _attempt(self, trial: Trial) -> dict[str, Any]:
        previous = trial.attempt
        self._journal.append("attempt", trial.number, previous + 1)
        return {
            "trial": trial.number,
            "attempt": previous + 1,
            "recipe": trial.recipe,
            "folds": [fold for fold in self.fold_order if fold not in trial.folds],
            "first_fold": self.fold_order[0],
            "rung_epochs": [r.epoch for r in self.plan.rungs if r.folds == 0 and r.epoch],
        }

    def _affordable(self) -> tuple[str, ...]:
        """Backbones of which a whole trial fits into the time left, by the cost seen so far."""
        left = self.clock.left()
        if left == float("inf"):
            return self.plan.backbones
        epochs = self.plan.epochs * self.plan_folds
        seen: dict[str, list[float]] = {}
        for trial in self.trials.all.values():
            seconds = trial.seconds_per_epoch()
            if seconds is not None:
                seen.setdefault(trial.backbone, []).append(seconds * epochs)
        # An unseen backbone may be tried while there is time to prune it.
        return (
            tuple(b for b in self.plan.backbones if b not in seen or min(seen[b]) < left)
            if seen
            else self.plan.backbones
        )

    # -- hearing -------------------------------------------------------------------------------

    def on_result(self, result: Mapping[str, Any]) -> bool:
        """Take in a worker's report; whether its trial goes on.

        A report has "trial", "attempt", "points" (epochs), and possibly "fold" or "end".
        """
        trial = self.trials.all[result["trial"]]
        if result["attempt"] != trial.attempt or trial.state != states.RUNNING:
            return False
        number, attempt = trial.number, trial.attempt
        if result["points"]:
            self._journal.append("epochs", number, attempt, points=result["points"])
        fold = result.get("fold")
        if fold is not None:
            self.run.adopt(number, attempt, fold["fold"])
            self._journal.append("fold", number, attempt, **fold)
        end = result.get("end")
        if end is not None:
            self._end(trial, end["state"], end["reason"])
            return False
        if not self._passes(trial):
            self._end(trial, states.PRUNED, self._pruned_reason(number))
            return False
        if len(trial.folds) == self.plan_folds:
            self._finish(trial)
            return False
        return self._may_go_on(trial)

    def _passes(self, trial: Trial) -> bool:
        """Judge the trial at every rung that it has reached; whether it passed them all."""
        scores = list(trial.fold_scores().values())  # in the order in which folds are visited
        for rung in self.plan.rungs:
            name = str(rung)
            if (trial.number, name) not in self._decided:
                if rung.folds:
                    value = fmean(scores[: rung.folds]) if len(scores) >= rung.folds else None
                else:
                    point = trial.curve.get((self.fold_order[0], rung.epoch))
                    value = point["score"] if point else None
                if value is None:
                    return True
                verdict = self.rungs.judge(rung, trial.number, value)
                self._journal.append("decision", trial.number, trial.attempt, **verdict.__dict__)
            if not self._decided[trial.number, name]:
                return False
        return True

    def _may_go_on(self, trial: Trial) -> bool:
        """Whether there is time for the rest of the trial; ends it as "stopped" if not."""
        per_epoch = trial.seconds_per_epoch() or 0.0
        done = len(trial.folds) * self.plan.epochs + sum(
            1 for fold, _ in trial.curve if fold not in trial.folds
        )
        needed = per_epoch * (self.plan.epochs * self.plan_folds - done)
        if self.interrupted:
            # Cheap enough to finish after Ctrl-C: the last fold is under way.
            if len(trial.folds) < self.plan_folds - 1:
                self._end(trial, states.STOPPED, "interrupted")
                return False
        elif needed > self.clock.left():
            self._end(trial, states.STOPPED, f"out of time: {needed:.0f} s more were needed")
            return False
        return True

    def on_lost(self, number: int, error: str) -> None:
        """A worker died with this trial in its hands: put it back, ahead of new ones."""
        trial = self.trials.all.get(number)
        if trial is None or trial.state != states.RUNNING or number in self._waiting:
            return
        self._journal.append("lost", number, trial.attempt, error=error)
        if trial.attempt >= LOST_LIMIT:
            self._end(trial, states.FAILED, f"its worker died {trial.attempt} times: {error}")
        else:
            self._waiting.append(number)

    # -- ends ----------------------------------------------------------------------------------

    def _pruned_reason(self, number: int) -> str:
        events = [e for e in self._journal.events if e.kind == "decision" and e.trial == number]
        return str(events[-1].data["reason"])

    def _finish(self, trial: Trial) -> None:
        checkpoints = self.run.checkpoints(trial.number)
        facts = {"recipe": trial.recipe, "predict_ms": trial.predict_ms}
        write_json(checkpoints / "recipe.json", facts)
        extra = self._finalise(trial)
        self._end(trial, states.FINISHED, "all folds done", **extra)
        self._on_member()

    def _end(self, trial: Trial, state: str, reason: str, **extra: Any) -> None:
        self._journal.append(
            "end", trial.number, trial.attempt, state=state, reason=reason, **extra
        )
        for attempt in range(1, trial.attempt + 1):
            shutil.rmtree(self.run.work(trial.number, attempt), ignore_errors=True)
        if state != states.FINISHED:
            shutil.rmtree(self.run.oof(trial.number), ignore_errors=True)
            shutil.rmtree(self.run.checkpoints(trial.number), ignore_errors=True)
