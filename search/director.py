"""The director: decides what each worker does next, and journals why. Knows neither Ray nor Optuna.

Workers hold leases: some folds of a trial, from where it stands. They report plain dictionaries;
everything that is decided goes to the journal first and changes the state (trials, rungs, costs,
sampler) by being heard from there, so a replay gives the same state.
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
from search.policy.costs import Costs
from search.policy.failures import ALIKE, LOST_LIMIT, alike, not_learning
from search.policy.micro_batches import MicroBatches
from search.policy.noise import epoch_noise, fold_noise
from search.policy.outlook import Outlook
from search.policy.rungs import CUT, GOES_ON, Rung, Rungs, Verdict
from search.run_folder import RunFolder, write_json
from search.trials import Trial, Trials
from spaces.recipe import Recipe

LATE = 3 / 4  # of the trials or the time: then other seeds of the best are tried as well
SHARED_FOLD = 10.0  # seconds: a shorter fold is not worth another worker's start
IDLE = "nothing new is started, and a worker is free"
DISK_FLOOR = 256 * 2**20  # bytes: with less free space nothing is started


Lease = tuple[Trial, list[int]]  # a trial, and the folds of it that a worker shall train


class Sampler(Protocol):
    """Proposes recipes; hears all events."""

    def ask(
        self, number: int, backbones: tuple[str, ...], late: bool
    ) -> tuple[dict[str, Any], Recipe, str]: ...
    def apply(self, event: Event) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When the run must be over; `deadline` in seconds of `now`, None: never."""

    deadline: float | None = None
    now: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Seconds until trials must have ended, so that the finish still fits."""
        return float("inf") if self.deadline is None else self.deadline - FINISH - self.now()


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
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """The journal has this session's first event already. `finalise` assembles a whole trial's
        OOF and returns what its "end" event adds; `tell` speaks to the user."""
        self.run, self.plan, self.clock = run, plan, clock
        self.trials, self.rungs = Trials(), Rungs(plan.rungs, plan.keep)
        self.fold_order = fold_order
        self.interrupted = False  # set by Ctrl-C: start nothing, finish what is cheap
        self.disk_full = False  # nothing is started until there is room
        self._disk_floor = DISK_FLOOR
        self._costs, self._micro_batches = Costs(plan.gpus_per_trial > 0), MicroBatches()
        self.outlook = Outlook(self.trials, self.rungs, self._costs, plan, fold_order)
        self._fold_scores: dict[int, list[float]] = {}  # of trials with at least two folds
        self._ended = 0  # trials that ended in this session
        self._wrong: list[Trial] = []  # those of them that failed or were too big
        self._journal, self._sampler = journal, sampler
        self._finalise, self._tell = finalise, tell
        journal.listen(self._hear)
        self._recover()

    # -- state ---------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        self.trials.apply(event)
        self._sampler.apply(event)
        data = event.data
        if event.kind == "session":  # what failed before this session may be mended
            self._ended, self._wrong = 0, []
        elif event.kind == "rung":
            self.rungs.arrive(event.trial, Rung.parse(data["rung"]), data["value"], data["noise"])
        elif event.kind == "decision":
            self.rungs.hear(event.trial, Rung.parse(data["rung"]), data["verdict"])
        elif event.kind == "end":
            self.rungs.forget(event.trial)
            self._ended += 1
            if data["state"] in (states.FAILED, states.TOO_BIG):
                self._wrong.append(self.trials.all[event.trial])
        elif event.kind == "epochs":
            trial = self.trials.all[event.trial]
            what = trial.model, trial.image_size
            for point in data["points"]:
                self._costs.hear(*what, point["seconds"], 1, trial.machine)
                self._micro_batches.hear(*what, point["batch"], point["micro_batch"])
        elif event.kind == "fold":
            trial = self.trials.all[event.trial]
            self._costs.hear(trial.model, trial.image_size, data["seconds"], 0, trial.machine)
            scores = self.outlook.scores_in_order(trial)
            if len(scores) > 1:
                self._fold_scores[event.trial] = scores
                self.rungs.fold_noise = fold_noise(list(self._fold_scores.values()))

    def _recover(self) -> None:
        """Go on where a dead driver was, between any two of its events."""
        events = [
            e for e in self._journal.events if e.kind not in ("session", "extend", "ablate", "end")
        ]
        if len(events) > 1 and events[-1].kind == "decision":
            before, last = events[-2:]
            trial, verdict = self.trials.all[last.trial], last.data["verdict"]
            if verdict == CUT and trial.state == states.RUNNING:
                self._end(trial, states.PRUNED, last.data["reason"])
            rung = Rung.parse(last.data["rung"])
            wanted = self._wanted(trial, rung)
            if wanted and self.rungs.waits_at(trial.number):
                self._decide(self.rungs.extra_pass(trial.number, wanted))
            # Who was taken up has not just arrived: nobody else is judged then.
            arrived = before.kind == "rung" or (wanted and before.kind == "decision")
            if verdict != GOES_ON or (arrived and before.trial == last.trial):
                self._cut_hopeless(rung)
        for trial in self.trials.open():
            self._advance(trial)

    def running(self) -> int:
        """Workers that have something in their hands."""
        return sum(len(trial.leases) for trial in self.trials.running())

    def over(self) -> bool:
        """Whether nothing is under way or kept waiting by a full disk."""
        return not self.running() and (self.closed() or not self.disk_full)

    def closed(self) -> bool:
        """Whether nothing is started any more: out of time, interrupted, or broken."""
        return self.interrupted or self.clock.left() <= 0 or self.broken() is not None

    def broken(self) -> str | None:
        """The first one's reason, when this session's failures are a bug rather than bad luck:
        three alike, or nothing but failures from the start."""
        if not self._wrong:
            return None
        if len(self._wrong) == self._ended and self._ended >= min(ALIKE, self.plan.trials or ALIKE):
            return self._wrong[0].reason
        return alike([trial.reason for trial in self._wrong if trial.state == states.FAILED])

    def anything_left(self) -> bool:
        """Whether a free worker might get something to do."""
        return self.clock.left() > 0 and (self._more_trials() or bool(self.trials.open()))

    def _more_trials(self) -> bool:
        return self.plan.trials is None or len(self.trials.all) < self.plan.trials

    # -- asking --------------------------------------------------------------------------------

    def next_config(self) -> dict[str, Any] | None:
        """What the next free worker should do; None when there is nothing to start now."""
        if self.closed() or not self._disk_has_room():
            return None
        for choose in (self._left_behind, self._passed, self._shared, self._new, self._filler):
            lease = choose()
            if lease is not None:
                return self._lease(*lease)
        return None

    def _left_behind(self) -> Lease | None:
        """A trial that may go on but is in nobody's hands: its worker or driver died, or its
        workers had nothing left to do for it."""
        for trial in self.trials.open():
            if not trial.leases and self.rungs.waits_at(trial.number) is None:
                return trial, self.outlook.free_folds(trial)
        return None

    def _passed(self) -> Lease | None:
        """A trial that waited and now has a pass."""
        while (verdict := self.rungs.next_pass()) is not None:
            if not self.outlook.fits(self.trials.all[verdict.trial], self.clock.left()):
                return None
            if lease := self._take_up(verdict):
                return lease
        return None

    def _take_up(self, verdict: Verdict) -> Lease | None:
        """A trial that waited goes on; None when that needs no worker, since others did or hold
        what is left of it."""
        self._decide(verdict)
        trial = self.trials.all[verdict.trial]
        folds = self.outlook.free_folds(trial) if self._advance(trial) else []
        return (trial, folds) if folds else None

    def _shared(self) -> Lease | None:
        """A fold that a running trial needs before its next rung, while its worker is at another:
        what leads becomes whole sooner."""
        for trial in self._best_running():
            if SHARED_FOLD <= self.outlook.fold_seconds(trial) <= self.clock.left():
                folds = self.outlook.shareable(trial, self.outlook.wanted_folds(trial))
                if folds:
                    return trial, folds[:1]
        return None

    def _new(self) -> Lease | None:
        """A new recipe, as long as one can still become whole beside the missing members."""
        if not self._more_trials():
            return None
        backbones = self._affordable()
        if not backbones:
            return None
        number = len(self.trials.all)
        params, recipe, source = self._sampler.ask(number, backbones, self._late(number))
        self._journal.append("ask", number, params=params, recipe=recipe.to_dict(), source=source)
        return self.trials.all[number], list(self.fold_order)

    def _late(self, number: int) -> bool:
        """Whether the last quarter of the search has begun."""
        if self.plan.trials is not None:
            return number >= LATE * self.plan.trials
        return self.clock.left() < (1 - LATE) * 3600 * (self.plan.hours or 0.0)

    def _affordable(self) -> tuple[str, ...]:
        """Backbones of which a trial can be whole in the time left, by the cost seen so far."""
        if self.clock.deadline is None:
            return self.plan.backbones
        left = self.clock.left() - self.outlook.reserve(self.clock.left())
        return tuple(
            b
            for b in self.plan.backbones
            if self.outlook.new_trial_seconds(b, self.plan.side(b)) <= left
        )

    def _filler(self) -> Lease | None:
        """For a worker that nobody needs any more: the best that wait become members, and the
        folds of what runs are spread."""
        if self.plan.trials is None or self._engaged() < self.plan.members:
            for _, number in self.rungs.waiting():
                fits = self.outlook.fits(self.trials.all[number], self.clock.left())
                if fits and (lease := self._take_up(self.rungs.extra_pass(number, IDLE))):
                    return lease
        for trial in self._best_running():
            folds = self.outlook.shareable(trial, self.fold_order)
            if folds and self.outlook.fold_seconds(trial) <= self.clock.left():
                return trial, folds[:1]
        return None

    def _engaged(self) -> int:
        """Trials that are members or on their way."""
        return len(self.trials.members()) + len(self.trials.running())

    def _best_running(self) -> list[Trial]:
        """Running trials with a fold done, the most advanced and best first."""
        running = [t for t in self.trials.running() if self.outlook.scores_in_order(t)]
        return sorted(running, key=lambda t: (-len(t.folds), -t.score(), t.number))

    def _lease(self, trial: Trial, folds: list[int]) -> dict[str, Any]:
        attempt = trial.attempt + 1
        self._journal.append("attempt", trial.number, attempt, folds=folds)
        return {
            "trial": trial.number,
            "attempt": attempt,
            "recipe": trial.recipe,
            "folds": folds,
            "first_fold": self.fold_order[0],
            "rung_epochs": [r.epoch for r in self.plan.rungs if r.epoch],
            "micro_batch": self._micro_batches.limit(trial.model, trial.image_size),
        }

    def _disk_has_room(self) -> bool:
        full = shutil.disk_usage(self.run.root).free < self._disk_floor
        if full != self.disk_full:
            self._tell(
                f"the disk of {self.run.root} is full: nothing is started until "
                f"{self._disk_floor // 2**20} MiB are free"
                if full
                else "the disk has room again: going on"
            )
        self.disk_full = full
        if not full:
            self._disk_floor = DISK_FLOOR
        return not full

    # -- hearing -------------------------------------------------------------------------------

    def on_result(self, result: Mapping[str, Any]) -> bool:
        """Take in a worker's report; whether its lease goes on.

        A report has "trial", "attempt", "host", "machine", "points" (epochs), and possibly "fold",
        "end", "lost" (some process of several died) or "full" (the disk).
        """
        trial = self.trials.all[result["trial"]]
        number, attempt = trial.number, result["attempt"]
        if attempt not in trial.leases:  # a late writer: its folds are in other hands
            if trial.state != states.RUNNING:
                shutil.rmtree(self.run.work(number, attempt), ignore_errors=True)
            return False
        if result["points"]:
            where = {name: result.get(name, "") for name in ("host", "machine")}
            self._journal.append("epochs", number, attempt, points=result["points"], **where)
        fold = result.get("fold")
        if fold is not None:
            self.run.adopt(number, attempt, fold["fold"])
            self._journal.append("fold", number, attempt, **fold)
            self.run.drop_epochs(number, attempt, fold["fold"])
        if "lost" in result:
            self.on_lost(number, attempt, result["lost"])
            return False
        if "full" in result:
            self._journal.append("pause", number, attempt, reason=result["full"])
            self._tell(f"trial {number}: {result['full']}")
            self._disk_floor = shutil.disk_usage(self.run.root).free + DISK_FLOOR
            return False
        end = result.get("end")
        if end is not None:
            self._end(trial, end["state"], end["reason"])
            return False
        if not self._advance(trial):
            self._release(trial, attempt)
            return False
        rest = trial.leases[attempt]
        if fold is not None and (not rest or rest[0] not in self._allowed(trial)):
            self._release(trial, attempt)  # others hold what is left before the next rung
            return False
        return self._may_go_on(trial, attempt)

    def _allowed(self, trial: Trial) -> list[int]:
        """Folds that may be trained now: those before the next rung, or any when nothing new is
        to be started and workers would be idle."""
        return self.outlook.wanted_folds(trial) if self._more_trials() else self.fold_order

    def _release(self, trial: Trial, attempt: int) -> None:
        if attempt in trial.leases:  # not when the trial has ended
            self._journal.append("pause", trial.number, attempt)

    def _advance(self, trial: Trial) -> bool:
        """Judge the trial at every rung that it has reached; whether it may go on."""
        number = trial.number
        for rung in self.outlook.rungs_of(trial):
            if self.rungs.passed(number, rung):
                continue
            if not self.rungs.arrived(number, rung):
                value = self._value(trial, rung)
                if value is None:
                    return True
                noise = epoch_noise(self._first_curve(trial, rung.epoch)) if rung.epoch else 0.0
                self._journal.append("rung", number, rung=str(rung), value=value, noise=noise)
            if not self.rungs.judged(number, rung):
                reason = not_learning(self._first_points(trial))
                if reason:
                    self._end(trial, states.DIVERGED, reason)
                    return False
                wanted = self._wanted(trial, rung)
                self._decide(self.rungs.judge(number, rung, self._spare() and not wanted))
                if wanted and self.rungs.waits_at(number):
                    self._decide(self.rungs.extra_pass(number, wanted))
                self._cut_hopeless(rung)
                if self.rungs.waits_at(number) and self._is_next(number):
                    self._decide(self.rungs.extra_pass(number, IDLE))
            if not self.rungs.passed(number, rung):
                return False
        if len(trial.folds) == len(self.fold_order):
            self._finish(trial)
            return False
        return True

    def _wanted(self, trial: Trial, rung: Rung) -> str:
        """Why a trial goes on however it compares; empty: for no such reason."""
        if trial.source == "ablate":
            return "one change is compared over all folds"
        # Idle workers may have begun with folds beyond a rung: stopping would waste them.
        beyond = self.fold_order[max(1, rung.folds) :]
        others = len(trial.leases) > 1 and not trial.held().isdisjoint(beyond)
        begun = others or any(fold in trial.folds for fold in beyond)
        return "its other folds are under way" if begun else ""

    def _is_next(self, number: int) -> bool:
        """Whether a free worker would take this waiting trial up at once."""
        nothing_new = not self._more_trials() or not self._affordable()
        wanted = self.plan.trials is None or self._engaged() <= self.plan.members
        return nothing_new and wanted and self.rungs.waiting()[0][1] == number

    def _cut_hopeless(self, rung: Rung) -> None:
        while self._spare() and (worst := self.rungs.hopeless(rung)) is not None:
            self._decide(worst)

    def _spare(self) -> bool:
        """Whether a trial may be cut: enough are left to become the members that are wanted."""
        return len(self.trials.members()) + len(self.trials.open()) > self.plan.members

    def _value(self, trial: Trial, rung: Rung) -> float | None:
        """What a rung compares; None: the trial has not reached it."""
        if rung.folds:
            scores = self.outlook.scores_in_order(trial)
            return fmean(scores[: rung.folds]) if len(scores) >= rung.folds else None
        point = trial.curve.get((self.fold_order[0], rung.epoch))
        return point["score"] if point else None

    def _first_points(self, trial: Trial) -> list[dict[str, Any]]:
        """The first fold's epochs, in order."""
        return [trial.curve[key] for key in sorted(trial.curve) if key[0] == self.fold_order[0]]

    def _first_curve(self, trial: Trial, epoch: int) -> list[float]:
        return [p["score"] for p in self._first_points(trial) if p["epoch"] <= epoch]

    def _decide(self, verdict: Verdict) -> None:
        trial = self.trials.all[verdict.trial]
        self._journal.append(
            "decision", trial.number, trial.attempt, rung=str(verdict.rung),
            verdict=verdict.verdict, cut=verdict.cut, peers=verdict.peers, reason=verdict.reason,
        )  # fmt: skip
        if verdict.verdict == CUT:
            self._end(trial, states.PRUNED, verdict.reason)

    def _may_go_on(self, trial: Trial, attempt: int) -> bool:
        """Whether the lease goes on. Out of time it ends the trial as "stopped"; after Ctrl-C it
        leaves it for a resumed run, unless its last fold is under way."""
        needed = self.outlook.wall_left(trial)
        if self.interrupted:
            # Cheap enough to finish after Ctrl-C: the last fold is under way. The others stay as
            # they are, for a resumed run to go on with.
            if len(trial.folds) < len(self.fold_order) - 1:
                self._release(trial, attempt)
                return False
        elif needed > self.clock.left():
            self._end(trial, states.STOPPED, f"out of time: {needed:.0f} s more were needed")
            return False
        return True

    def recall(self, number: int, attempt: int) -> None:
        """No worker has begun with this lease, and none shall."""
        trial = self.trials.all.get(number)
        if trial is not None:
            self._release(trial, attempt)

    def on_lost(self, number: int, attempt: int, error: str) -> None:
        """A worker died with this lease in its hands: the trial goes on ahead of new ones."""
        trial = self.trials.all.get(number)
        if trial is None or attempt not in trial.leases:
            return
        self._journal.append("lost", number, attempt, error=error)
        if trial.losses >= LOST_LIMIT:
            self._end(
                trial, states.FAILED,
                f"its worker died {trial.losses} times in a row without an epoch: {error}",
            )  # fmt: skip

    # -- ends ----------------------------------------------------------------------------------

    def close(self) -> None:
        """The search is over: who still waits, waits in vain. Not after Ctrl-C, when it may be
        resumed."""
        for rung, number in self.rungs.waiting():
            self._end(
                self.trials.all[number], states.PRUNED,
                f"waited at {rung.words} for a pass until the end of the search",
            )  # fmt: skip
        for trial in self.trials.open():  # a worker died when there was no time for another
            self._end(trial, states.STOPPED, "out of time")

    def _finish(self, trial: Trial) -> None:
        checkpoints = self.run.checkpoints(trial.number)
        facts = {"recipe": trial.recipe, "predict_ms": trial.predict_ms}
        write_json(checkpoints / "recipe.json", facts)
        extra = self._finalise(trial)
        self._end(trial, states.FINISHED, "all folds done", **extra)

    def _end(self, trial: Trial, state: str, reason: str, **extra: Any) -> None:
        self._journal.append(
            "end", trial.number, trial.attempt, state=state, reason=reason, **extra
        )
        for attempt in range(1, trial.attempt + 1):
            shutil.rmtree(self.run.work(trial.number, attempt), ignore_errors=True)
        if state != states.FINISHED:
            shutil.rmtree(self.run.oof(trial.number), ignore_errors=True)
            shutil.rmtree(self.run.checkpoints(trial.number), ignore_errors=True)
