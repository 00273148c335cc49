"""Looking on: the same trials as the director's, an honest time left, and files read as they
grow."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from search import follow
from search.follow import Follower, Tail
from search.journal import Event, Journal, read_events, seconds_used
from search.plan import FINISH
from search.run_folder import RunFolder
from search.trials import RUNNING, Trials
from search.watch import WAITING, Watch
from spaces.errors import UserError
from tests.watched import folder, simulate
from tests.workers import Simulation, plan_of


@pytest.mark.parametrize("seed", range(3))
def test_it_knows_what_the_director_knows(tmp_path: Path, seed: int) -> None:
    plan = plan_of(workers=3, trials=20)
    watch = Watch(plan, [1, 2, 0])

    def compare(simulation: Simulation) -> None:
        director = simulation.director
        states = {n: (t.state, t.leases, t.seconds) for n, t in watch.trials.all.items()}
        assert states == {n: (t.state, t.leases, t.seconds) for n, t in director.trials.all.items()}
        assert watch.waiting == {number for _, number in director.rungs.waiting()}
        held = [(t.number, folds[0]) for t in director.trials.running() for folds in
                t.leases.values() if folds]  # fmt: skip
        leases = [
            (lease.trial.number, simulation.order[lease.fold - 1]) for lease in watch.leases()
        ]
        assert sorted(leases) == sorted(held)
        counts = watch.counts()
        assert counts.total() == len(watch.trials.all)
        assert counts[RUNNING] + counts[WAITING] == len(director.trials.open())

    simulation = simulate(tmp_path, plan, listener=watch.hear, between=compare, seed=seed)
    best = simulation.director.trials.best()
    assert best is not None and watch.best(1)[0].number == best.number
    assert watch.over(simulation.now) and watch.left(simulation.now) == 0


@pytest.mark.parametrize("workers", [1, 2, 6])
def test_the_time_left_is_honest(tmp_path: Path, workers: int) -> None:
    plan = plan_of(workers=workers, trials=24)
    watch = Watch(plan, [1, 2, 0])
    said: list[tuple[float, float | None]] = []

    def ask(simulation: Simulation) -> None:
        said.append((simulation.now, watch.left(simulation.now)))

    end = simulate(tmp_path, plan, listener=watch.hear, between=ask).now
    assert said[0][1] is None, "nothing is known yet"
    known = [(now, left) for now, left in said if left is not None]
    assert known[0][0] < 0.2 * end, "it can be told early"
    wrong = [abs(left - (end - now)) / end for now, left in known if now > 0.2 * end]
    assert median(wrong) < 0.1 and max(wrong) < 0.25


def test_with_hours_it_is_until_their_end(tmp_path: Path) -> None:
    plan = plan_of(workers=2, hours=0.1)
    watch = Watch(plan, [1, 2, 0])
    lefts: list[tuple[float, float | None]] = []
    simulate(
        tmp_path, plan, listener=watch.hear, hours=0.1,
        between=lambda simulation: lefts.append((simulation.now, watch.left(simulation.now))),
    )  # fmt: skip
    assert all(left == pytest.approx(max(0, 360 - FINISH - now)) for now, left in lefts)


def test_a_number_of_trials_is_over_with_the_hours_too(tmp_path: Path) -> None:
    plan = plan_of(workers=2, trials=1000, hours=0.05)
    watch = Watch(plan, [1, 2, 0])
    end = simulate(tmp_path, plan, listener=watch.hear, hours=0.05).now
    assert len(watch.trials.all) < 1000 and not watch.trials.open()
    assert not watch.over(0.0) and watch.over(max(end, 0.05 * 3600))


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_a_follower_goes_by_the_clock_of_the_host_that_searches(
    tmp_path: Path, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(tmp_path / "run", steps=40)
    raw = run.journal.read_bytes()
    lines = raw.splitlines(keepends=True)
    run.journal.write_bytes(b"".join(lines[:20]))
    last = json.loads(lines[-1])["time"]
    monkeypatch.setattr(follow.time, "time", lambda: last + ahead + 0.5)
    follower = Follower(run)
    follower.update()
    run.journal.write_bytes(raw)
    follower.update()
    assert follower.now() == pytest.approx(last, abs=1)


def test_one_who_shares_the_directors_trials_tells_the_same(tmp_path: Path) -> None:
    """As the searching process does after a resume: the trials have heard all before."""
    events = read_events(folder(tmp_path / "run", steps=120).journal)[0]
    before, after = events[: len(events) // 2], events[len(events) // 2 :]
    before.append(session(before[-1].time, after=1.0))
    alone = Watch.of(RunFolder(tmp_path / "run"))
    for event in (*before, *after):
        alone.hear(event)
    trials = Trials.of(before)
    sharing = Watch(alone.plan, alone.fold_order, trials)
    for event in before:
        sharing.hear(event)
    for event in after:
        trials.apply(event)
        sharing.hear(event)
    assert sharing.counts() == alone.counts() and sharing.leases() == [
        replace(lease, trial=trials.all[lease.trial.number]) for lease in alone.leases()
    ]
    now = events[-1].time
    assert sharing.left(now) == alone.left(now) and sharing.elapsed(now) == alone.elapsed(now)
    assert alone.left(now) is not None


def session(time: float, **data: float) -> Event:
    return Event(seq=0, time=time, kind="session", data=data)


def test_sessions_add_up_and_the_time_between_them_does_not(tmp_path: Path) -> None:
    watch = Watch(plan_of(workers=1, hours=1.0), [0, 1, 2])
    assert watch.elapsed(5.0) == 0
    events = [
        session(100.0, after=7.0), replace(session(160.0), kind="x"), session(1000.0, after=3.0),
    ]  # fmt: skip
    for event in events:
        watch.hear(event)
    assert watch.elapsed(1010.0) == seconds_used(events) + 10 + 3 == 73
    assert watch.left(1010.0) == 3600 - FINISH - 73
    assert watch.elapsed(900.0) == 63, "another host's clock may be behind"


def test_what_extends_a_run_is_heard(tmp_path: Path) -> None:
    simulation = simulate(tmp_path, plan_of(workers=1, trials=5))
    watch = Watch.of(simulation.run)
    for event in read_events(simulation.run.journal)[0]:
        watch.hear(event)
    assert watch.over(simulation.now) and watch.plan.trials == 5
    journal = Journal(simulation.run.journal)
    journal.listen(watch.hear, replay=False)
    journal.append("session")
    journal.append("extend", trials=4)
    journal.close()
    assert watch.plan.trials == 9 and not watch.over(simulation.now)


# --- files


def test_a_journal_is_read_as_it_grows_whatever_is_torn(tmp_path: Path) -> None:
    run = folder(tmp_path / "whole", steps=30)
    raw, whole = run.journal.read_bytes(), read_events(run.journal)[0]
    path = tmp_path / "journal.jsonl"
    tail, seen = Tail(path), []
    assert tail.new() == []
    for end in [*range(0, len(raw), 97), len(raw)]:
        path.write_bytes(raw[:end])
        found = tail.new()
        assert found is not None
        seen += found
        assert len(seen) == raw[:end].count(b"\n")
    assert seen == whole
    path.write_bytes(raw + b"\x00\x00\n")  # what a crash may leave
    assert tail.new() == []
    path.write_bytes(raw)
    assert tail.new() == []


def test_a_journal_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    run = folder(tmp_path, steps=30)
    raw = run.journal.read_bytes()
    follower = Follower(run)
    follower.update()
    trials = len(follower.watch.trials.all)
    first = follower.watch
    run.journal.write_bytes(b"".join(raw.splitlines(keepends=True)[:8]))
    heard: list[Event] = []
    follower.update(heard.append)
    assert follower.watch is not first and not heard
    assert 0 < len(follower.watch.trials.all) < trials
    run.journal.write_bytes(raw)
    follower.update(heard.append)
    assert len(follower.watch.trials.all) == trials and heard[-1].seq == raw.count(b"\n") - 1


def test_a_line_in_the_middle_that_is_damaged_is_told(tmp_path: Path) -> None:
    run = folder(tmp_path, steps=10)
    follower = Follower(run)
    follower.update()
    raw = run.journal.read_bytes()
    run.journal.write_bytes(raw + b"{broken\n" + raw)
    with pytest.raises(UserError, match="is damaged"):
        follower.update()
    run.journal.write_bytes(raw + json.dumps({"format": 99}).encode() + b"\n")
    with pytest.raises(UserError, match="newer version"):
        follower.update()


def test_a_run_whose_plan_is_gone_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.run.write_text('{"format": 2}')
    with pytest.raises(UserError, match="lacks 'plan'"):
        Watch.of(run)


def test_a_score_that_is_none_ranks_last() -> None:
    watch = Watch(plan_of(workers=1, trials=5), [0, 1, 2])
    for trial, score in enumerate((math.nan, 0.1, 0.2)):
        ask = {"params": {}, "recipe": {"backbone": "resnet18", "image_size": 64, "epochs": 3}}
        fold = {"fold": 0, "score": score, "parts": {}, "params": 1, "seconds": 1.0}
        watch.hear(Event(seq=0, time=0.0, kind="ask", trial=trial, data=ask))
        watch.hear(Event(seq=0, time=0.0, kind="fold", trial=trial, data=fold))
    assert [trial.number for trial in watch.best(5)] == [2, 1, 0]
