"""The anytime benchmark: what stands at a moment, when a score is passed, and what is held out."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from anytime_arms.arms import Point, Result
from anytime_arms.caruana import greedy
from anytime_arms.hand_ins import ENSEMBLE, SINGLE, HandInLog, read_hand_ins
from anytime_arms.problem import _hold_out
from anytime_arms.report import over_time, passing, standing, summary


def result_of(arm: str, *tests: tuple[float, float], seed: int = 0) -> Result:
    """An arm of one minute with ensembles of these true scores at these seconds."""
    points = tuple(Point(seconds=s, kind=ENSEMBLE, known=t + 0.1, test=t) for s, t in tests)
    return Result(
        arm=arm, data_set="sample", seed=seed, title="made up", minutes=1.0, mean_profile=0.2,
        begun=3, finished=len(tests), exit=60.0, points=points,
    )  # fmt: skip


def test_before_the_first_hand_in_the_mean_profile_stands() -> None:
    result = result_of("ours", (30, 0.5), (45, 0.4))
    known, test = standing(result, ENSEMBLE, 0.4)
    assert math.isnan(known) and test == 0.2
    assert standing(result, ENSEMBLE, 0.5) == (0.6, 0.5)
    assert standing(result, ENSEMBLE, 1.0) == (0.5, 0.4), "the newest counts, not the best"
    assert standing(result, SINGLE, 1.0)[1] == 0.2


def test_passing_counts_from_the_first_time_and_for_good() -> None:
    peer = result_of("optuna", (20, 0.7), (50, 0.5))
    assert passing(result_of("ours", (12, 0.4), (24, 0.5), (36, 0.45), (48, 0.6)), peer) == (
        0.4,
        0.8,
    )
    assert passing(result_of("ours", (12, 0.6), (24, 0.4)), peer) == (0.2, math.inf)
    assert passing(result_of("ours", (12, 0.4)), peer) == (math.inf, math.inf)


def test_text_fits_a_page_and_tells_the_median() -> None:
    results = [
        result
        for seed, seconds in enumerate((6, 12, 48))
        for result in (
            result_of("ours", (seconds, 0.6), seed=seed),
            result_of("optuna", (30, 0.5), seed=seed),
        )
    ]
    text = over_time(results) + summary(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "median 20%, for good 20%; asked: at most 33%" in text


def test_greedy_weighs_members_by_repeating_them() -> None:
    true_TN = np.array([[0.0, 1.0, 2.0, 3.0]])
    preds = [true_TN + 1.0, true_TN - 2.0, true_TN + 5.0]
    chosen, score = greedy(preds, lambda pred_TN: -float(np.abs(pred_TN - true_TN).mean()))
    assert sorted(chosen) == [0, 0, 1] and score == 0.0


def test_hand_ins_are_read_as_written_in_the_order_of_their_moments(tmp_path: Path) -> None:
    log = HandInLog(tmp_path / "log", began=100.0)
    log.add(130.0, ENSEMBLE, 0.5, np.ones((2, 3)))
    log.add(110.0, SINGLE, 0.4, np.zeros((2, 3)))
    first, second = read_hand_ins(tmp_path / "log")
    assert (first.seconds, first.kind, first.known) == (10.0, SINGLE, 0.4)
    assert second.seconds == 30.0 and (second.pred_TS == 1).all()
    assert not list(read_hand_ins(tmp_path))


def test_a_section_that_is_held_out_leaves_no_row_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "train").mkdir(parents=True)
    ids = [f"TRAIN_{i}" for i in range(6)]
    for name in ids:
        Image.new("RGB", (4, 4)).save(source / f"train/{name}.png")
    paths = [f"./train/{name}.png" for name in ids]
    genes = {"A": np.arange(6.0), "B": np.arange(6.0) + 10}
    pd.DataFrame({"ID": ids, "path": paths, **genes}).to_csv(source / "train.csv", index=False)
    sections = ["S1", "S2"] * 3
    slides = pd.DataFrame({"ID": ids[::-1], "section": sections})  # in another order
    slides.to_csv(source / "train_slides.csv", index=False)

    (tmp_path / "data").mkdir()
    assert _hold_out(source, tmp_path / "data", seed=3) == "S2"
    train, test = (pd.read_csv(tmp_path / f"data/{part}.csv") for part in ("train", "test"))
    truth = pd.read_csv(tmp_path / "data/truth/test.csv")
    assert set(test["ID"]) == set(slides["ID"][slides["section"] == "S2"]) == set(truth["ID"])
    assert set(train["ID"]) == set(ids) - set(test["ID"])
    assert list(test.columns) == ["ID", "path"]
    assert truth["A"].tolist() == [ids.index(name) for name in test["ID"]]
    for table in (train, test):
        assert all((tmp_path / "data" / path).is_file() for path in table["path"])
    assert not (pd.read_csv(tmp_path / "data/sample_submission.csv")[["A", "B"]] != 0).any().any()
    assert len(list((tmp_path / "data/train").iterdir())) == 3
