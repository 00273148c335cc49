"""Failures told apart: who does not learn, what is alike, whose disk is full.

Shapes of the real messages were taken from the libraries that raise them.
"""

import errno
import math
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.policy.failures import (
    ALIKE,
    GRACE,
    alike,
    disk_full,
    not_learning,
    signature,
)
from spaces.errors import UserError


def fold(losses: list[float], scores: list[float] | None = None) -> list[dict[str, Any]]:
    scores = [0.0] * len(losses) if scores is None else scores
    return [
        {"fold": 1, "epoch": i, "loss": loss, "score": score}
        for i, (loss, score) in enumerate(zip(losses, scores, strict=True), start=1)
    ]


# --- not learning


def test_a_dead_network_does_not_learn() -> None:
    reason = not_learning(fold([1.0021, 1.0028, 1.0022, 1.0035]))
    assert reason == "no learning: the loss went from 1.0021 to 1.0035 in 4 epochs"
    assert not_learning(fold([1.0, 1.2, 1.1], [math.nan] * 3))


def test_a_loss_that_explodes_is_told_even_after_learning_began() -> None:
    reason = not_learning(fold([1.0, 0.7, 0.6, 40.0], [0.1, 0.3, 0.4, -0.2]))
    assert reason == "exploded: the loss went from 1.0000 to 40.0000 in 4 epochs"


@pytest.mark.parametrize(
    ("losses", "scores"),
    (
        pytest.param([1.0, 0.9, 0.8], [0.2, 0.2, 0.2], id="averaged weights lag"),
        pytest.param([1.0, 0.9, 0.8], [0.2, 0.1, 0.05], id="averaged weights lag and fall"),
        pytest.param([0.51, 0.5099, 0.5098], [0.90, 0.91, 0.92], id="smoothed labels near floor"),
        pytest.param([1.0, 0.6, 1.3, 1.2], [0.2, 0.1, 0.1, 0.1], id="high rate, once better"),
        pytest.param([1.0, 1.1, 1.2], [0.2, 0.2, 0.21], id="loss rises, score too (mixup)"),
        pytest.param([1.0, 1.1, 1.2], [math.nan, 0.0, 0.1], id="score defined at last"),
        pytest.param([-0.10, -0.12, -0.20], [0.1, 0.1, 0.1], id="negative loss that falls"),
        pytest.param([0.01, -0.3, -0.6], [0.1, 0.1, 0.1], id="a loss through zero"),
        pytest.param([0.01, -0.3, 0.5], [0.1, 0.1, 0.1], id="a loss through zero and back"),
        pytest.param([1.0, 0.5, 40.0], [0.1, 0.3, 0.4], id="loss up, averaged weights well"),
    ),
)
def test_any_sign_of_learning_is_enough(losses: list[float], scores: list[float]) -> None:
    assert not_learning(fold(losses, scores)) is None


@pytest.mark.parametrize("epochs", range(GRACE))
def test_nobody_is_judged_before_the_grace_period_is_over(epochs: int) -> None:
    assert not_learning(fold([1.0, 50.0][:epochs])) is None


@given(
    st.lists(
        st.tuples(st.integers(-5000, 5000), st.integers(-1000, 1000)), min_size=GRACE, max_size=12
    ),
    st.sampled_from([2.0**-20, 0.25, 8.0, 2.0**20]),
    st.sampled_from([2.0**-20, 0.25, 8.0, 2.0**20]),
)
def test_the_scales_of_loss_and_score_do_not_matter(
    points: list[tuple[int, int]], loss_scale: float, score_scale: float
) -> None:
    losses, scores = [p[0] / 1000 for p in points], [p[1] / 1000 for p in points]
    scaled = fold([x * loss_scale for x in losses], [x * score_scale for x in scores])
    assert bool(not_learning(fold(losses, scores))) == bool(not_learning(scaled))


# --- alike


def crash(depth: int, wrong: Any) -> str:
    """A real traceback, through a library and in one of two functions of ours."""

    def build(shape: tuple[int, ...]) -> None:
        raise RuntimeError(f"shape {list(shape)} at 0x{id(shape):x} is wrong, see /tmp/{wrong}/log")

    def load() -> None:
        math.sqrt(wrong)

    try:
        build((depth, 3, 64)) if depth else load()
    except Exception:
        return traceback.format_exc()
    raise AssertionError


def test_numbers_addresses_and_paths_do_not_make_a_difference() -> None:
    first, second = crash(1, "run-a"), crash(22, "run-b/x")
    assert first != second and signature(first) == signature(second)
    assert signature(first).startswith("RuntimeError: shape [#] at # is wrong, see PATH in ")
    assert signature(first).endswith("test_failures.py: build")


def test_another_place_or_message_makes_a_difference() -> None:
    assert signature(crash(0, "x")) != signature(crash(0, [1])) != signature(crash(1, "x"))
    same = "ValueError: no rows"
    one = f'Traceback (most recent call last):\n  File "/a/my_task.py", line 3, in score\n{same}'
    assert signature(one) != signature(one.replace("in score", "in targets"))


def test_the_innermost_frame_is_ours_not_a_librarys() -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "/work/search/trial.py", line 90, in reports\n'
        "    for report in self._fold(config, fold):\n"
        '  File "/home/me/my_task.py", line 7, in define\n'
        "    return torch.zeros(3)[5]\n"
        "           ~~~~~~~~~~~~~~^^^\n"
        '  File "/usr/lib/python3.11/site-packages/torch/x.py", line 1, in index\n'
        "    raise\n"
        "IndexError: index 5 is out of bounds\nfor dimension 0 with size 3\n"
    )
    assert signature(text) == "IndexError: index # is out of bounds in my_task.py: define"


def test_of_a_chain_of_errors_the_last_one_counts() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError:
        assert signature(traceback.format_exc()).startswith("ValueError: second in ")


def test_without_a_traceback_the_first_line_is_the_signature() -> None:
    assert signature("image_size 12 is too small\nuse 32") == "image_size # is too small"


def test_three_alike_give_the_first_of_them_whatever_came_between() -> None:
    crashes = [crash(n, f"run-{n}") for n in range(1, ALIKE + 1)]
    other = crash(0, "x")
    assert alike(crashes[:-1]) is alike([]) is None
    assert alike([other, crashes[0], other, *crashes[1:]]) == crashes[0]
    assert alike([other] * ALIKE + crashes) == other


# --- disk


class SafetensorError(Exception):
    """Tells it in words only."""


@pytest.mark.parametrize(
    "error",
    (
        OSError(errno.ENOSPC, "No space left on device", "/run/journal.jsonl"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("1000000 requested and 131056 written"),  # numpy
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        RuntimeError("Traceback ...\nOSError: [Errno 28] No space left on device: '/run'"),
    ),
)
def test_a_full_disk_is_known_however_it_is_told(error: Exception) -> None:
    assert disk_full(error)
    try:
        try:
            raise error
        except Exception as inner:
            raise UserError("cannot be written") from inner
    except UserError as outer:
        assert disk_full(outer) == disk_full(error)


def test_other_errors_are_no_full_disk() -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA out of memory")):
        assert disk_full(error) is None
