"""The arms by name, and one run of one of them: a process of its own, timed from its start."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from anytime_arms.hand_ins import HandInLog, read_hand_ins
from anytime_arms.problem import Judge, Problem
from spaces.errors import RunFailed

OURS = "ours"
SCRIPTS = {"optuna": "anytime_arms.optuna_script", "ray_tune": "anytime_arms.ray_script"}
ARMS = (OURS, *SCRIPTS)
GRACE = 600  # seconds that an arm may take beyond its time; what it hands in then does not count
_BENCHMARKS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Point:
    """A hand-in and what it is worth."""

    seconds: float  # since the start of the process
    kind: str
    known: float  # to the arm
    test: float  # by the truth


@dataclass(frozen=True, kw_only=True)
class Result:
    """One arm on one problem."""

    arm: str
    data_set: str
    seed: int
    title: str
    minutes: float
    mean_profile: float  # score of predicting the training rows' mean, before the first hand-in
    begun: int  # trials
    finished: int
    exit: float  # seconds until the process was gone
    points: tuple[Point, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Result":
        fields = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**fields, "points": tuple(Point(**p) for p in fields["points"])})


def run(arm: str, data_set: str, problem: Problem, folder: Path, minutes: float) -> Result:
    """Run an arm in `folder`, which is emptied before and deleted after.

    Raises RunFailed when its process fails, with the end of what it wrote.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.time()
    deadline = began + minutes * 60
    if arm == OURS:
        from anytime_arms import ours

        words = _process(ours.command(problem, folder, minutes), folder, minutes)
        exit_at = time.time()
        begun, finished = ours.replay(problem, folder, HandInLog(folder, began), exit_at)
    else:
        peer = ["-m", SCRIPTS[arm], str(problem.folder), str(folder), str(deadline), str(began)]
        words = _process(peer, folder, minutes)
        exit_at = time.time()
        begun, finished = map(int, words[-2:])
    judge = Judge(problem)
    result = Result(
        arm=arm, data_set=data_set, seed=problem.seed, title=problem.title, minutes=minutes,
        mean_profile=judge.mean_profile, begun=begun, finished=finished, exit=exit_at - began,
        points=tuple(
            Point(seconds=h.seconds, kind=h.kind, known=h.known, test=judge.score(h.pred_TS))
            for h in read_hand_ins(folder)
            if h.seconds <= minutes * 60
        ),
    )  # fmt: skip
    shutil.rmtree(folder)
    return result


def _process(command: Sequence[str], folder: Path, minutes: float) -> list[str]:
    """The words that a Python process printed."""
    paths = [str(_BENCHMARKS.parent), str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
        done = subprocess.run(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=errors,
            text=True, timeout=minutes * 60 + GRACE,
        )  # fmt: skip
    if done.returncode:
        told = (folder / "errors.txt").read_text(encoding="utf-8")[-3000:]
        raise RunFailed(f"{' '.join(command[:2])} ended with {done.returncode}:\n{told}")
    return done.stdout.split()
