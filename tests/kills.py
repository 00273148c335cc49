"""A run that is killed at random moments and resumed, and what it must not lose by that."""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from search.data.folds import read_folds
from search.journal import Event
from search.trials import FINISHED, RUNNING, Trial, Trials
from tests.runs import SMALL, call, events_of, start

EARLY = 0.2  # share of the kills that come before a session's first report
ORPHANS = 0.5  # share of the kills that leave the driver's children to themselves


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a session takes; the moments of the kills are drawn from it."""

    startup: float  # seconds from a session's first event to its first report
    work: float  # seconds from there to the last event

    @classmethod
    def of(cls, run: Path) -> "Pace":
        """Of a run that one session finished."""
        events = events_of(run)
        first = next(e.time for e in events if e.kind == "epochs")
        return cls(startup=first - events[0].time, work=events[-1].time - first)


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What was done when the run was killed."""

    events: list[Event]
    folds: dict[tuple[int, int], tuple[bytes, bytes]]  # (trial, fold) -> predictions, model
    epochs: dict[tuple[int, int, int], float]  # (trial, fold, epoch) in a checkpoint -> its seconds


class Victim:
    """A run of `trials` trials on `cores` cores, in folder/run."""

    def __init__(self, folder: Path, data: Path, trials: int, cores: int) -> None:
        self.run = folder / "run"
        self._cores = cores
        self._first = ("gene_expr", "--data", data, "--out", "run", "--trials", trials, *SMALL)
        self.notes: list[Notes] = []

    def kill(self, rng: random.Random, pace: Pace, kills: int) -> None:
        """A session that dies by SIGKILL at a random moment, so early that a `kills`th of the work
        is done at most."""
        known = len(events_of(self.run))
        early, orphans = rng.random() < EARLY, rng.random() < ORPHANS
        process = start(*self._command(), cwd=self.run.parent, cores=self._cores)
        awaited = "session" if early else "epochs"
        deadline = time.monotonic() + 200
        while not any(e.kind == awaited for e in events_of(self.run)[known:]):
            if process.poll() is not None or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"no {awaited!r} event:\n{process.communicate()[0]}")
            time.sleep(0.01)
        time.sleep(rng.uniform(0, pace.startup if early else pace.work / kills))
        assert process.poll() is None, "the run ended before it could be killed"
        if orphans:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        self.notes.append(self._note())

    def finish(self) -> None:
        call(*self._command(), cwd=self.run.parent, cores=self._cores)

    def check(self) -> None:
        """No event, finished fold or checkpointed epoch is lost, and none was done twice."""
        events, trials = events_of(self.run), self._trials()
        assert trials == self._trials()
        assert all(trial.state != RUNNING for trial in trials.values())
        folds = [(e.trial, e.data["fold"]) for e in events if e.kind == "fold"]
        assert len(folds) == len(set(folds)), "a fold was finished twice"
        seconds: dict[tuple[int, int, int], set[float]] = {}
        for event in events:
            for point in event.data["points"] if event.kind == "epochs" else ():
                key = (event.trial, point["fold"], point["epoch"])
                seconds.setdefault(key, set()).add(point["seconds"])
        for notes in self.notes:
            assert events[: len(notes.events)] == notes.events
            for (trial, fold), files in notes.folds.items():
                if trials[trial].state == FINISHED:
                    assert self._files(trial, fold) == files, f"fold {fold} of trial {trial}"
            for key, value in notes.epochs.items():
                # An epoch that is trained again takes another number of nanoseconds.
                assert seconds.get(key, {value}) == {value}, f"{key} was trained again"
        self._check_files(trials)

    def _command(self) -> tuple[object, ...]:
        return ("--resume", "run") if (self.run / "run.json").exists() else self._first

    def _trials(self) -> dict[int, Trial]:
        trials = Trials()
        for event in events_of(self.run):
            trials.apply(event)
        return trials.all

    def _note(self) -> Notes:
        trials = self._trials()
        alive = [t for t in trials.values() if t.state in (RUNNING, FINISHED)]
        epochs: dict[tuple[int, int, int], float] = {}
        # By attempt: of a fold's checkpoints the newest one counts.
        for path in sorted(self.run.glob("work/*/epoch-*.safetensors"), key=_attempt):
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
            points = json.loads(metadata["note"])
            assert max(p["epoch"] for p in points) == int(metadata["epoch"])
            for p in points:
                epochs[int(path.parent.name[:4]), p["fold"], p["epoch"]] = p["seconds"]
        return Notes(
            events=events_of(self.run),
            folds={(t.number, f): self._files(t.number, f) for t in alive for f in t.folds},
            epochs=epochs,
        )

    def _files(self, trial: int, fold: int) -> tuple[bytes, bytes]:
        """The bytes of a fold's predictions, which move when a trial is complete, and its model."""
        part = self.run / f"oof/{trial:04d}/fold-{fold}.npy"
        if part.exists():
            pred_TV = np.load(part)
        else:
            rows = read_folds(self.run / "folds.parquet").fold == fold
            pred_TV = np.load(part.with_name("pred.npy"))[:, rows]
        model = self.run / f"checkpoints/{trial:04d}/fold-{fold}.safetensors"
        return pred_TV.tobytes(), model.read_bytes()

    def _check_files(self, trials: dict[int, Trial]) -> None:
        """Members have all their files, and nothing is left of the others."""
        members = {f"{t.number:04d}" for t in trials.values() if t.state == FINISHED}
        for folder, file in (("oof", "meta.json"), ("checkpoints", "recipe.json")):
            assert {p.parent.name for p in self.run.glob(f"{folder}/*/{file}")} == members
            assert {p.name for p in self.run.glob(f"{folder}/*")} == members
        assert not list(self.run.glob("work/*")) and members
        assert (self.run / "submission.csv").is_file()


def _attempt(checkpoint: Path) -> tuple[str, int]:
    trial, _, attempt = checkpoint.parent.name.partition("-")
    return trial, int(attempt)
