"""What a run's journal says of it at this moment: what runs, what is done, how long it takes."""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Self

from search.journal import Event
from search.plan import FINISH, Plan, extended
from search.policy.costs import Costs
from search.policy.outlook import Outlook
from search.policy.rungs import WAITS, Rungs
from search.run_folder import RunFolder, read_json
from search.trials import FINISHED, RUNNING, Trial, Trials
from spaces.errors import UserError

SETTLED = 3  # trials that must have told what one costs before the rest is estimated by them
SILENCE = 120.0  # seconds without news that are told
WAITING = "waiting"  # at a rung: an open trial in nobody's hands


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What one worker has in its hands."""

    trial: Trial
    fold: int  # its place in the order in which folds are visited, from 1
    epoch: int  # the newest that was reported; 0: none yet
    images_per_second: float | None  # None: not reported yet
    memory: int  # bytes at the peak; 0: not known
    host: str  # "": not known


class Watch:
    """Hears every event of a run from the first on; changes nothing."""

    def __init__(self, plan: Plan, fold_order: Sequence[int], trials: Trials | None = None) -> None:
        """`plan` as run.json has it: what extends it is heard. `trials`: those of somebody who
        hears each event before; None: its own."""
        self.plan, self.fold_order = plan, tuple(fold_order)
        self.trials, self._own = Trials() if trials is None else trials, trials is None
        self.waiting: set[int] = set()  # trials that wait at a rung
        self.last = 0.0  # seconds since 1970 of the newest event
        self._planned = plan
        self._places: dict[tuple[int, int], tuple[str, str]] = {}  # lease -> host, kind of machine
        self._costs = Costs(plan.gpus_per_trial > 0)
        self._extending: list[Event] = []  # what `extended` wants to know
        self._used = 0.0  # seconds of earlier sessions
        self._began: float | None = None  # when this session began,
        self._ahead = 0.0  # seconds after its process
        self._before = 0.0  # worker seconds reported before this session,
        self._since: float | None = None  # whose first lease was begun then

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """Of a run that has not been heard yet. Raises UserError when run.json is damaged."""
        about = read_json(run.run)
        try:
            return cls(Plan.from_dict(about["plan"]), about["fold_order"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{run.run} lacks {error}; it is damaged: restore it") from None

    def hear(self, event: Event) -> None:
        if self._own:
            self.trials.apply(event)
        trial, data = self.trials.all.get(event.trial), event.data
        if event.kind == "session":
            self._used += self.last - self._began if self._began is not None else 0.0
            self._began, self._ahead = event.time, data.get("after", 0.0)
            self._before, self._since = self._seconds(), None
        elif event.kind in ("ask", "extend", "ablate"):
            self._extending.append(event)
            if event.kind != "ask":
                self.plan = extended(self._planned, self._extending)
        elif event.kind == "attempt" and self._since is None:
            self._since = event.time
        elif event.kind == "decision" and data["verdict"] == WAITS:
            self.waiting.add(event.trial)
        elif event.kind in ("decision", "end"):
            self.waiting.discard(event.trial)
        elif trial is not None and event.kind == "epochs":
            place = sys.intern(data.get("host", "")), sys.intern(data.get("machine", ""))
            self._places[event.trial, event.attempt] = place
            for point in data["points"]:
                self._heard(trial, event, point["seconds"], 1)
        elif trial is not None and event.kind == "fold":
            self._heard(trial, event, data["seconds"], 0)
        self.last = event.time

    def _seconds(self) -> float:
        """Worker seconds that were reported."""
        return sum(trial.seconds for trial in self.trials.all.values())

    def _heard(self, trial: Trial, event: Event, seconds: float, epochs: int) -> None:
        _, machine = self._place(event.trial, event.attempt)
        self._costs.hear(trial.model, trial.image_size, seconds, epochs, machine)

    def _place(self, trial: int, attempt: int) -> tuple[str, str]:
        return self._places.get((trial, attempt), ("", ""))

    # -- what is there -------------------------------------------------------------------------

    def counts(self) -> Counter[str]:
        """How many trials are in each state; open ones are running or waiting."""
        return Counter(
            WAITING if trial.state == RUNNING and not trial.leases else trial.state
            for trial in self.trials.all.values()
        )

    def done(self) -> int:
        """Trials that need nothing more, as far as is known."""
        return self.trials.ended() + len(self.waiting)

    def leases(self) -> list[Lease]:
        """What workers have in their hands, by trial."""
        found = []
        for trial in sorted(self.trials.running(), key=lambda trial: trial.number):
            for attempt, folds in trial.leases.items():
                for fold in folds[:1]:
                    epoch = trial.newest.get(fold, 0)
                    point = trial.curve.get((fold, epoch), {})
                    found.append(
                        Lease(
                            trial=trial, fold=self.fold_order.index(fold) + 1, epoch=epoch,
                            images_per_second=point.get("images_per_second"),
                            memory=point.get("peak_memory", 0),
                            host=self._place(trial.number, attempt)[0],
                        )
                    )  # fmt: skip
        return found

    def best(self, count: int) -> list[Trial]:
        """The `count` best trials, in the leaderboard's order."""

        def merit(trial: Trial) -> tuple[bool, int, float, int]:
            done, score = trial.state == FINISHED, trial.score()
            folds = 0 if done else len(trial.folds)
            return done, folds, -math.inf if math.isnan(score) else score, -trial.number

        return sorted(self.trials.all.values(), key=merit, reverse=True)[:count]

    # -- time ----------------------------------------------------------------------------------

    def elapsed(self, now: float) -> float:
        """Seconds that the run's sessions have taken until `now`, seconds since 1970."""
        return self._used + self._session(now)

    def left(self, now: float) -> float | None:
        """Seconds until the trials have ended, as far as can be told; None: it cannot yet.

        With a number of trials: what one has cost so far, for each that is still to come, and by
        measured costs what is under way and the members that are missing; all shared out among the
        workers, and as much longer as they have taken so far. With a time limit: at most that.
        """
        work = self._work_left() if self.plan.trials is not None else None
        if self.plan.hours is None:
            return work
        limit = max(0.0, self.plan.hours * 3600 - FINISH - self._used - self._session(now))
        return limit if work is None else min(limit, work)

    def over(self, now: float) -> bool:
        """Whether all trials have ended, and no time or number of trials is left for others."""
        if self.trials.open():
            return False
        if self.plan.trials is not None and len(self.trials.all) >= self.plan.trials:
            return True
        return self.plan.hours is not None and self.left(now) == 0

    def _session(self, now: float) -> float:
        if self._began is None:
            return 0.0
        return max(now, self.last) - self._began + self._ahead

    def _work_left(self) -> float | None:
        assert self.plan.trials is not None
        new = max(0, self.plan.trials - len(self.trials.all))
        if not new and not self.trials.open():
            return 0.0
        each, busy = self._usual_seconds(), self._seconds() - self._before
        if (each is None and new) or not busy or self._since is None:
            return None
        outlook = Outlook(
            self.trials, Rungs(self.plan.rungs, self.plan.keep), self._costs, self.plan,
            self.fold_order,
        )  # fmt: skip
        outlook.workers = workers = max(self.plan.workers, len(self.leases()))  # a cluster grows
        running = sum(self._left_of(trial, each, outlook) for trial in self.trials.running())
        missing = self.plan.members - len(self.trials.members())
        nearest = sorted(self.trials.open(), key=outlook.work_left)[: max(0, missing)]
        last = max(
            outlook.reserve(math.inf), running / workers,
            max((outlook.wall_left(trial) for trial in nearest), default=0.0),
        )  # fmt: skip
        # Starting, reading and waiting for each other: what workers did beside training.
        share = busy / (workers * max(self.last - self._since, 1e-9))
        return ((each or 0.0) * new / workers + last) / min(1.0, share)

    def _usual_seconds(self) -> float | None:
        """Worker seconds that a trial usually takes, without the members that a run wants however
        many trials it has; None: too few have been settled."""
        wanted = {trial.number for trial in self.trials.members()[: self.plan.members]}
        settled = [
            trial.seconds for trial in self.trials.all.values()
            if trial.seconds and not trial.leases and trial.number not in wanted
        ]  # fmt: skip
        return fmean(settled) if len(settled) >= SETTLED else None

    def _left_of(self, trial: Trial, each: float | None, outlook: Outlook) -> float:
        """Worker seconds of a running trial: all that is left of one that has passed its last rung,
        else what trials usually cost; None: not known."""
        rungs = outlook.rungs_of(trial)
        if each is None or not rungs or len(trial.folds) >= rungs[-1].folds:
            return outlook.work_left(trial)
        return max(0.0, each - trial.seconds)
