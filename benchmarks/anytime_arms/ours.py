"""Our arm: `python -m search.run`, and what it would have handed in at each moment.

Its first recipes are part of it. After the run the journal is replayed: when a trial became a
member, the ensemble is chosen from the members there were by then, as the run itself chooses it
whenever a member finishes, and the seconds that the choice takes come on top. The last hand-in is
the run's own submission, at its exit.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_arms.hand_ins import ENSEMBLE, SINGLE, HandInLog
from anytime_arms.problem import TASK, Floats, Problem
from ensemble.choose import choose
from ensemble.members import Pool, load_members
from ensemble.submission import SubmissionForm
from search.journal import read_events
from search.oof import read_test
from search.run_folder import RunFolder, read_json
from search.trials import FINISHED


def command(problem: Problem, out: Path, minutes: float) -> list[str]:
    """Arguments after the interpreter. Nothing that earlier runs decoded is at hand."""
    return [
        "-m", "search.run", TASK, "--data", str(problem.data), "--groups", problem.groups,
        "--hours", str(minutes / 60), "--seed", str(problem.seed), "--out", str(out / "run"),
        "--cache", str(out / "cache"), "--weights", "random",
    ]  # fmt: skip


def replay(problem: Problem, out: Path, log: HandInLog, exit_at: float) -> tuple[int, int]:
    """Log the hand-ins of a run that ended at `exit_at`; trials begun, trials finished."""
    run = RunFolder.open(out / "run")
    events, _ = read_events(run.journal)
    asked = sum(event.kind == "ask" for event in events)
    ends = {e.trial: e for e in events if e.kind == "end" and e.data["state"] == FINISHED}
    if not run.members():
        return asked, 0
    pool = load_members(run)
    member_of = {m.origin.trial: m for m in pool.members if m.origin is not None}
    form = SubmissionForm.load(run.form)
    order = [form.test_ids.index(name) for name in problem.test_ids()]
    best, there = -np.inf, []
    for trial, end in sorted(ends.items(), key=lambda item: item[1].seq):
        member = member_of[trial]
        there.append(member)
        if end.data["score"] > best:
            best = end.data["score"]
            log.add(end.time, SINGLE, best, _test(replace(pool, members=(member,)), 0)[:, order])
        began = time.monotonic()
        choice = choose(replace(pool, members=tuple(there)))
        seconds = time.monotonic() - began
        pred_TS = choice.blend.apply([_test(choice.pool, m) for m in choice.blend.members])
        log.add(end.time + seconds, ENSEMBLE, choice.score, pred_TS[:, order])
    known = read_json(run.ensemble / "ensemble.json")["scores"][0]["score"]
    submitted = pd.read_csv(run.root / form.submission.file, dtype={"ID": str}).set_index("ID")
    pred_ST = submitted.loc[problem.test_ids(), list(form.target_names)].to_numpy()
    log.add(exit_at, ENSEMBLE, known, pred_ST.T)
    return asked, len(there)


def _test(pool: Pool, member: int) -> Floats:
    folder = pool.members[member].oof_folder
    assert folder is not None
    rows = np.load(folder / "test.npy", mmap_mode="r").shape[1]
    pred_TS = read_test(folder, len(pool.target_names), rows)
    assert pred_TS is not None
    return pred_TS
