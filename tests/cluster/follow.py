"""A search on the lab's hosts, followed through its journal: when to strike a host, how its trial
goes on, and what must hold of a run however many hosts it lost."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from search.data.folds import read_folds
from search.journal import Event
from search.oof import read_oof
from search.run_folder import RunFolder
from search.trials import FINISHED, RUNNING, Trial, Trials
from tests.cluster.lab import HOSTS
from tests.runs import events_of

CHECKPOINT_SECONDS = 20.0  # as in search/trial.py, which imports Ray

Found = TypeVar("Found")


class Watch:
    """A search that is under way, through its journal."""

    def __init__(self, run: Path, over: Callable[[], str | None]) -> None:
        """`over` says what the search printed once it has ended, else None."""
        self.run, self._over = run, over

    def until(
        self, what: str, seconds: float, found: Callable[[list[Event]], Found | None]
    ) -> Found:
        """What `found` makes of the journal, as soon as that is something."""
        deadline = time.monotonic() + seconds
        while True:
            over, events = self._over(), events_of(self.run)
            if (value := found(events)) is not None:
                return value
            assert over is None, f"the search ended before {what}: {over}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; {events[-5:]}"
            time.sleep(0.2)


def replayed(events: Sequence[Event]) -> Trials:
    trials = Trials()
    for event in events:
        trials.apply(event)
    return trials


def mid_fold(events: Sequence[Event], hosts: Sequence[str]) -> Event | None:
    """The last that was heard of a lease on one of the hosts, in the middle of a fold."""
    newest = {(e.trial, e.attempt): e for e in events if e.kind == "epochs"}
    for trial in replayed(events).running():
        for attempt, folds in trial.leases.items():
            told = newest.get((trial.number, attempt))
            if told and folds and told.data["host"] in [HOSTS[name] for name in hosts]:
                point = told.data["points"][-1]
                if point["fold"] == folds[0] and point["epoch"] < trial.epochs:
                    return told
    return None


def trained_again(events: Sequence[Event]) -> dict[tuple[int, int, int], list[tuple[int, float]]]:
    """Epochs that were told before, with the seconds that they had taken then, by the trial, fold
    and attempt that trained them once more."""
    told: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    again: dict[tuple[int, int, int], list[tuple[int, float]]] = defaultdict(list)
    for event in events:
        for point in event.data["points"] if event.kind == "epochs" else ():
            before = told[event.trial, point["fold"]]
            epoch, seconds = point["epoch"], point["seconds"]
            # What comes from a checkpoint has the same nanoseconds as before.
            if before.setdefault(epoch, seconds) != seconds:
                again[event.trial, point["fold"], event.attempt].append((epoch, before[epoch]))
                before[epoch] = seconds
    return dict(again)


def check_run(run: Path) -> dict[int, Trial]:
    """What holds for every run that went to its end, whatever it lost on the way; its trials."""
    events, folder = events_of(run), RunFolder(run)
    trials = replayed(events).all
    assert trials and all(trial.state != RUNNING for trial in trials.values())
    members = [trial.number for trial in trials.values() if trial.state == FINISHED]
    assert members and folder.members() == members
    names = json.loads(folder.run.read_text())["target_names"]
    folds = read_folds(folder.folds)
    for number in members:
        read_oof(folder.oof(number), folds, names)  # raises for one that is not whole
    done = set()
    for event in events:  # no finished fold is begun again
        if event.kind == "epochs":
            assert done.isdisjoint((event.trial, point["fold"]) for point in event.data["points"])
        elif event.kind == "fold":
            assert (event.trial, event.data["fold"]) not in done
            done.add((event.trial, event.data["fold"]))
    check_repeated(events, json.loads(folder.run.read_text())["fold_order"][0])
    assert not list(run.glob("work/*")), "workers' files are left"
    assert (folder.ensemble / "manifest.json").is_file() and (run / "submission.csv").is_file()
    return trials


def check_repeated(events: Sequence[Event], first_fold: int) -> None:
    """After a loss a fold goes on from its last checkpoint: there is one at every rung, and at the
    first epoch's end after so many seconds."""
    rungs = {(e.trial, int(e.data["rung"].split("+")[1])) for e in events if e.kind == "rung"}
    for (trial, fold, attempt), epochs in trained_again(events).items():
        numbers = [epoch for epoch, _ in epochs]
        what = f"trial {trial} fold {fold} attempt {attempt} trained {numbers} again"
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), what
        assert sum(seconds for _, seconds in epochs[:-1]) <= CHECKPOINT_SECONDS, what
        if fold == first_fold:
            assert rungs.isdisjoint((trial, epoch) for epoch in numbers), what


@dataclass(frozen=True)
class Loss:
    """A host that was lost while it trained, and how its trial went on."""

    begun: float  # seconds since 1970: the host is killed or cut
    lost: Event
    free: float  # seconds since 1970: another host had nothing to do
    attempt: Event  # the trial is given to another worker
    again: Event  # that tells its first new epoch

    def __str__(self) -> str:
        times = (self.lost.time, self.free, self.attempt.time, self.again.time)
        after = [time - self.begun for time in times]
        return (
            f"noticed after {after[0]:.1f} s, another host free after {after[1]:.1f} s, the trial "
            f"placed there after {max(after[1:3]):.1f} s, a new epoch told after {after[3]:.1f} s"
        )


def lose(watch: Watch, name: str, strike: Callable[[str], None]) -> Loss:
    """Strike one of three hosts in the middle of a fold; wait until its trial goes on elsewhere."""
    watch.until(f"{name} trains", 60, lambda events: mid_fold(events, [name]))
    begun = time.time()
    strike(name)

    def noticed(events: list[Event]) -> Event | None:
        return next((e for e in events if e.kind == "lost" and e.time > begun), None)

    lost = watch.until(f"the loss of {name} is noticed", 40, noticed)

    def of_trial(kind: str, events: list[Event]) -> Iterator[Event]:
        later = (e for e in events if e.seq > lost.seq and e.trial == lost.trial)
        return (e for e in later if e.kind == kind)

    def new_epoch(events: list[Event]) -> Event | None:
        old = {seconds for e in events[: lost.seq] for seconds in _seconds(e)}
        return next((e for e in of_trial("epochs", events) if _seconds(e) - old), None)

    attempt = watch.until("its trial is placed", 60, lambda es: next(of_trial("attempt", es), None))
    again = watch.until("its trial trains again", 60, new_epoch)
    return Loss(begun, lost, _idle(events_of(watch.run), lost), attempt, again)


def _seconds(event: Event) -> set[float]:
    """How long the epochs took of which it tells: what tells one epoch from another."""
    return {p["seconds"] for p in event.data["points"]} if event.kind == "epochs" else set()


def _idle(events: Sequence[Event], lost: Event) -> float:
    """When, after the loss, one of the two other hosts had nothing else to do. The lost trial may
    be given away before that, and then waits."""
    trials = Trials()
    for event in events:
        trials.apply(event)
        leases = [(t.number, attempt) for t in trials.running() for attempt in t.leases]
        others = [lease for lease in leases if lease[0] != lost.trial or lease[1] <= lost.attempt]
        if event.seq >= lost.seq and len(others) < 2:
            return event.time
    raise AssertionError("no other host was free, and yet the trial went on")


def next_trained(events: Sequence[Event], lost: Event) -> int:
    """The trial of the first lease that tells of an epoch, of those that no worker had when the
    host was lost."""
    held = {(t.number, a) for t in replayed(events[: lost.seq]).running() for a in t.leases}
    for event in events[lost.seq :]:
        if event.kind == "epochs" and (event.trial, event.attempt) not in held:
            return event.trial
    raise AssertionError("nothing was trained after the loss")
