"""Rungs: compared at the same rung only, a share goes on, the clearly worse are cut."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.policy.noise import epoch_noise, fold_noise
from search.policy.rungs import CUT, GOES_ON, WAITS, Rung, Rungs, Verdict, make_rungs

FIRST, FOLD = Rung(0, 2), Rung(1, 0)
VALUES = st.lists(st.floats(-1, 1), min_size=1, max_size=40, unique=True)


def rungs_of(keep: float = 0.5, **options: int) -> Rungs:
    rungs = Rungs((FIRST, FOLD), (keep, keep), **options)
    rungs.fold_noise = 0.0
    return rungs


def arrive(rungs: Rungs, rung: Rung, values: list[float], noise: float = 0.0) -> list[Verdict]:
    """First verdicts, arriving one after another; who becomes hopeless is cut on the way."""
    verdicts = []
    for trial, value in enumerate(values):
        rungs.arrive(trial, rung, value, noise)
        verdicts.append(rungs.judge(trial, rung))
        rungs.hear(trial, rung, verdicts[-1].verdict)
        while (worst := rungs.hopeless(rung)) is not None:
            rungs.hear(worst.trial, rung, worst.verdict)
    return verdicts


def test_rungs_of_a_usual_plan() -> None:
    assert make_rungs(5, 30) == (Rung(0, 3), Rung(0, 8), Rung(1, 0), Rung(3, 0))
    assert make_rungs(2, 1) == (Rung(1, 0),)


@given(st.integers(2, 10), st.integers(1, 200))
def test_no_rung_before_the_second_epoch_or_at_the_very_end(folds: int, epochs: int) -> None:
    rungs = make_rungs(folds, epochs)
    assert list(rungs) == sorted(set(rungs))
    assert all(2 <= r.epoch < epochs if r.folds == 0 else r.epoch == 0 for r in rungs)
    assert all(r.folds < folds and Rung.parse(str(r)) == r for r in rungs)


@given(VALUES, st.sampled_from([1 / 4, 1 / 3, 1 / 2, 2 / 3]))
def test_passes_are_a_share_of_the_arrivals_and_go_to_the_best(
    values: list[float], keep: float
) -> None:
    rungs = rungs_of(keep)
    arrive(rungs, FIRST, values)
    while (verdict := rungs.next_pass()) is not None:
        others = [values[trial] for _, trial in rungs.waiting()]
        assert values[verdict.trial] == max(others)
        rungs.hear(verdict.trial, FIRST, verdict.verdict)
    passed = sum(rungs.passed(trial, FIRST) for trial in range(len(values)))
    assert passed == math.ceil(keep * len(values) - 1e-9) or not rungs.waiting()


def test_better_and_better_arrivals_do_not_all_go_on() -> None:
    rungs = rungs_of(1 / 4)
    verdicts = arrive(rungs, FIRST, [i / 100 for i in range(100)])
    assert sum(v.verdict == GOES_ON for v in verdicts) == 25


def test_nobody_is_cut_before_there_is_a_cohort() -> None:
    verdicts = arrive(rungs_of(cohort=5), FIRST, [0.9, 0.1, 0.0, -5.0])
    assert [v.verdict for v in verdicts] == [GOES_ON, WAITS, WAITS, WAITS]


def test_who_is_worse_by_less_than_the_noise_waits() -> None:
    values = [0.5, 0.6, 0.62, 0.64, 0.58, 0.1]
    calm, noisy = (arrive(rungs_of(), FIRST, values, noise) for noise in (0.0, 0.1))
    assert [v.verdict for v in calm][-2:] == [CUT, CUT]
    assert [v.verdict for v in noisy][-2:] == [WAITS, CUT]


@pytest.mark.parametrize("rung", [FIRST, FOLD])
def test_nobody_is_clearly_worse_while_the_noise_is_not_known(rung: Rung) -> None:
    rungs = rungs_of()
    rungs.fold_noise = math.nan
    verdicts = arrive(rungs, rung, [0.5, 0.6, 0.62, 0.64, 0.58, 0.1], noise=math.nan)
    assert CUT not in [v.verdict for v in verdicts]


def test_folds_that_disagree_widen_the_margin_between_folds() -> None:
    values = [0.5, 0.6, 0.62, 0.64, 0.58]
    rungs = rungs_of()
    rungs.fold_noise = 0.1
    assert arrive(rungs, FOLD, values)[-1].verdict == WAITS


def test_there_is_room_for_so_many_inside_the_first_fold() -> None:
    values = [random.Random(1).random() for _ in range(60)]
    inside, between = rungs_of(room=5), rungs_of(room=5)
    arrive(inside, FIRST, values, noise=1.0)
    between.fold_noise = 1.0
    arrive(between, FOLD, values)
    assert len(inside.waiting()) <= 5 < len(between.waiting())


def test_values_at_another_rung_do_not_count() -> None:
    rungs = rungs_of()
    arrive(rungs, FIRST, [0.9] * 10)
    rungs.arrive(99, FOLD, 0.1, 0.0)
    assert rungs.judge(99, FOLD).verdict == GOES_ON


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_value_that_is_not_finite_is_cut_even_alone(value: float) -> None:
    rungs = rungs_of()
    rungs.arrive(0, FIRST, value, 0.0)
    verdict = rungs.judge(0, FIRST)
    assert verdict.verdict == CUT and str(value) in verdict.reason


def test_the_reason_tells_value_cut_and_peers() -> None:
    verdict = arrive(rungs_of(), FIRST, [0.5, 0.4, 0.3, 0.2])[-1]
    assert verdict.reason == (
        "stopped at fold 1 epoch 2: 0.2000 < cut 0.4000 by more than noise 0.0000; 4 there so far"
    )


def test_an_extra_pass_is_granted_beyond_the_share() -> None:
    rungs = rungs_of()
    arrive(rungs, FIRST, [0.9, 0.8])
    verdict = rungs.extra_pass(1, "a worker is idle")
    rungs.hear(1, FIRST, verdict.verdict)
    assert rungs.passed(1, FIRST) and not rungs.waiting() and "idle" in verdict.reason


def test_a_steady_rise_is_no_noise_and_jitter_is() -> None:
    assert epoch_noise([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(epoch_noise([0.1, 0.2]))
    rng = random.Random(0)
    drawn = [epoch_noise([i / 10 + rng.gauss(0, 0.05) for i in range(5)]) for _ in range(2000)]
    assert math.sqrt(sum(x * x for x in drawn) / len(drawn)) == pytest.approx(0.05, rel=0.1)


def test_fold_noise_is_what_trial_and_fold_do_not_explain() -> None:
    additive = [[t / 10 + f for f in (0.0, 0.3, 0.1)] for t in range(5)]
    assert fold_noise(additive) == pytest.approx(0, abs=1e-12)
    rng = random.Random(0)
    noisy = [[x + rng.gauss(0, 0.02) for x in row] for row in additive * 100]
    assert fold_noise(noisy) == pytest.approx(0.02, rel=0.1)
    assert math.isnan(fold_noise([[0.5, 0.6]])) and math.isnan(fold_noise([]))
