"""Predictions in plain files are aligned with the target, or refused with every fault named.

Shapes: M members, T outputs, N rows, K folds.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.files import PlainFiles, read_files, read_test_files
from spaces.errors import UserError

N = 6
IDS = [f"00{i}" for i in range(N)]
FOLDS = [0, 0, 1, 1, 2, 2]
Y = [0, 1, 0, 1, 1, 0]
P = [0.1, 0.9, 0.2, 0.8, 0.7, 0.3]


def table(path: Path, **columns: object) -> Path:
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def named(names: Sequence[str], values_TN: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, values_TN, strict=True))


def array(path: Path, values: object) -> Path:
    np.save(path, np.asarray(values))
    return path


@pytest.fixture
def y(tmp_path: Path) -> Path:
    return table(tmp_path / "y.csv", id=IDS, y=Y)


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    return table(tmp_path / "folds.csv", id=IDS, fold=FOLDS)


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return table(tmp_path / "a.csv", id=IDS, y=P)


def faults(*args: object, **more: object) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_files(*args, **more)  # type: ignore[arg-type]
    return caught.value.faults


def fault(*args: object, **more: object) -> str:
    (only,) = faults(*args, **more)
    return only


def write(path: Path, values_TN: np.ndarray, names: list[str], ids: list[str], rng) -> Path:
    """The values in the file's format, table rows and columns in any order."""
    if path.suffix == ".npy":
        turned = len(values_TN) != values_TN.shape[1] and rng.random() < 0.5
        if len(values_TN) == 1 and rng.random() < 0.5:
            return array(path, values_TN[0])
        return array(path, values_TN if turned else values_TN.T)
    frame = pd.DataFrame(values_TN.T, columns=names)
    frame = frame[[names[i] for i in rng.permutation(len(names))]]
    if rng.random() < 0.7:
        frame.insert(int(rng.integers(len(names) + 1)), str(rng.choice(["id", "ID", "Id"])), ids)
        frame = frame.iloc[rng.permutation(len(frame))]
    return table(path, **{str(name): frame[name].to_numpy() for name in frame})


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(5, 12),
    outputs=st.integers(1, 4),
    formats=st.lists(st.sampled_from(["npy", "csv", "parquet"]), min_size=3, max_size=6),
)
def test_values_come_back_whatever_the_formats_and_orders(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    rows: int,
    outputs: int,
    formats: list[str],
) -> None:
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(seed)
    names, ids = [f"g{t}" for t in range(outputs)], [f"{i:04d}" for i in range(rows)]
    true_TN = rng.normal(size=(outputs, rows)).astype(np.float32)
    target = table(
        folder / f"y.{rng.choice(['csv', 'parquet'])}",
        id=ids,
        **named(names, true_TN),
    )
    label_N = rng.permutation(np.arange(rows) % 3)
    order = rng.permutation(rows)
    folds = table(
        folder / "f.csv",
        group=[f"p{label_N[i]}" for i in order],
        fold=[f"f{label_N[i]}" for i in order],
        ID=[ids[i] for i in order],
    )
    preds = [rng.normal(size=(outputs, rows)).astype(np.float32) for _ in formats]
    paths = [
        write(folder / f"m{m}.{form}", pred_TN, names, ids, rng)
        for m, (form, pred_TN) in enumerate(zip(formats, preds, strict=True))
    ]
    got = read_files(paths, target, folds, "regression")
    assert got.names == tuple(f"m{m}" for m in range(len(formats)))
    assert got.target_names == tuple(names) and got.ids == tuple(ids)
    np.testing.assert_allclose(got.true_TN, true_TN, rtol=1e-6)
    for pred_TN, wanted_TN in zip(got.preds, preds, strict=True):
        assert pred_TN.dtype == np.float32
        np.testing.assert_allclose(pred_TN, wanted_TN, rtol=1e-6)
    assert got.fold_N.tolist() == label_N.tolist()
    assert got.group_N is not None and got.group_N.tolist() == label_N.tolist()

    test = [
        write(path.with_stem(path.stem + "_test"), p, names, ids, rng)
        for path, p in zip(paths, preds, strict=True)
    ]
    test_ids, test_preds = read_test_files(test, got.names, got.target_names)
    order = range(rows) if test_ids is None else [ids.index(name) for name in test_ids]
    with_ids = [path for path in test if path.suffix != ".npy" and "id" in _header(path)]
    assert (test_ids is None) == (not with_ids)
    for path, pred_TN, wanted_TN in zip(test, test_preds, preds, strict=True):
        # Files without ids are in the order of the first that has them.
        wanted_TN = wanted_TN[:, order] if path in with_ids else wanted_TN
        np.testing.assert_allclose(pred_TN, wanted_TN, rtol=1e-6)


def _header(path: Path) -> list[str]:
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return [str(name).lower() for name in frame.columns]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from([".npy", ".csv", ".parquet"]))
def test_a_damaged_file_is_a_fault_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, seed: int, suffix: str
) -> None:
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(seed)
    target = table(folder / "y.csv", y=Y)
    good = folder / f"a{suffix}"
    array(good, P) if suffix == ".npy" else table(good, y=P)
    content = bytearray(good.read_bytes())
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(len(content))] = rng.integers(256)
    good.write_bytes(content[: rng.integers(1, len(content) + 1)])
    try:
        got = read_files([good], target, None, "binary")
    except UserError as error:
        assert all(str(good) in text for text in error.faults)
    else:
        assert np.isfinite(got.preds[0]).all()


class TestMembers:
    def test_a_float32_array_of_outputs_by_rows_stays_mapped(self, tmp_path: Path) -> None:
        pred_TN = np.arange(12, dtype=np.float32).reshape(2, 6)
        target = array(tmp_path / "y.npy", pred_TN.T + 1)
        got = read_files([array(tmp_path / "a.npy", pred_TN)], target, None, "regression")
        assert isinstance(got.preds[0].base, np.memmap)
        assert np.array_equal(got.preds[0], pred_TN)
        assert any("was read as (outputs, rows)" in note for note in got.notes)

    def test_a_square_array_is_rows_by_outputs(self, tmp_path: Path) -> None:
        square = np.arange(36.0).reshape(6, 6)
        target = array(tmp_path / "y.npy", square + 1)
        got = read_files([array(tmp_path / "a.npy", square)], target, None, "regression")
        assert np.array_equal(got.preds[0], square.T)
        assert not any("was read as" in note for note in got.notes)

    def test_names_are_stems_with_folders_only_where_they_repeat(self, tmp_path: Path) -> None:
        paths = ["r/1/pred.npy", "r/2/pred.npy", "s/1/pred.npy", "s/x.npy", "s/x.csv", "one.npy"]
        files = [tmp_path / path for path in paths]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            table(path, y=P) if path.suffix == ".csv" else array(path, P)
        got = read_files(files, array(tmp_path / "y.npy", Y), None, "binary")
        assert got.names == ("r/1/pred", "2/pred", "s/1/pred", "x.npy", "x.csv", "one")

    def test_files_that_only_the_path_tells_apart_keep_it(self, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("x.npy", "x.csv", "x.npy.csv")]
        for path in files:
            table(path, y=P) if path.suffix == ".csv" else array(path, P)
        got = read_files(files, array(tmp_path / "y.npy", Y), None, "binary")
        assert len(set(got.names)) == 3

    def test_columns_of_other_names_are_taken_by_position_and_said(self, tmp_path: Path) -> None:
        target = table(tmp_path / "y.csv", u=[1.0] * 3 + [2.0] * 3, v=P)
        member = table(tmp_path / "a.csv", p_u=P, p_v=Y)
        got = read_files([member], target, None, "regression")
        assert np.allclose(got.preds[0], [P, Y])
        assert any("p_u, p_v (2) were taken in the order of the targets" in n for n in got.notes)

    def test_a_target_name_in_another_place_is_not_taken_by_position(self, tmp_path: Path) -> None:
        target = table(tmp_path / "y.csv", u=P, v=P, w=P)
        member = table(tmp_path / "a.csv", v=P, w=P, z=P)
        text = fault([member], target, None, "regression")
        assert "a.csv has 3 columns, v, w, z (3), and lacks u (1)" in text

    def test_columns_that_are_not_used_are_said(self, tmp_path: Path, y: Path) -> None:
        member = table(tmp_path / "a.csv", id=IDS, fold=FOLDS, y=P)
        got = read_files([member], y, None, "binary")
        assert np.allclose(got.preds[0], [P])
        assert any("columns fold (1) were left out" in note for note in got.notes)

    def test_a_copy_of_the_target_beside_predictions_is_refused(
        self, tmp_path: Path, y: Path
    ) -> None:
        member = table(tmp_path / "a.csv", id=IDS, y=Y, prob=P)
        text = fault([member], y, None, "binary")
        assert "a.csv holds the target itself beside prob" in text

    def test_predictions_that_equal_the_target_are_said(self, tmp_path: Path, y: Path) -> None:
        got = read_files([table(tmp_path / "a.csv", id=IDS, y=Y)], y, None, "binary")
        assert any("a.csv equals the target in every row" in note for note in got.notes)

    def test_tables_share_their_names_with_a_target_that_has_none(self, tmp_path: Path) -> None:
        target = array(tmp_path / "y.npy", np.array([Y, P]).T)
        first = table(tmp_path / "a.csv", u=P, v=Y)
        second = table(tmp_path / "b.csv", v=Y, u=P)
        got = read_files([first, second], target, None, "regression")
        assert got.target_names == ("u", "v")
        assert np.array_equal(got.preds[0], got.preds[1])

    @pytest.mark.parametrize("column", ["image", "slide"])
    def test_the_id_column_is_the_one_asked_for(self, tmp_path: Path, column: str) -> None:
        target = table(tmp_path / "y.csv", **{column: IDS, "y": Y})
        member = table(tmp_path / "a.csv", **{"y": P[::-1], column: IDS[::-1]})
        got = read_files([member], target, None, "binary", id_column=column)
        assert np.allclose(got.preds[0], [P]) and got.ids == tuple(IDS)

    def test_numbers_in_parquet_and_text_in_csv_are_the_same_ids(self, tmp_path: Path) -> None:
        target = table(tmp_path / "y.csv", id=range(N), y=Y)
        member = table(tmp_path / "a.parquet", id=range(N)[::-1], y=P[::-1])
        assert np.allclose(read_files([member], target, None, "binary").preds[0], [P])

    def test_an_index_that_pandas_wrote_to_parquet_is_the_id(self, tmp_path: Path, y: Path) -> None:
        path = tmp_path / "a.parquet"
        pd.DataFrame({"y": P[::-1]}, index=pd.Index(IDS[::-1], name="id")).to_parquet(path)
        assert np.allclose(read_files([path], y, None, "binary").preds[0], [P])


class TestTasks:
    def test_two_class_probabilities_give_that_of_class_1(self, tmp_path: Path, y: Path) -> None:
        both = np.array([1 - np.array(P), P])
        swapped = table(tmp_path / "b.csv", id=IDS, **{"1": both[1], "0": both[0]})
        files = [array(tmp_path / "a.npy", both.T), swapped]
        got = read_files(files, y, None, "binary")
        assert np.allclose(got.preds[0], [P]) and np.allclose(got.preds[1], [P])
        assert sum("the second is taken as the probability of class 1" in n for n in got.notes) == 2
        _, test = read_test_files(files, got.names, got.target_names)
        assert np.allclose(test[0], [P]) and np.allclose(test[1], [P])

    def test_two_outputs_that_are_no_probabilities_are_refused(
        self, tmp_path: Path, y: Path
    ) -> None:
        text = fault([array(tmp_path / "a.npy", np.array([P, P]).T)], y, None, "binary")
        assert "a.npy has two outputs that do not sum to 1 (row 0)" in text

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
    def test_booleans_are_a_binary_target(self, tmp_path: Path, a: Path, suffix: str) -> None:
        values, path = np.array(Y, dtype=bool), tmp_path / f"t{suffix}"
        target = array(path, values) if suffix == ".npy" else table(path, y=values)
        assert read_files([a], target, None, "binary").true_TN.tolist() == [Y]

    def test_a_binary_target_is_one_column(self, tmp_path: Path, a: Path) -> None:
        target = table(tmp_path / "t.csv", id=IDS, y=Y, z=Y)
        assert "t.csv has y, z (2); a binary target is one column" in fault(
            [a], target, None, "binary"
        )

    def test_words_are_no_binary_target(self, tmp_path: Path, a: Path) -> None:
        target = table(tmp_path / "t.csv", id=IDS, y=list("abaabb"))
        text = fault([a], target, None, "binary")
        assert "column 'y' must hold finite numbers, but has 000: 'a', 001: 'b'" in text
        assert ", ... (6); mend" in text

    def test_integer_labels_become_one_hot_with_the_classes_of_the_predictions(
        self, tmp_path: Path
    ) -> None:
        target = table(tmp_path / "y.csv", label=[0, 1, 2, 0, 1, 2])
        pred_NC = np.random.default_rng(0).random((N, 4))
        names = [f"p{c}" for c in range(4)]
        files = [
            array(tmp_path / "a.npy", pred_NC),
            table(tmp_path / "b.csv", label=[0, 1, 2] * 2, **named(names, pred_NC.T)),
            table(tmp_path / "c.csv", **{str(c): pred_NC[:, c] for c in (3, 1, 0, 2)}),
        ]
        got = read_files(files, target, None, "multiclass")
        assert got.target_names == ("0", "1", "2", "3")
        assert np.array_equal(got.true_TN, np.eye(4)[:, [0, 1, 2, 0, 1, 2]])
        assert all(np.allclose(pred_TN, pred_NC.T) for pred_TN in got.preds)
        assert any("column 'label' is the target's and was left out" in note for note in got.notes)

    @pytest.mark.parametrize("labels", [["cat", "dog", "emu"], [3, 5, 4]])
    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
    def test_labels_are_matched_with_column_names(
        self, tmp_path: Path, labels: list, suffix: str
    ) -> None:
        values, path = labels * 2, tmp_path / f"y{suffix}"
        target = array(path, values) if suffix == ".npy" else table(path, label=values)
        names = [str(label) for label in labels]
        pred_NC = np.random.default_rng(0).random((N, 3))
        files = [
            table(tmp_path / "a.csv", **{names[c]: pred_NC[:, c] for c in (2, 0, 1)}),
            table(tmp_path / "b.csv", **{names[c]: pred_NC[:, c] for c in (0, 1, 2)}),
        ]
        got = read_files(files, target, None, "multiclass")
        assert got.target_names == tuple(names[c] for c in (2, 0, 1))
        assert np.array_equal(got.true_TN, np.eye(3)[[2, 0, 1]][:, [0, 1, 2] * 2])
        assert all(np.allclose(pred_TN, pred_NC.T[[2, 0, 1]]) for pred_TN in got.preds)

    def test_words_for_classes_need_names(self, tmp_path: Path) -> None:
        target = table(tmp_path / "y.csv", label=["cat", "dog"] * 3)
        plain = array(tmp_path / "a.npy", np.ones((N, 2)))
        named = table(tmp_path / "b.csv", cat=P, dog=P)
        other = table(tmp_path / "c.csv", p1=P, p2=P)
        assert "labels cat, dog (2); labels must be columns" in fault(
            [plain], target, None, "multiclass"
        )
        texts = faults([plain, named, other], target, None, "multiclass")
        assert "a.npy names no classes, but the labels are cat, dog" in texts[0]
        assert "c.csv has 2 columns, p1, p2 (2), and lacks cat, dog (2)" in texts[1]

    def test_labels_beyond_the_outputs_are_refused(self, tmp_path: Path) -> None:
        target = table(tmp_path / "y.csv", label=[1, 2, 3] * 2)
        text = fault([array(tmp_path / "a.npy", np.ones((N, 3)))], target, None, "multiclass")
        assert "y.csv has the labels 1, 2, 3 (3)" in text and "a.npy has 3" in text

    def test_a_one_hot_target_stays(self, tmp_path: Path) -> None:
        hot_CN = np.eye(3)[:, [0, 1, 2] * 2]
        target = table(tmp_path / "y.csv", id=IDS, **named("abc", hot_CN))
        member = table(tmp_path / "a.csv", id=IDS, **named("cab", hot_CN[[2, 0, 1]] / 2))
        got = read_files([member], target, None, "multiclass")
        assert got.target_names == ("a", "b", "c")
        assert np.allclose(got.true_TN, hot_CN) and np.allclose(got.preds[0], hot_CN / 2)

    def test_an_unknown_task_type_lists_the_known(self, a: Path, y: Path) -> None:
        assert "near names: binary" in fault([a], y, None, "binry")


class TestFolds:
    @pytest.mark.parametrize(
        "labels", [FOLDS, [-3, -3, 0, 0, 7, 7], list("aabbcc"), [0.0, 0, 1, 1, 2, 2]]
    )
    @pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
    def test_labels_become_numbers_in_sorted_order(
        self, tmp_path: Path, a: Path, y: Path, labels: list, suffix: str
    ) -> None:
        path = tmp_path / f"f{suffix}"
        file = array(path, labels) if suffix == ".npy" else table(path, part=labels)
        got = read_files([a], y, file, "binary")
        assert got.fold_N.tolist() == FOLDS and got.fold_N.dtype == np.int64
        assert got.group_N is None

    def test_the_target_file_may_hold_folds_and_groups(self, tmp_path: Path, a: Path) -> None:
        both = table(tmp_path / "y.csv", id=IDS, group=list("bbaacc"), y=Y, fold=FOLDS)
        got = read_files([a], both, both, "binary")
        assert got.target_names == ("y",) and got.fold_N.tolist() == FOLDS
        assert got.group_N is not None and got.group_N.tolist() == [1, 1, 0, 0, 2, 2]

    def test_the_files_of_a_run_can_be_read(self, tmp_path: Path) -> None:
        from search.data.folds import write_folds

        folds = tmp_path / "folds.parquet"
        write_folds(folds, IDS, None, np.array(FOLDS))
        values_TN = np.arange(2 * N, dtype=np.float32).reshape(2, N)
        target = array(tmp_path / "targets.npy", values_TN)
        got = read_files([array(tmp_path / "pred.npy", values_TN + 1)], target, folds, "regression")
        assert np.array_equal(got.true_TN, values_TN) and got.fold_N.tolist() == FOLDS
        assert np.array_equal(got.preds[0], values_TN + 1) and got.group_N is None

    def test_without_folds_ids_decide_and_it_is_said(self, tmp_path: Path, a: Path) -> None:
        table(tmp_path / "y.csv", id=IDS, y=Y)
        turned = table(tmp_path / "z.csv", id=IDS[::-1], y=Y[::-1])
        got = read_files([a], tmp_path / "y.csv", None, "binary", seed=3)
        again = read_files([a], turned, None, "binary", seed=3)
        assert got.fold_N.tolist() == again.fold_N[::-1].tolist()
        assert set(got.fold_N.tolist()) == set(range(5))
        assert any("5 random folds (seed 3)" in n and "one patient" in n for n in got.notes)

    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ({"id": IDS, "fold": [1] * N}, "one fold for all rows"),
            ({"id": IDS, "fold": [0, 0, 1, 1, 2, 2.5]}, "no whole numbers"),
            ({"id": IDS, "fold": [0, 0, 1, 1, 2, None]}, "whole numbers|is empty in rows 5 "),
            ({"id": IDS, "u": FOLDS, "v": FOLDS}, "no column 'fold' but u, v "),
            ({"id": IDS, "group": FOLDS}, "no column 'fold' but group "),
            ({"id": IDS, "fold": FOLDS, "group": list("aabbca")}, "groups lie in two folds: a "),
            ({"id": IDS, "fold": FOLDS, "group": ["a", "", "b", "b", "c", "c"]}, "rows 1 "),
            ({"id": IDS[:-1] + ["x"], "fold": FOLDS}, "lacks ids of .*y.csv: 005 "),
            ({"fold": FOLDS + [2]}, "has 7 rows and .*y.csv has 6"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_a_faulty_folds_file_is_told(
        self, tmp_path: Path, a: Path, y: Path, columns: dict, said: str, suffix: str
    ) -> None:
        file = table(tmp_path / f"f{suffix}", **columns)
        texts = faults([a], y, file, "binary")
        assert pd.Series(texts).str.contains(said).any(), texts
        assert all(str(file) in text for text in texts)

    def test_an_array_of_folds_has_one_dimension(self, tmp_path: Path, a: Path, y: Path) -> None:
        file = array(tmp_path / "f.npy", np.ones((N, 2)))
        assert "shape (6, 2); folds must be (N,)" in fault([a], y, file, "binary")

    def test_a_target_of_only_folds_is_refused(self, tmp_path: Path, a: Path, folds: Path) -> None:
        assert "no column beside fold" in fault([a], folds, folds, "binary")


class TestRows:
    def test_absent_extra_and_repeated_ids_are_named(self, tmp_path: Path, y: Path) -> None:
        lost = table(tmp_path / "lost.csv", id=IDS[2:], y=P[2:])
        extra = table(tmp_path / "extra.csv", id=IDS + ["x"], y=P + [0.5])
        twice = table(tmp_path / "twice.csv", id=IDS + ["003"], y=P + [0.5])
        other = table(tmp_path / "other.csv", id=IDS[1:] + ["z"], y=P)
        empty = table(tmp_path / "empty.csv", id=IDS[:-1] + [""], y=P)
        texts = faults([lost, extra, twice, other, empty], y, None, "binary")
        assert "lost.csv lacks ids of" in texts[0] and "000, 001 (2)" in texts[0]
        assert "extra.csv has ids that" in texts[1] and ": x (1)" in texts[1]
        assert "twice.csv has duplicate ids: 003 (1)" in texts[2]
        assert "other.csv lacks" in texts[3] and "other.csv has ids" in texts[4]
        assert "empty.csv column 'id' is empty in rows 5 (1)" in texts[5]

    def test_files_without_ids_have_the_rows_of_the_target(self, tmp_path: Path, y: Path) -> None:
        short = table(tmp_path / "a.csv", y=P[:-1])
        long = array(tmp_path / "b.npy", P + [0.5])
        texts = faults([short, long], y, None, "binary")
        assert "a.csv has 5 rows and" in texts[0] and "has 6; without ids" in texts[0]
        assert "b.npy has shape (7,); for the 6 rows" in texts[1]

    def test_rows_by_position_are_said(self, tmp_path: Path, y: Path, folds: Path) -> None:
        got = read_files([array(tmp_path / "a.npy", P)], y, folds, "binary")
        (note,) = got.notes
        assert "no ids, so taken in the row order of" in note and "a.npy (1)" in note

    def test_tables_that_disagree_are_not_matched_by_position(
        self, tmp_path: Path, a: Path
    ) -> None:
        target = array(tmp_path / "y.npy", Y)
        turned = table(tmp_path / "b.csv", id=IDS[::-1], y=P)
        text = fault([a, turned], target, None, "binary")
        assert "b.csv has id 005 in row 0 and" in text and "a.csv has 000" in text

    def test_test_rows_follow_the_first_table_with_ids(self, tmp_path: Path) -> None:
        plain = array(tmp_path / "a.npy", P)
        first = table(tmp_path / "b.csv", id=IDS, y=P)
        turned = table(tmp_path / "c.csv", id=IDS[::-1], y=P[::-1])
        ids, preds = read_test_files([plain, turned, first], ["a", "c", "b"], ["y"])
        assert ids == tuple(IDS[::-1])
        assert [pred_TN[0, 0] for pred_TN in preds] == pytest.approx([0.1, 0.3, 0.3])

    def test_faults_of_test_files_come_together(self, tmp_path: Path) -> None:
        good = table(tmp_path / "a.csv", id=IDS, y=P)
        other = table(tmp_path / "b.csv", id=IDS[:-1], y=P[:-1])
        nan = array(tmp_path / "c.npy", [np.nan] * N)
        with pytest.raises(UserError) as caught:
            read_test_files([good, other, nan, tmp_path / "no.csv"], ["a", "b"], ["y"])
        said = (
            "4 files and --oof 2",
            "no.csv does not exist",
            "b.csv lacks ids",
            "c.npy must hold",
        )
        assert len(caught.value.faults) == len(said)
        assert all(x in text for x, text in zip(said, caught.value.faults, strict=True))


class TestFaults:
    def test_all_files_are_told_at_once(self, tmp_path: Path, y: Path, a: Path) -> None:
        (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY junk")
        (tmp_path / "torn.parquet").write_bytes(b"PAR1 junk")
        np.savez(tmp_path / "z.npz", u=np.ones(N))
        files = {
            a: "a.csv is given twice",
            tmp_path / "x.pkl": "ends in '.pkl'; files are .npy, .csv, .parquet",
            tmp_path / "no.npy": "no.npy does not exist",
            tmp_path / "torn.npy": "torn.npy is not readable as .npy",
            tmp_path / "torn.parquet": "torn.parquet is not readable as parquet",
            (tmp_path / "z.npz").rename(tmp_path / "z.npy"): "is an archive of arrays",
            array(tmp_path / "d.npy", np.ones((2, 2, 2))): "shape (2, 2, 2); it must be (N,)",
            table(tmp_path / "i.csv", id=IDS): "has no column besides the id",
            table(tmp_path / "ii.csv", id=IDS, ID=IDS, y=P): "has the id columns id, ID (2)",
        }
        pd.DataFrame({"y": P}).to_csv(tmp_path / "index.csv")
        pd.DataFrame({"y": P}, index=[9, 8, 7, 6, 5, 4]).to_parquet(tmp_path / "index.parquet")
        np.savetxt(tmp_path / "bare.csv", P)
        files[tmp_path / "index.csv"] = "index.csv has a column without a name ('')"
        files[tmp_path / "index.parquet"] = "has a column without a name ('__index_level_0__')"
        files[tmp_path / "bare.csv"] = "the first line must hold names"
        late = {
            array(tmp_path / "nan.npy", [*P[:-1], np.nan]): "1 are not, the first nan at row 5",
            array(tmp_path / "big.npy", [*P[:-1], 1e39]): "the first 1e+39 at row 5, output 0",
            array(
                tmp_path / "word.npy", list("abcdef")
            ): "values of type <U1; they must be numbers",
            array(tmp_path / "wide.npy", np.ones((N, 3))): "shape (6, 3); for the 6 rows",
            table(tmp_path / "w.csv", id=IDS, y=list("abcdef")): "column 'y' must hold finite",
            table(tmp_path / "n.parquet", id=IDS, y=[None, *P[1:]]): "column 'y' must hold finite",
            table(tmp_path / "b.parquet", id=IDS, y=[True] * N): "column 'y' must hold finite",
            table(tmp_path / "c.csv", id=IDS, u=P, v=P, w=P): "has 3 columns, u, v, w (3)",
        }
        f = table(tmp_path / "folds.csv", id=IDS, fold=[0] * N)
        texts = faults([a, *files, *late], y, f, "binary")
        said = [*files.values(), "folds.csv has one fold for all rows", *late.values()]
        assert len(texts) == len(said)
        for wanted, text in zip(said, texts, strict=True):
            assert wanted in text

    @pytest.mark.parametrize("line", ["000,0.5,7", "000"])
    def test_a_line_of_another_length_is_never_passed_over(
        self, tmp_path: Path, y: Path, line: str
    ) -> None:
        rest = [f"{name},{p}" for name, p in zip(IDS[1:], P[1:], strict=True)]
        (tmp_path / "a.csv").write_text("\n".join(["id,y", *rest, line]))
        assert "a.csv" in fault([tmp_path / "a.csv"], y, None, "binary")
        (tmp_path / "a.csv").write_text("\n".join(["id,y", line, *rest]))
        assert "a.csv" in fault([tmp_path / "a.csv"], y, None, "binary")

    def test_an_object_array_is_never_unpickled(self, tmp_path: Path, y: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([{}] * N, dtype=object), allow_pickle=True)
        assert "a.npy is not readable as .npy" in fault([tmp_path / "a.npy"], y, None, "binary")

    def test_no_members_is_a_fault_beside_the_others(self, y: Path, tmp_path: Path) -> None:
        texts = faults([], y, tmp_path / "no.csv", "binary")
        assert "no predictions were given" in texts[0] and "no.csv does not exist" in texts[1]

    def test_the_target_is_no_member(self, a: Path, y: Path) -> None:
        assert any(
            "as predictions and as the target" in t for t in faults([a, y], y, None, "binary")
        )

    def test_an_id_column_that_a_table_lacks_is_named(self, a: Path, y: Path) -> None:
        texts = faults([a], y, None, "binary", id_column="image")
        assert len(texts) == 2 and all("has no column 'image'" in text for text in texts)

    def test_faults_of_many_columns_are_few(self, tmp_path: Path) -> None:
        columns = {f"g{t}": [*P[:-1], np.inf] for t in range(40)}
        target = table(tmp_path / "y.csv", **dict.fromkeys(columns, P))
        texts = faults([table(tmp_path / "a.csv", **columns)], target, None, "regression")
        assert len(texts) == 6 and "35 more columns" in texts[-1]

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_a_target_without_rows_is_refused(self, tmp_path: Path, a: Path, suffix: str) -> None:
        target = table(tmp_path / f"y{suffix}", id=[], y=[])
        assert "has no rows" in fault([a], target, None, "binary")


def test_a_million_rows_take_seconds(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), 1_000_000
    ids, order = np.arange(rows), rng.permutation(rows)
    pred_N = rng.random(rows, dtype=np.float32)
    target = table(tmp_path / "y.parquet", id=ids, y=ids % 2)
    folds = table(tmp_path / "f.parquet", id=ids, fold=ids % 5)
    files = [
        table(tmp_path / "a.parquet", id=order, y=pred_N[order]),
        array(tmp_path / "b.npy", pred_N),
    ]
    started = time.perf_counter()
    got: PlainFiles = read_files(files, target, folds, "binary")
    assert time.perf_counter() - started < 30  # 2 s alone; other tests may share the machine
    assert np.array_equal(got.preds[0], got.preds[1]) and got.ids and got.ids[7] == "7"
