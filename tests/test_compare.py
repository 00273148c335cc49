"""Two trials side by side."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from search import leaderboard
from search.compare import compare, show_comparison
from search.leaderboard import write_leaderboard
from search.run_folder import RunFolder, write_json
from search.trials import PRUNED
from spaces.errors import UserError
from tests.test_leaderboard import FOLDS, baseline, row

A = [0.70, 0.72, 0.68, 0.71, 0.69]
B = [0.72, 0.75, 0.69, 0.74, 0.70]


def trial(number: int, scores: list[float], **recipe: Any) -> dict:
    scores = scores + [math.nan] * (FOLDS - len(scores))
    folds = {f"fold_{k}": score for k, score in enumerate(scores)}
    plain = {"backbone": "resnet18", "lr": 0.01, "augment": {"flip": True, "hue": 0.0}, **recipe}
    return row(number, float(np.nanmean(scores)), recipe=json.dumps(plain), **folds)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        [
            trial(0, A),
            trial(1, B, lr=0.003, augment={"flip": False, "hue": 0.0}, pca=16),
            trial(2, A[:1], backbone="[bold]vit[/bold]") | {"state": PRUNED},
            trial(3, []) | {"state": PRUNED},
            baseline("colour_ridge", 0.45),
        ]
    )


def shown(frame: pd.DataFrame, a: int, b: int, width: int = 80, lone: bool = False) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False)
    show_comparison(compare(frame, a, b, lone), console)
    return text.getvalue()


def test_what_differs_in_the_recipes_is_found(frame: pd.DataFrame) -> None:
    assert compare(frame, 0, 1).recipe == (
        ("lr", 0.01, 0.003), ("augment.flip", True, False), ("pca", None, 16),
    )  # fmt: skip
    assert compare(frame, 0, 3).recipe == ()


def test_the_interval_is_the_paired_t_tests(frame: pd.DataFrame) -> None:
    found = compare(frame, 0, 1)
    assert found.folds == tuple((k, A[k], B[k]) for k in range(FOLDS))
    wanted = stats.ttest_rel(B, A).confidence_interval(0.95)
    assert found.gain is not None
    assert (found.gain.low, found.gain.high) == pytest.approx((wanted.low, wanted.high))
    assert found.gain.difference == pytest.approx(np.mean(B) - np.mean(A))
    turned = compare(frame, 1, 0).gain
    assert turned is not None and turned.difference == pytest.approx(-found.gain.difference)


def test_only_folds_that_both_have_are_compared(frame: pd.DataFrame) -> None:
    assert compare(frame, 1, 2).folds == ((0, B[0], A[0]),)
    assert compare(frame, 1, 3).gain is None


def test_scores_by_thresholds_are_compared_between_finished_trials_only(
    frame: pd.DataFrame,
) -> None:
    assert compare(frame, 0, 1, lone=True).gain is not None
    found = compare(frame, 1, 2, lone=True)
    assert found.gain is None and not found.folds
    assert "only a finished trial's folds have thresholds" in shown(frame, 1, 2, lone=True)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_is_shown_in_the_width_there_is(frame: pd.DataFrame, width: int) -> None:
    for pair in ((0, 1), (0, 2), (1, 3)):
        assert max(map(len, shown(frame, *pair, width).splitlines())) <= width
    text = shown(frame, 0, 1, width)
    for words in ("augment.flip", "True", "False", "0.7500", "+0.0300", "trial 1 minus trial 0"):
        assert words in text, words
    assert "95 % interval" in text and "leaves out 0" in text


def test_what_says_little_is_said_to(frame: pd.DataFrame) -> None:
    assert "one fold has no interval" in shown(frame, 0, 2)
    assert "no fold in common" in shown(frame, 0, 3)
    assert "the same" in shown(frame, 0, 3)
    assert "[bold]vit[/bold]" in shown(frame, 0, 2)
    same = pd.DataFrame([trial(0, A), trial(1, [A[1], A[0], *A[2:]])])
    assert "may be chance" in shown(same, 0, 1)


def test_the_command_refuses_trials_that_are_not_there(
    frame: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    write_json(run.run, {})
    write_leaderboard(run, frame)
    assert leaderboard.main([str(tmp_path), "--compare", "0", "1"]) == 0
    assert "trial 1 minus trial 0" in capsys.readouterr().out
    with pytest.raises(UserError, match="no trial 7; its trials go up to 3"):
        leaderboard.main([str(tmp_path), "--compare", "0", "7"])
    with pytest.raises(UserError, match="trial 1 twice"):
        leaderboard.main([str(tmp_path), "--compare", "1", "1"])
