import io
import json
import math
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from search import leaderboard
from search.journal import Event
from search.leaderboard import COLUMNS, rank, read_trials, show, write_leaderboard
from search.results import results_frame
from search.run_folder import RunFolder, write_json
from search.selection import as_json
from search.table import fit
from search.trials import FAILED, FINISHED, PRUNED, RUNNING, TOO_BIG, Trials
from spaces.errors import UserError

FOLDS = 5
PARTS = ("mean_corr_cells", "max_corr_genes", "heg_corr", "hvg_corr")


def row(trial: int, score: float = math.nan, folds_done: int = FOLDS, **other: object) -> dict:
    plain = {
        "trial": trial, "kind": "trial", "name": f"{trial:04d}", "state": FINISHED,
        "backbone": "tf_efficientnetv2_s.in21k_ft_in1k", "image_size": 224, "score": score,
        "sd": 0.0123, "folds_done": folds_done, "pooled": score - 0.01, "rest": score - 0.02,
        "params": 20_177_488, "seconds": 4321.0, "peak_memory": 3 * 2**30, "reason": "",
        "recipe": json.dumps({"lr": 1e-3, "augment": {"flip": True}}),
    }  # fmt: skip
    plain |= {f"fold_{k}": score if k < folds_done else math.nan for k in range(FOLDS)}
    plain |= {f"part_{name}": score for name in PARTS}
    return plain | other


def baseline(name: str, score: float) -> dict:
    missing = dict.fromkeys(("image_size", "params", "peak_memory"), math.nan)
    return row(-1, score, kind="baseline", name=name, backbone=None, recipe="", **missing)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        [
            row(0, 0.41),
            row(1, 0.9, folds_done=1, state=PRUNED, reason="rung 0+4: 0.31 is below the best half"),
            row(2, 0.53),
            row(3, state=FAILED, folds_done=0, reason="[red]disk[/red] is full " + "x" * 200),
            row(4, 0.2, folds_done=3, state=RUNNING),
            row(5, state=TOO_BIG, folds_done=0, reason="micro-batch 1 needs more memory"),
            baseline("colour_ridge", 0.45),
            baseline("mean_profile", 0.188),
        ]
    )


def printed(frame: pd.DataFrame, width: int, top: int = 20, terminal: bool = False) -> str:
    out = io.StringIO()
    show(frame, top, Console(file=out, width=width, force_terminal=terminal, highlight=False))
    return out.getvalue()


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


rows = st.builds(
    row,
    st.integers(0, 50),
    st.one_of(st.just(math.nan), st.floats(-1, 1)),
    st.integers(0, FOLDS),
    state=st.sampled_from([FINISHED, PRUNED, FAILED, RUNNING]),
    kind=st.sampled_from(["trial", "baseline"]),
)


@given(st.lists(rows, max_size=12, unique_by=lambda r: r["trial"]), st.randoms())
def test_ranking_is_an_order_of_merit_and_keeps_every_row(rows: list[dict], random) -> None:
    frame = pd.DataFrame(rows, columns=list(row(0)))
    ranked = rank(frame)
    assert sorted(ranked["trial"]) == sorted(frame["trial"])

    done = (ranked["state"] == FINISHED).tolist()
    assert done == sorted(done, reverse=True), "an unfinished row stands above a finished one"
    scores = ranked["score"].fillna(-2).tolist()
    assert scores[: sum(done)] == sorted(scores[: sum(done)], reverse=True)
    others = list(zip(ranked["folds_done"], scores, strict=True))[sum(done) :]
    assert others == sorted(others, reverse=True)
    assert ranked["rank"].dropna().tolist() == list(range(1, sum(done) + 1))

    random.shuffle(rows)
    shuffled = rank(pd.DataFrame(rows, columns=list(row(0))))
    pd.testing.assert_frame_equal(shuffled, ranked, check_dtype=False)


def test_baselines_are_ranked_among_the_finished(frame: pd.DataFrame) -> None:
    ranked = rank(frame)
    assert ranked["name"].tolist()[:4] == ["0002", "colour_ridge", "0000", "mean_profile"]
    assert ranked["rank"].tolist()[:4] == [1, 2, 3, 4]
    assert ranked["trial"].tolist()[4:] == [4, 1, 3, 5], "by folds done, then score, then trial"
    assert ranked["rank"][4:].isna().all()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_width(frame: pd.DataFrame, width: int, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False)
    with console.capture() as captured:
        show(frame, 20, console)
    from rich.text import Text

    text = Text.from_ansi(captured.get()).plain
    assert max(map(len, text.splitlines())) <= width
    assert ("\x1b" in captured.get()) is terminal, "colours on a terminal and nowhere else"
    assert captured.get().isascii() or terminal


def test_a_wider_terminal_shows_more_columns(frame: pd.DataFrame) -> None:
    narrow, wide, huge = (lines_of(printed(frame, width))[0] for width in (80, 120, 250))
    assert {"trial", "model", "score", "sd", "rest", "folds", "state"} <= set(narrow)
    assert set(narrow) < set(wide) < set(huge)
    assert {"pooled", *(f"fold{k}" for k in range(FOLDS))} <= set(wide)
    assert "params" in huge and "heg" in huge


def test_numbers_are_never_cut(frame: pd.DataFrame) -> None:
    for width in (60, 80, 120, 250):
        best = printed(frame, width).splitlines()[1].split()
        assert "0.5300" in best and "0002" in best and "finished" in best


def test_the_models_name_gives_way_when_the_width_is_short(frame: pd.DataFrame) -> None:
    assert "tf_efficientnetv2_s.in21k_ft_in1k" in printed(frame, 250)
    for width in (50, 80, 120):
        assert re.search(r" tf_eff[\w.]*\.\. +", printed(frame, width))
        assert max(map(len, printed(frame, width).splitlines())) <= width


def test_what_went_wrong_is_told_word_for_word(frame: pd.DataFrame) -> None:
    text = printed(frame, 80)
    assert "0003 failed: [red]disk[/red] is full" in text
    assert "0005 too big: micro-batch 1 needs more memory" in text


def test_top_limits_trials_but_never_hides_a_baseline(frame: pd.DataFrame) -> None:
    text = printed(frame, 80, top=1)
    assert "0002" in text and "colour_ridge" in text and "mean_profile" in text
    assert "0000" not in text
    assert "and 1 finished, 1 running, 1 pruned, 1 failed, 1 too big" in text


def test_an_empty_leaderboard_says_so(tmp_path) -> None:
    assert "no trial has reported yet" in printed(pd.DataFrame([]), 80)
    write_leaderboard(RunFolder(tmp_path), pd.DataFrame([]))
    assert list(read_trials(RunFolder(tmp_path)).columns) == list(COLUMNS)
    assert json.loads(as_json(rank(pd.DataFrame([]))))["rows"] == []


def test_the_rows_of_a_run_have_the_columns_of_the_leaderboard(tmp_path) -> None:
    trials = Trials()
    ask = {"params": {}, "recipe": {"backbone": "resnet10t", "image_size": 64}, "source": "first"}
    trials.apply(Event(seq=0, time=0.0, kind="ask", trial=0, data=ask))
    fold = {"fold": 2, "score": 0.25, "parts": {"heg_corr": 0.5}, "params": 1234, "seconds": 0.5}
    trials.apply(Event(seq=1, time=1.0, kind="fold", trial=0, data=fold))
    mean = {
        "name": "mean_profile", "fold_scores": [0.1, 0.2, 0.3],
        "fold_parts": [{"heg_corr": 0.0}] * 3, "pooled": -0.03, "seconds": 0.1,
    }  # fmt: skip
    write_leaderboard(RunFolder(tmp_path), results_frame(trials, [mean], [2, 0, 1]))
    lines = lines_of(printed(read_trials(RunFolder(tmp_path)), 120))
    assert lines[1][:3] == ["1", "mean_profile", "0.2000"], "no size where there is no model"
    assert lines[2][:4] == ["0000", "resnet10t", "64", "0.2500"]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=15),
    st.integers(10, 200),
)
def test_fit_takes_whole_groups_and_stays_in_the_room(
    columns: list[tuple[int, int]], room: int
) -> None:
    columns = [(8, 1), *columns]  # a table always has columns that stay
    widths, importance = [w for w, _ in columns], [i for _, i in columns]
    kept = fit(widths, importance, room)
    levels = {importance[i] for i in kept}
    assert kept == [i for i, level in enumerate(importance) if level in levels]
    assert {i for i, level in enumerate(importance) if level == 1} <= set(kept)
    if levels != {1}:
        assert sum(widths[i] + 1 for i in kept) - 1 <= room


def test_files_give_back_the_rows(frame: pd.DataFrame, tmp_path) -> None:
    run = RunFolder(tmp_path)
    write_leaderboard(run, frame)
    pd.testing.assert_frame_equal(read_trials(run), frame, check_dtype=False)
    table = pd.read_csv(run.leaderboard, dtype={"name": str})
    assert table["name"].tolist() == rank(frame)["name"].tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "trials.parquet"]


def test_a_frame_without_a_needed_column_is_refused(frame: pd.DataFrame, tmp_path) -> None:
    with pytest.raises(ValueError, match="pooled"):
        write_leaderboard(RunFolder(tmp_path), frame.drop(columns="pooled"))
    assert not list(tmp_path.iterdir())


def test_unreadable_files_are_the_users_fault(frame: pd.DataFrame, tmp_path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_trials(run)
    run.trials.write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="not readable"):
        read_trials(run)
    frame.to_parquet(run.trials)
    with pytest.raises(UserError, match="format none; this version reads format 2"):
        read_trials(run)


def test_json_holds_null_for_the_unknown_and_recipes_as_objects(frame: pd.DataFrame) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    data = json.loads(as_json(rank(frame).head(5)), parse_constant=refuse)
    assert [r["name"] for r in data["rows"]][:2] == ["0002", "colour_ridge"]
    assert len(data["rows"]) == 5
    assert data["rows"][0]["recipe"]["augment"] == {"flip": True}
    assert data["rows"][1]["params"] is None and data["rows"][1]["recipe"] is None
    assert data["rows"][4]["rank"] is None


def test_the_command_prints_the_table_and_the_json(frame, tmp_path, capsys) -> None:
    run = RunFolder(tmp_path)
    write_json(run.run, {})
    write_leaderboard(run, frame)
    assert leaderboard.main([str(tmp_path), "--top", "1"]) == 0
    assert "0002" in capsys.readouterr().out
    assert leaderboard.main([str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(frame)


def test_the_command_refuses_an_impossible_top(tmp_path) -> None:
    with pytest.raises(UserError, match="--top is 0"):
        leaderboard.main([str(tmp_path), "--top", "0"])
