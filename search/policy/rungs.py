"""Rungs: where a trial is compared with its peers, and who is cut. Pure.

Asynchronous successive halving over folds x epochs. A rung is (folds done, epoch of the current
fold); trials are compared at the same rung only, so on the same folds after the same epochs. The
value at a rung inside the first fold is the score on that fold; at later rungs the mean over the
folds done. A trial is cut when it is not among the best `keep` share of those that reached the
rung, and never while `least` or fewer did: a first arrival cannot be judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Rung:
    """`folds` complete folds and `epoch` epochs of the next one (0: none begun)."""

    folds: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.folds}+{self.epoch}"


def make_rungs(folds: int, epochs: int, first: Sequence[float] = (0.1, 0.33)) -> tuple[Rung, ...]:
    """Rungs at shares `first` of the first fold's epochs, at its end, and after half the folds.

    The last fold's end is no rung: a trial that gets there is a member. Never before one epoch,
    since an untrained network's score is noise.
    """
    inside = sorted({max(1, math.ceil(share * epochs)) for share in first} - {epochs})
    rungs = [Rung(0, epoch) for epoch in inside]
    rungs += [Rung(done, 0) for done in sorted({1, math.ceil(folds / 2)}) if done < folds]
    return tuple(rungs)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided about a trial at a rung, and why."""

    rung: str
    go_on: bool
    value: float
    cut: float | None  # the value that had to be reached; None: too few peers
    peers: int  # trials that had reached the rung, this one included
    reason: str


@dataclass(kw_only=True)
class Rungs:
    """The values recorded at each rung. Deciding is a function of them; recording is separate, so
    that a replayed journal gives the same state."""

    keep: float = 0.5  # share of a rung's arrivals that goes on
    least: int = 3  # this many at a rung always go on
    _values: dict[str, dict[int, float]] = field(default_factory=dict)

    def record(self, rung: str, trial: int, value: float) -> None:
        """Remember a trial's value at a rung; repeating it changes nothing."""
        self._values.setdefault(rung, {}).setdefault(trial, value)

    def judge(self, rung: Rung, trial: int, value: float) -> Verdict:
        """Whether the trial goes on. A value that is not finite never does."""
        name = str(rung)
        where = f"fold {rung.folds + 1} epoch {rung.epoch}" if rung.epoch else f"{rung.folds} folds"
        others = {t: v for t, v in self._values.get(name, {}).items() if t != trial}
        values = sorted([*others.values(), value], reverse=True)
        peers = len(values)
        if not math.isfinite(value):
            return Verdict(
                rung=name, go_on=False, value=value, cut=None, peers=peers,
                reason=f"stopped at {where}: the score is {value}",
            )  # fmt: skip
        kept = max(self.least, math.ceil(self.keep * peers))
        if peers <= kept:
            reason = f"goes on at {where}: {value:.4f}, {peers} there so far"
            return Verdict(rung=name, go_on=True, value=value, cut=None, peers=peers, reason=reason)
        cut = values[kept - 1]
        go_on = value >= cut
        verb, sign = ("goes on", ">=") if go_on else ("stopped", "<")
        return Verdict(
            rung=name, go_on=go_on, value=value, cut=cut, peers=peers,
            reason=f"{verb} at {where}: {value:.4f} {sign} cut {cut:.4f}, {peers} there so far",
        )  # fmt: skip
