"""Rungs: where a trial is compared with its peers, and who goes on. Pure.

Asynchronous successive halving over folds x epochs, in the promoting form (ASHA, Li et al. 2020). A
rung is (folds done, epoch of the current fold); trials are compared at the same rung only, so on
the same folds after the same epochs. The value at a rung inside the first fold is the score there;
at later rungs the mean over the folds done.

For every 1/keep trials that arrive, a rung grants one pass, to the best that waits there. So the
share that goes on stays `keep` even while the recipes get better and each new one beats most of the
old. Who gets no pass waits, and may still get one. Who is clearly worse than the share that goes
on, by more than the noise, is cut; nobody is while fewer than `cohort` have arrived.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

GOES_ON, WAITS, CUT = "goes on", "waits", "cut"


@dataclass(frozen=True, order=True)
class Rung:
    """`folds` complete folds and `epoch` epochs of the next one (0: none begun)."""

    folds: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.folds}+{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> "Rung":
        """The inverse of str."""
        return cls(*map(int, text.split("+")))

    @property
    def words(self) -> str:
        if self.epoch:
            return f"fold {self.folds + 1} epoch {self.epoch}"
        return f"{self.folds} fold{'s' if self.folds > 1 else ''}"

    def step(self, epochs: int) -> int:
        """Epochs trained up to here, with `epochs` in each fold."""
        return self.folds * epochs + self.epoch


def make_rungs(folds: int, epochs: int, first: Sequence[float] = (0.08, 0.25)) -> tuple[Rung, ...]:
    """Rungs at shares `first` of the first fold's epochs, at its end, and after half the folds.

    The last fold's end is no rung: a trial that gets there is a member. Never before the second
    epoch: an untrained network's score is noise, and in the first the learning rate warms up.
    """
    inside = sorted({max(2, math.ceil(share * epochs)) for share in first})
    rungs = [Rung(0, epoch) for epoch in inside if epoch < epochs]
    rungs += [Rung(done, 0) for done in sorted({1, math.ceil(folds / 2)}) if done < folds]
    return tuple(rungs)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided about a trial at a rung, and why."""

    trial: int
    rung: Rung
    verdict: str  # GOES_ON, WAITS or CUT
    cut: float | None  # lowest value of the share that goes on; None: too few peers
    peers: int  # trials that had reached the rung, this one included
    reason: str


@dataclass(kw_only=True)
class _Level:
    """What happened at one rung."""

    values: dict[int, float] = field(default_factory=dict)  # every arrival
    ascending: list[float] = field(default_factory=list)  # the finite values
    noises: list[float] = field(default_factory=list)  # the finite ones, ascending
    judged: set[int] = field(default_factory=set)  # trials with a verdict
    passed: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)

    def best_first(self) -> list[int]:
        """Those who wait."""
        return sorted(self.waiting, key=lambda trial: (-self.values[trial], trial))


class Rungs:
    """Arrivals and verdicts. Deciding is a function of what was heard (`arrive`, `hear`, `forget`),
    so that a replayed journal gives the same state."""

    def __init__(
        self, rungs: Sequence[Rung], keep: Sequence[float], *, cohort: int = 4, room: int = 16
    ) -> None:
        """`keep`: at each rung the share of its arrivals that goes on. `room`: trials that may wait
        at a rung inside the first fold, each with a checkpoint on the disk."""
        self.rungs = tuple(rungs)
        # Of a score from fold to fold (policy/noise.py); set by who knows the folds' scores.
        self.fold_noise = math.nan
        self._keep = dict(zip(self.rungs, keep, strict=True))
        self._cohort, self._room = cohort, room
        self._levels = {rung: _Level() for rung in self.rungs}
        self._waits: dict[int, Rung] = {}

    # -- hearing -------------------------------------------------------------------------------

    def arrive(self, trial: int, rung: Rung, value: float, noise: float) -> None:
        """A trial has reached a rung with this value, which jitters by `noise` from epoch to
        epoch. It waits there until a verdict says otherwise."""
        level = self._levels[rung]
        level.values[trial] = value
        if math.isfinite(noise):
            bisect.insort(level.noises, noise)
        if math.isfinite(value):
            level.waiting.add(trial)
            self._waits[trial] = rung
            bisect.insort(level.ascending, value)

    def hear(self, trial: int, rung: Rung, verdict: str) -> None:
        """A verdict about a trial that has arrived."""
        level = self._levels[rung]
        level.judged.add(trial)
        if verdict != WAITS:
            self.forget(trial)
        if verdict == GOES_ON:
            level.passed.add(trial)

    def forget(self, trial: int) -> None:
        """The trial has ended: it waits no longer. What it scored still counts for its peers."""
        rung = self._waits.pop(trial, None)
        if rung is not None:
            self._levels[rung].waiting.discard(trial)

    # -- asking --------------------------------------------------------------------------------

    def arrived(self, trial: int, rung: Rung) -> bool:
        return trial in self._levels[rung].values

    def judged(self, trial: int, rung: Rung) -> bool:
        return trial in self._levels[rung].judged

    def passed(self, trial: int, rung: Rung) -> bool:
        return trial in self._levels[rung].passed

    def waits_at(self, trial: int) -> Rung | None:
        """The rung at which a trial waits."""
        return self._waits.get(trial)

    def waiting(self) -> list[tuple[Rung, int]]:
        """All that wait: the deepest rung first, there the best first."""
        levels = [(rung, self._levels[rung]) for rung in reversed(self.rungs)]
        return [(rung, trial) for rung, level in levels for trial in level.best_first()]

    def judge(self, trial: int, rung: Rung, spare: bool = True) -> Verdict:
        """What happens to a trial that has just arrived: it goes on at once if there is a pass
        and nobody better waits for it. Unless it can be spared it is not cut."""
        level = self._levels[rung]
        if not math.isfinite(level.values[trial]):
            return self._verdict(trial, rung, CUT, "that is no score")
        if self._passes_left(rung) and level.best_first()[0] == trial:
            return self._verdict(trial, rung, GOES_ON, "the best there")
        if spare and self._clearly_worse(trial, rung):
            return self._verdict(trial, rung, CUT)
        better = level.best_first().index(trial)
        return self._verdict(
            trial, rung, WAITS, f"{better} better wait" if better else "for a pass"
        )

    def next_pass(self) -> Verdict | None:
        """The next of those who wait that may go on, at the deepest rung; None: nobody may."""
        for rung in reversed(self.rungs):
            if self._levels[rung].waiting and self._passes_left(rung):
                best = self._levels[rung].best_first()[0]
                return self._verdict(best, rung, GOES_ON, "the best of those who waited")
        return None

    def extra_pass(self, trial: int, why: str) -> Verdict:
        """Lets a waiting trial go on beyond its rung's share."""
        rung = self.waits_at(trial)
        assert rung is not None
        return self._verdict(trial, rung, GOES_ON, why)

    def hopeless(self, rung: Rung) -> Verdict | None:
        """The worst that waits at a rung, if it has become clearly worse than the share that goes
        on, or there is no room for it."""
        level = self._levels[rung]
        worst = max(level.waiting, key=lambda t: (-level.values[t], t), default=None)
        if worst is None:
            return None
        if rung.epoch and len(level.waiting) > self._room:
            return self._verdict(worst, rung, CUT, f"{self._room} better ones wait")
        return self._verdict(worst, rung, CUT) if self._clearly_worse(worst, rung) else None

    def margin(self, rung: Rung) -> float:
        """How far two values at a rung may lie apart by noise: the standard deviation of their
        difference, from the jitter of recent epochs and the folds that were not seen. NaN
        while that is not known: then nobody is clearly worse."""
        if not rung.epoch:
            return self.fold_noise * math.sqrt(2 / rung.folds)
        noises = self._levels[rung].noises
        jitter = median(noises) if noises else math.nan  # sorted already, so quickly
        between = self.fold_noise if math.isfinite(self.fold_noise) else 0.0
        return math.sqrt(2 * (jitter**2 + between**2))

    # -- helpers -------------------------------------------------------------------------------

    def _share(self, rung: Rung) -> int:
        """How many of a rung's arrivals go on. Rounded up: the first has a pass at once, so that a
        run soon has something whole."""
        return math.ceil(self._keep[rung] * len(self._levels[rung].values) - 1e-9)

    def _passes_left(self, rung: Rung) -> bool:
        return self._share(rung) > len(self._levels[rung].passed)

    def _line(self, rung: Rung) -> float | None:
        """The lowest value of the best `keep` share of a rung's arrivals."""
        level = self._levels[rung]
        if len(level.values) < self._cohort or not level.ascending:
            return None
        return level.ascending[-min(self._share(rung), len(level.ascending))]

    def _clearly_worse(self, trial: int, rung: Rung) -> bool:
        line = self._line(rung)
        return line is not None and self._levels[rung].values[trial] < line - self.margin(rung)

    def _verdict(self, trial: int, rung: Rung, verdict: str, why: str = "") -> Verdict:
        level, line = self._levels[rung], self._line(rung)
        why = f", {why}" if why else f" < cut {line:.4f} by more than noise {self.margin(rung):.4f}"
        verb = {GOES_ON: "goes on at", WAITS: "waits at", CUT: "stopped at"}[verdict]
        value, peers = level.values[trial], len(level.values)
        return Verdict(
            trial=trial, rung=rung, verdict=verdict, cut=line, peers=peers,
            reason=f"{verb} {rung.words}: {value:.4f}{why}; {peers} there so far",
        )  # fmt: skip
