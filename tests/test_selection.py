"""Rows and columns of the leaderboard that a person asks for."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import leaderboard
from search.leaderboard import rank, write_leaderboard
from search.run_folder import RunFolder, write_json
from search.selection import Filter, Selection, as_csv, as_json, flat, joined
from search.trials import FINISHED, PRUNED
from spaces.errors import UserError
from tests.test_leaderboard import baseline, row

RECIPES: list[dict[str, Any]] = [
    {"lr": 0.003, "head": "linear", "augment": {"flip": True}},
    {"lr": 0.001, "head": "mlp", "augment": {"flip": False}},
    {"lr": 0.01, "head": "mlp", "augment": {"flip": True}, "pca": 16},
]


@pytest.fixture
def frame() -> pd.DataFrame:
    backbones = ["resnet18", "resnet50", "vit_tiny"]
    trials = [
        row(i, score, state=state, backbone=backbones[i], recipe=json.dumps(RECIPES[i]),
            folds_done=5 if state == FINISHED else 1, seconds=seconds)
        for i, (score, state, seconds) in enumerate(
            [(0.7, FINISHED, 30.0), (0.9, PRUNED, 10.0), (0.8, FINISHED, 20.0)]
        )
    ]  # fmt: skip
    return pd.DataFrame([*trials, baseline("colour_ridge", 0.75)])


def selected(frame: pd.DataFrame, **asked: Any) -> list[int]:
    filters = tuple(Filter.parse(text) for text in asked.pop("filters", ()))
    return Selection(filters=filters, **asked).apply(rank(frame))["trial"].tolist()


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([], [2, -1, 0, 1]),
        (["backbone=resnet*"], [0, 1]),
        (["backbone=RESNET*"], [0, 1]),
        (["model=colour*"], [-1]),
        (["score>0.75"], [2, 1]),
        (["score >= 0.75"], [2, -1, 1]),
        (["score<0.75"], [0]),
        (["score<=0.9", "state=finished"], [2, -1, 0]),
        (["image_size=224"], [2, 0, 1]),
        (["px=224.0"], [2, 0, 1]),
        (["lr=1e-3"], [1]),
        (["lr>0.002"], [2, 0]),
        (["augment.flip=true"], [2, 0]),
        (["pca=16"], [2]),
        (["pca="], [-1, 0, 1]),
        (["time<25"], [2, 1]),
        (["backbone=x=y"], []),
    ],
)
def test_filters_keep_what_fulfils_all_of_them(
    frame: pd.DataFrame, texts: list[str], kept: list[int]
) -> None:
    assert selected(frame, filters=texts) == kept


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("seconds", [1, 2, 0, -1]),
        ("-time", [-1, 0, 2, 1]),
        ("-lr", [2, 0, 1, -1]),
        ("lr", [1, 0, 2, -1]),
        ("backbone", [0, 1, 2, -1]),
        ("-backbone", [2, 1, 0, -1]),
        ("state", [2, -1, 0, 1]),
        ("-pca", [2, -1, 0, 1]),
    ],
)
def test_rows_are_sorted_and_the_unknown_comes_last(
    frame: pd.DataFrame, sort: str, order: list[int]
) -> None:
    assert selected(frame, sort=sort) == order


@given(
    st.lists(st.one_of(st.just(math.nan), st.floats(-5, 5)), min_size=1, max_size=9),
    st.booleans(),
)
def test_sorting_loses_no_row_and_keeps_the_order_of_equals(
    values: list[float], descending: bool
) -> None:
    values = [round(value) if value == value else value for value in values]
    ranked = rank(pd.DataFrame([row(i, 0.5, seconds=value) for i, value in enumerate(values)]))
    found = Selection(sort="-seconds" if descending else "seconds").apply(ranked)
    there = [i for i in range(len(values)) if values[i] == values[i]]
    wanted = sorted(there, key=lambda i: -values[i] if descending else values[i])
    assert found["trial"].tolist() == [*wanted, *(i for i in range(len(values)) if i not in there)]


def test_columns_are_those_asked_for_in_their_order(frame: pd.DataFrame) -> None:
    selection = Selection(columns=("lr", "trial", "model", "time", "augment.flip"))
    found = selection.apply(rank(frame))
    names = selection.names(found)
    assert names == ["lr", "trial", "model", "seconds", "augment.flip"]
    rows = json.loads(as_json(found, names))["rows"]
    assert rows[0] == {"lr": 0.01, "trial": 2, "model": "vit_tiny", "seconds": 20.0,
                       "augment.flip": True}  # fmt: skip
    assert rows[1]["lr"] is None and rows[1]["model"] == "colour_ridge"
    table = list(csv.reader(io.StringIO(as_csv(found, names))))
    assert table[0] == names and len(table) == 5 and table[2][0] == ""


def test_the_csv_is_the_ranked_table(frame: pd.DataFrame) -> None:
    ranked = rank(frame)
    again = pd.read_csv(io.StringIO(as_csv(Selection().apply(ranked))))
    assert list(again.columns) == list(ranked.columns)
    assert again["trial"].tolist() == ranked["trial"].tolist()


def test_an_unknown_column_is_refused_with_near_names(frame: pd.DataFrame) -> None:
    with pytest.raises(UserError) as caught:
        Selection(
            sort="-scor", filters=(Filter.parse("augment.flp=1"),), columns=("lr", "heads"),
        ).apply(rank(frame))  # fmt: skip
    sort, asked, columns = caught.value.faults
    assert "--sort names 'scor'" in sort and "score" in sort
    assert "--filter names 'augment.flp'" in asked and "augment.flip" in asked
    assert "--columns names 'heads'" in columns and "head" in columns


@pytest.mark.parametrize("text", ["score", "=x", "score>high", ""])
def test_a_filter_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--filter"):
        Filter.parse(text)


def test_an_empty_leaderboard_can_be_selected_from() -> None:
    found = Selection(sort="lr", columns=("lr", "score")).apply(rank(pd.DataFrame([])))
    assert json.loads(as_json(found, ["lr", "score"]))["rows"] == []


def test_nested_fields_of_a_recipe_have_names_of_their_own() -> None:
    assert flat({"lr": 1, "augment": {"flip": True}, "task": None}) == {
        "lr": 1, "augment.flip": True, "task": None,
    }  # fmt: skip


def test_a_minus_after_sort_is_no_option() -> None:
    assert joined(["RUN", "--sort", "-score", "--top", "3"]) == [
        "RUN", "--sort=-score", "--top", "3",
    ]  # fmt: skip


# --- the command


@pytest.fixture
def run(frame: pd.DataFrame, tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    write_json(run.run, {})
    write_leaderboard(run, frame)
    return run


def printed(run: RunFolder, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert leaderboard.main([str(run.root), *args]) == 0
    return capsys.readouterr().out


def test_the_command_sorts_filters_and_shows_columns(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(run, capsys, "--sort", "-lr", "--filter", "lr>0", "--columns", "trial,lr,state")
    assert [line.split() for line in text.splitlines()] == [
        ["trial", "lr", "state"], ["0002", "0.01", "finished"], ["0000", "0.003", "finished"],
        ["0001", "0.001", "pruned"],
    ]  # fmt: skip
    assert "no row passes --filter" in printed(run, capsys, "--filter", "score>2")


def test_the_command_prints_csv_and_json(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(run, capsys, "--csv", "--top", "2", "--columns", "trial,score")
    assert text.splitlines() == ["trial,score", "2,0.8", "-1,0.75"]
    rows = json.loads(printed(run, capsys, "--json", "--filter", "kind=trial"))["rows"]
    assert [row["trial"] for row in rows] == [2, 0, 1] and rows[0]["recipe"]["pca"] == 16


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["--top", "0"], "--top is 0; it must be 1 or more"),
        (["--json", "--csv"], "--json and --csv are both given; leave one out"),
        (["--trial", "1", "--json"], "--trial shows no table of trials; leave out --json"),
        (["--follow", "--top", "3", "--sort", "lr"],
         "--follow shows no table of trials; leave out --top, --sort"),
        (["--compare", "0", "1", "--csv"], "--compare shows no table of trials; leave out --csv"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    run: RunFolder, args: list[str], fault: str
) -> None:
    with pytest.raises(UserError) as caught:
        leaderboard.main([str(run.root), *args])
    assert caught.value.faults == (fault,)


def test_two_things_at_once_are_a_fault_of_syntax(run: RunFolder) -> None:
    with pytest.raises(SystemExit) as caught:
        leaderboard.main([str(run.root), "--trial", "1", "--follow"])
    assert caught.value.code == 2
