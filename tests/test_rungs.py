"""Rungs: compared at the same rung only, the best share goes on, nobody is judged alone."""

import math

from hypothesis import given
from hypothesis import strategies as st

from search.policy.rungs import Rung, Rungs, make_rungs


def arrive(rungs: Rungs, rung: Rung, values: list[float]) -> list[bool]:
    """Whether each goes on, arriving one after another."""
    going = []
    for trial, value in enumerate(values):
        going.append(rungs.judge(rung, trial, value).go_on)
        rungs.record(str(rung), trial, value)
    return going


def test_rungs_of_a_usual_plan() -> None:
    assert make_rungs(5, 30) == (Rung(0, 3), Rung(0, 10), Rung(1, 0), Rung(3, 0))
    assert make_rungs(2, 1) == (Rung(1, 0),)


@given(st.integers(2, 10), st.integers(1, 200))
def test_no_rung_before_an_epoch_or_at_the_very_end(folds: int, epochs: int) -> None:
    rungs = make_rungs(folds, epochs)
    assert list(rungs) == sorted(set(rungs))
    assert all(1 <= r.epoch < epochs if r.folds == 0 else r.epoch == 0 for r in rungs)
    assert all(r.folds < folds for r in rungs)


def test_the_first_arrivals_always_go_on() -> None:
    assert arrive(Rungs(least=3), Rung(0, 1), [0.1, 0.0, -5.0]) == [True] * 3


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40, unique=True))
def test_a_trial_is_cut_exactly_when_enough_better_ones_were_there(values: list[float]) -> None:
    rungs = Rungs(keep=0.5, least=3)
    for trial, go_on in enumerate(arrive(rungs, Rung(1, 0), values)):
        better = sum(v > values[trial] for v in values[:trial])
        assert go_on == (better < max(3, math.ceil((trial + 1) / 2)))


def test_values_at_another_rung_do_not_count() -> None:
    rungs = Rungs(least=1)
    arrive(rungs, Rung(0, 2), [0.9] * 10)
    assert rungs.judge(Rung(0, 4), 99, 0.1).go_on


def test_a_value_that_is_not_finite_is_stopped_even_alone() -> None:
    verdict = Rungs().judge(Rung(0, 1), 0, math.nan)
    assert not verdict.go_on and "nan" in verdict.reason


def test_the_reason_tells_value_cut_and_peers() -> None:
    rungs = Rungs(least=1)
    arrive(rungs, Rung(0, 4), [0.5, 0.4, 0.3])
    reason = rungs.judge(Rung(0, 4), 17, 0.2).reason
    assert reason == "stopped at fold 1 epoch 4: 0.2000 < cut 0.4000, 4 there so far"


def test_recording_twice_changes_nothing() -> None:
    once, twice = Rungs(), Rungs()
    for rungs, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            for trial in range(6):
                rungs.record("0+1", trial, trial / 10)
    assert once == twice
