from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.data.folds import (
    check_folds,
    make_folds,
    not_targets,
    read_folds,
    read_groups,
    write_folds,
)
from search.data.table import Table, drop, read_table
from spaces.errors import UserError
from tests.datafolder import LAYOUT, make_folder, write_csv

groups_lists = st.lists(st.sampled_from([f"g{i}" for i in range(12)]), min_size=2, max_size=80)
seeds = st.integers(0, 2**32)


def ids_of(count: int) -> list[str]:
    return [f"row{i}" for i in range(count)]


@given(count=st.integers(2, 100), k=st.integers(2, 12), seed=seeds)
def test_ungrouped_rows_are_each_in_one_fold_and_sizes_differ_by_one_at_most(
    count: int, k: int, seed: int
) -> None:
    k = min(k, count)
    fold_N = make_folds(ids_of(count), None, k, seed)
    assert fold_N.shape == (count,) and fold_N.dtype == np.int64
    rows_K = np.bincount(fold_N, minlength=k)
    assert len(rows_K) == k and rows_K.sum() == count and np.ptp(rows_K) <= 1


@given(groups=groups_lists, k=st.integers(2, 12), seed=seeds)
def test_a_group_is_never_in_two_folds_and_every_fold_has_rows(
    groups: list[str], k: int, seed: int
) -> None:
    names = set(groups)
    if len(names) < 2:
        with pytest.raises(UserError, match="at least 2"):
            make_folds(ids_of(len(groups)), groups, None, seed)
        return
    k = min(k, len(names))
    fold_N = make_folds(ids_of(len(groups)), groups, k, seed)
    assert set(fold_N.tolist()) == set(range(k))
    assert len(set(zip(groups, fold_N.tolist(), strict=True))) == len(names)
    check_folds(fold_N, groups, min_rows=1)


@given(groups=groups_lists, k=st.integers(2, 12), seed=seeds)
def test_grouped_folds_are_balanced_to_within_the_largest_group(
    groups: list[str], k: int, seed: int
) -> None:
    names = sorted(set(groups))
    if len(names) < 2:
        return
    rows_K = np.bincount(make_folds(ids_of(len(groups)), groups, min(k, len(names)), seed))
    largest = max(groups.count(name) for name in names)
    assert np.ptp(rows_K) <= largest


@given(groups=groups_lists, seed=seeds)
def test_with_a_fold_per_group_folds_follow_the_sorted_groups(groups: list[str], seed: int) -> None:
    names = sorted(set(groups))
    if len(names) < 2:
        return
    fold_N = make_folds(ids_of(len(groups)), groups, len(names), seed)
    assert [names[fold] for fold in fold_N] == groups


@given(groups=st.none() | groups_lists, seed=seeds, data=st.data())
def test_the_same_seed_gives_each_id_the_same_fold_in_any_row_order(
    groups: list[str] | None, seed: int, data: st.DataObject
) -> None:
    if groups is not None and len(set(groups)) < 2:
        return
    ids = ids_of(30 if groups is None else len(groups))
    order = data.draw(st.permutations(range(len(ids))))
    fold_N = make_folds(ids, groups, 2, seed)
    moved = [groups[i] for i in order] if groups is not None else None
    assert np.array_equal(make_folds([ids[i] for i in order], moved, 2, seed), fold_N[order])


def test_another_seed_gives_other_folds() -> None:
    ids, groups = ids_of(60), [f"g{i % 12}" for i in range(60)]
    for given_groups in (None, groups):
        assert not np.array_equal(
            make_folds(ids, given_groups, 3, 0), make_folds(ids, given_groups, 3, 1)
        )


def test_the_default_is_five_folds_or_one_per_group() -> None:
    assert make_folds(ids_of(40), None, None, 0).max() == 4
    assert make_folds(ids_of(40), [f"g{i % 7}" for i in range(40)], None, 0).max() == 4
    assert make_folds(ids_of(40), [f"g{i % 3}" for i in range(40)], None, 0).max() == 2


@pytest.mark.parametrize("k", [0, 1, 4, -2])
def test_an_impossible_number_of_folds_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=f"{k} folds were asked of 3 groups"):
        make_folds(ids_of(6), ["a", "b", "c"] * 2, k, 0)


def test_a_group_in_two_folds_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"two folds: b \(1\)"):
        check_folds(np.array([0, 0, 1, 1]), ["a", "b", "b", "c"], min_rows=1)


@pytest.mark.parametrize(
    ("fold_N", "message"),
    [([0] * 9, "one fold"), ([0] * 9 + [1] * 3, "fold 1: 3"), ([0] * 9 + [2] * 9, "fold 1: 0"),
     ([-1, 0], "impossible"), ([0.0, 1.0], "integers"), ([], "integers")],
)  # fmt: skip
def test_folds_that_cannot_be_scored_are_refused(fold_N: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_folds(np.array(fold_N), None)


def table_with(tmp_path: Path) -> Table:
    slides = [f"s{i % 4}" for i in range(24)]
    root = make_folder(tmp_path / "data", rows=24, tests=2, columns={"slide": slides})
    return read_table(LAYOUT, root)


def test_groups_come_from_a_column(tmp_path: Path) -> None:
    table = table_with(tmp_path)
    assert read_groups("slide", table) == table.columns["slide"]
    with pytest.raises(UserError, match="near names: slide"):
        read_groups("slides", table)


def test_groups_come_from_a_file_in_any_row_order(tmp_path: Path) -> None:
    table = table_with(tmp_path)
    rows = [[name, f"p{i % 3}", f"s{i % 4}"] for i, name in enumerate(table.ids)][::-1]
    path = tmp_path / "groups.csv"
    write_csv(path, ["ID", "patient", "section"], [*rows, ["T000", "p9", "s9"]])
    assert read_groups(f"{path}:section", table) == table.columns["slide"]
    with pytest.raises(UserError, match=r"patient, section \(2\).*groups.csv:COLUMN"):
        read_groups(str(path), table)
    with pytest.raises(UserError, match="no column 'slice'"):
        read_groups(f"{path}:slice", table)
    write_csv(path, ["ID", "section"], [[row[0], row[2]] for row in rows])
    assert read_groups(str(path), table) == table.columns["slide"]
    less = drop(table, {"0003"})
    assert len(read_groups(str(path), less, known=["0003"])) == 23


def test_a_groups_file_with_unknown_missing_double_or_empty_ids_is_refused(tmp_path: Path) -> None:
    table, path = table_with(tmp_path), tmp_path / "groups.csv"
    rows = [[name, "a"] for name in table.ids]
    write_csv(path, ["ID", "g"], [*rows[2:], rows[5], ["who", "b"]])
    with pytest.raises(UserError) as caught:
        read_groups(str(path), table)
    text = str(caught.value)
    assert "no rows of the data: who (1)" in text and "lacks ids of train rows: 0000, 0001" in text
    assert "duplicate ids: 0005 (1)" in text
    write_csv(path, ["ID", "g"], [[name, ""] for name in table.ids])
    with pytest.raises(UserError, match="no group to ids"):
        read_groups(str(path), table)
    with pytest.raises(UserError, match="does not exist"):
        read_groups(str(tmp_path / "none.csv"), table)


def test_only_a_column_is_kept_from_the_targets() -> None:
    assert not_targets("slide") == ("slide",)
    for spec in (None, "auto", "none", "a.csv", "a.csv:slide"):
        assert not_targets(spec) == ()


@pytest.mark.parametrize("groups", [None, ["a", "a", "b", "c"]])
def test_folds_survive_the_file(tmp_path: Path, groups: list[str] | None) -> None:
    ids, fold_N = ["04", "3", "2", "1"], np.array([0, 0, 1, 1])
    written = write_folds(tmp_path / "folds.parquet", ids, groups, fold_N)
    folds = read_folds(tmp_path / "folds.parquet")
    assert folds.ids == tuple(ids) and np.array_equal(folds.fold, fold_N) and folds.k == 2
    assert folds.group == (None if groups is None else tuple(groups))
    assert (folds.digest, folds.ids_digest) == (written.digest, written.ids_digest)
    assert pq.read_schema(tmp_path / "folds.parquet").names == ["id", "group", "fold"]


def test_digests_tell_other_ids_groups_and_folds_apart(tmp_path: Path) -> None:
    ids, groups, fold_N = ["a", "b", "c", "d"], ["x", "x", "y", "z"], np.array([0, 0, 1, 1])
    path = tmp_path / "folds.parquet"
    base = write_folds(path, ids, groups, fold_N)
    other_fold = write_folds(path, ids, groups, np.array([0, 0, 1, 2]))
    other_group = write_folds(path, ids, None, fold_N)
    other_ids = write_folds(path, ids[::-1], groups, fold_N)
    everything = (base, other_fold, other_group, other_ids)
    assert len({folds.digest for folds in everything}) == 4
    assert base.ids_digest == other_fold.ids_digest == other_group.ids_digest
    assert base.ids_digest != other_ids.ids_digest


def test_a_folds_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folds.parquet"
    with pytest.raises(UserError, match="does not exist"):
        read_folds(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="parquet"):
        read_folds(path)
    pq.write_table(pa.table({"id": ["a"], "group": ["x"], "fold": [0]}), path)
    with pytest.raises(UserError, match="format none"):
        read_folds(path)
    with pytest.raises(UserError, match="two folds: x"):
        write_folds(path, ["a", "b"], ["x", "x"], np.array([0, 1]))
