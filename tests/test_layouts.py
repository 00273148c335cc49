"""Data folders of every layout: rows, images, targets and their faults."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.data.cache import open_store
from search.data.source import resolve_data
from search.data.table import drop, read_table, read_test, scan
from spaces.errors import UserError
from spaces.layout import Layout
from spaces.registry import load_task
from tests.datafolder import edit_csv, write_csv, write_images

BREAST = load_task("breast_path").layout
ANEURYSM = load_task("aneurysm").layout
ATLAS = load_task("protein_atlas").layout
TWO = Layout(id_column="id", image_columns=("left", "right"), targets=("a", "b"))
VIEWS = ANEURYSM.views


def faults(layout: Layout, root: Path, task_type: str = "regression") -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_table(layout, root, (), task_type)
    return caught.value.faults


def breast(root: Path, labels: str = "".join(f"{i} {i % 2}\n" for i in range(12))) -> Path:
    write_images(root, [f"train/train_data/{i}.png" for i in range(12)])
    write_images(root, [f"test/test_data/{i}.png" for i in (10, 9, 0, 2)])
    (root / "train/train_label").write_text(labels)
    return root


def aneurysm(root: Path, *, locations: bool = False, ending: str = "jpg", sub: str = "") -> Path:
    names = ANEURYSM.optional_targets if locations else ()
    for folder, ids in (("train_set", range(1001, 1009)), ("test_set", (3, 12))):
        images = [f"{folder}/{sub}{i:04d}{view}.{ending}" for i in ids for view in VIEWS]
        write_images(root, images, grey=True)
    train = [[i, i % 2, *[0] * len(names)] for i in range(1001, 1009)]
    write_csv(root / "train_set/train.csv", ["Index", "Aneurysm", *names], train)
    write_csv(root / "test_set/test.csv", ["Index"], [[3], [12]])
    return root


def atlas(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    labels = ["8|5|0", "18", "3", "10|11", "0", "7"]
    write_csv(root / "train.csv", ["ID", "Label"], [[f"u{i}", x] for i, x in enumerate(labels)])
    test = [[f"t{i}", 100, 100, "0 1 eNoL"] for i in range(2)]
    header = ["ID", "ImageWidth", "ImageHeight", "PredictionString"]
    write_csv(root / "sample_submission.csv", header, test)
    for folder, ids in (("train", [f"u{i}" for i in range(6)]), ("test", ["t0", "t1"])):
        images = [f"{folder}/{name}_{colour}.png" for name in ids for colour in ATLAS.channels]
        write_images(root, images, grey=True)
    return root


def two(root: Path) -> Path:
    rows = [[i, f"l/{i}.png", f"r/{i}.png", i % 3, i / 2, f"s{i % 2}"] for i in range(8)]
    write_images(root, [path for row in rows for path in (row[1], row[2])])
    write_csv(root / "train.csv", ["id", "left", "right", "a", "b", "site"], rows)
    write_csv(root / "test.csv", ["id", "left", "right"], [row[:3] for row in rows[:2]])
    return root


class TestLinesAndAFolder:
    """A headerless file of labels; the test rows are a folder."""

    def test_rows_come_from_lines_and_from_file_names_in_the_order_people_count(
        self, tmp_path: Path
    ) -> None:
        table = read_table(BREAST, breast(tmp_path), (), "binary")
        assert table.ids == tuple(str(i) for i in range(12))
        assert table.files[3] == ("train/train_data/3.png",) and table.views == 1
        assert table.paths[3] == "train/train_data/3.png"
        assert table.target_names == ("label",) and table.classes == ()
        assert table.targets_TN.tolist() == [[0, 1] * 6]
        assert table.test_ids == table.submission_ids == ("0", "2", "9", "10")
        assert table.test_paths[-1] == "test/test_data/10.png"
        assert table.submission_columns == ("key", "label")
        assert table.warnings == () and table.columns == {}
        assert read_test(BREAST, tmp_path) == (table.test_ids, table.test_files)

    def test_further_fields_are_columns_that_may_name_groups(self, tmp_path: Path) -> None:
        lines = "".join(f"{i}\t {i % 2}  p{i % 3}\n" for i in range(12))
        layout = replace(BREAST, columns=("key", "label", "patient"))
        table = read_table(layout, breast(tmp_path, lines), ["patient"], "binary")
        assert table.columns == {"patient": tuple(f"p{i % 3}" for i in range(12))}

    def test_labels_that_are_not_0_or_1_are_named_with_their_rows(self, tmp_path: Path) -> None:
        lines = "".join(f"{i} {i % 2}\n" for i in range(8)) + "8 2\n9 x\n10\n11 nan\n"
        (fault,) = faults(BREAST, breast(tmp_path, lines), "binary")
        assert "column 'label' must hold 0 or 1" in fault
        assert "8: '2', 9: 'x'" in fault and "11: 'nan' (4)" in fault

    @pytest.mark.parametrize("lines", ["", "0 1 2\n1 0 2\n", "key label\n0 1\n"])
    def test_other_lines_are_faults_and_no_tracebacks(self, tmp_path: Path, lines: str) -> None:
        assert any("train_label" in fault for fault in faults(BREAST, breast(tmp_path, lines)))

    def test_junk_among_the_test_images_is_told_once_and_left_out(self, tmp_path: Path) -> None:
        breast(tmp_path)
        for name in (".DS_Store", "Thumbs.db", "._2.png"):
            (tmp_path / "test/test_data" / name).write_bytes(b"x")
        table = read_table(BREAST, tmp_path, (), "binary")
        assert table.test_ids == ("0", "2", "9", "10")
        (warning,) = table.warnings
        assert all(name in warning for name in (".DS_Store", "Thumbs.db", "._2.png", "(3)"))

    def test_without_the_folder_there_is_no_submission_and_an_empty_one_is_a_fault(
        self, tmp_path: Path
    ) -> None:
        breast(tmp_path)
        for path in (tmp_path / "test/test_data").iterdir():
            path.unlink()
        (fault,) = faults(BREAST, tmp_path, "binary")
        assert "test_data has no images; they must be named test/test_data/{id}.png" in fault
        (tmp_path / "test/test_data").rmdir()
        table = read_table(BREAST, tmp_path, (), "binary")
        assert table.test_ids == table.submission_ids == ()
        with pytest.raises(UserError, match="test_data does not exist"):
            read_test(BREAST, tmp_path)

    def test_missing_images_and_images_without_a_row_are_told(self, tmp_path: Path) -> None:
        breast(tmp_path)
        (tmp_path / "train/train_data/7.png").rename(tmp_path / "train/train_data/70.png")
        scanned = scan(BREAST, tmp_path, (), "binary")
        (fault,) = scanned.faults
        assert "do not exist" in fault and "7: train/train_data/7.png (1)" in fault
        assert scanned.bad_paths == {"train/train_data/7.png"} and scanned.table
        (warning,) = scanned.table.warnings
        assert "no row uses: train/train_data/70.png (1); 16 files, 16 expected" in warning

    def test_an_id_cannot_leave_the_data_folder(self, tmp_path: Path) -> None:
        lines = "0 1\n../../../secret 0\n/etc/passwd 1\n{id} 1\n"
        root = breast(tmp_path / "data", lines)
        write_images(tmp_path, ["secret.png"])
        found = "\n".join(faults(BREAST, root, "binary"))
        assert "leave the data folder" in found and "../../../secret: ../secret.png (1)" in found
        assert "/etc/passwd: train/train_data/etc/passwd.png" in found
        assert "{id}: train/train_data/{id}.png" in found

    @pytest.mark.parametrize("whole_folder", [True, False])
    def test_a_link_out_of_the_data_folder_is_refused(
        self, tmp_path: Path, whole_folder: bool
    ) -> None:
        root = breast(tmp_path / "data")
        inner = root / "test/test_data" if whole_folder else root / "test/test_data/9.png"
        inner.rename(tmp_path / "elsewhere")
        inner.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="leave the data folder") as caught:
            read_test(BREAST, root)
        assert ("(4)" if whole_folder else "9: test/test_data/9.png (1)") in str(caught.value)

    def test_each_folder_is_listed_once_and_no_file_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        breast(tmp_path)
        listed, asked = [], []
        scandir, stat = os.scandir, os.stat
        monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
        monkeypatch.setattr(
            os, "stat", lambda path, **how: (asked.append(str(path)), stat(path, **how))[1]
        )
        read_table(BREAST, tmp_path, (), "binary")
        assert sorted(map(os.path.basename, listed)) == ["test_data", "train_data"]
        assert not [path for path in asked if path.endswith(".png")]


class TestViewsByName:
    """Several views of a row by the names of their files; ids padded with zeros."""

    @pytest.mark.parametrize(("ending", "sub"), [("jpg", ""), ("png", ""), ("png", "images/")])
    def test_images_stand_row_by_row_in_the_order_of_the_views(
        self, tmp_path: Path, ending: str, sub: str
    ) -> None:
        table = read_table(ANEURYSM, aneurysm(tmp_path, ending=ending, sub=sub), (), "multilabel")
        assert table.views == 8 and len(table.files) == 64 and len(table.row_files) == 8
        assert table.ids[0] == "1001"
        assert table.files[9] == (f"train_set/{sub}1002LI-B.{ending}",)
        assert table.row_files[7][7] == (f"train_set/{sub}1008RV-B.{ending}",)
        assert table.test_ids == table.submission_ids == ("0003", "0012")
        assert table.test_files[8] == (f"test_set/{sub}0012LI-A.{ending}",)
        assert table.target_names == ("Aneurysm",) and table.warnings == ()

    def test_the_first_pattern_whose_file_exists_counts(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        write_images(tmp_path, ["train_set/1001LI-A.png", "train_set/images/1002LI-A.png"])
        (tmp_path / "train_set/1002LI-A.jpg").unlink()
        table = read_table(ANEURYSM, tmp_path, (), "multilabel")
        assert table.paths[0] == "train_set/1001LI-A.jpg"
        assert table.paths[8] == "train_set/images/1002LI-A.png"
        assert any("1001LI-A.png (1); 81 files, 80 expected" in text for text in table.warnings)

    def test_a_file_that_links_out_is_told_as_such_under_any_pattern(self, tmp_path: Path) -> None:
        root = aneurysm(tmp_path / "data")
        (root / "train_set/1004LV-A.jpg").rename(tmp_path / "outside.png")
        (root / "train_set/1004LV-A.png").symlink_to(tmp_path / "outside.png")
        (fault,) = faults(ANEURYSM, root, "multilabel")
        assert "leave the data folder" in fault and "1004: train_set/1004LV-A.png (1)" in fault

    def test_locations_are_targets_where_all_are_there(self, tmp_path: Path) -> None:
        table = read_table(ANEURYSM, aneurysm(tmp_path, locations=True), (), "multilabel")
        assert table.target_names == ("Aneurysm", *ANEURYSM.optional_targets)
        text = (tmp_path / "train_set/train.csv").read_text()
        (tmp_path / "train_set/train.csv").write_text(text.replace("R_PCA", "note", 1))
        (fault,) = faults(ANEURYSM, tmp_path, "multilabel")
        assert "lacks R_PCA (1) of the 21 optional targets; give all of them or none" in fault

    def test_lacking_views_are_named_for_each_row_at_once(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        for view in ("RV-A", "RV-B"):
            (tmp_path / f"train_set/1007{view}.jpg").unlink()
        for view in VIEWS:
            (tmp_path / f"train_set/1002{view}.jpg").unlink()
        (tmp_path / "test_set/0003LI-A.jpg").unlink()
        scanned = scan(ANEURYSM, tmp_path, (), "multilabel")
        where = "train_set, train_set/images; add the files or remove the row"
        assert set(scanned.faults) == {
            f"id 1002 lacks all 8 views in {where}",
            f"id 1007 lacks views RV-A, RV-B in {where}",
            f"id 0003 lacks views LI-A in {where.replace('train', 'test')}",
        }
        assert len(scanned.bad_paths) == 11

    def test_long_lists_of_rows_are_cut_and_counted(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        rows = [[i, i % 2] for i in range(1001, 1031)]
        write_csv(tmp_path / "train_set/train.csv", ["Index", "Aneurysm"], rows)
        found = faults(ANEURYSM, tmp_path, "multilabel")
        assert len(found) == 11 and "more ids lack views" in found[-1] and "(12)" in found[-1]

    def test_ids_that_padding_makes_one_are_refused(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        write_csv(tmp_path / "test_set/test.csv", ["Index"], [["3"], ["0003"]])
        (fault,) = faults(ANEURYSM, tmp_path, "multilabel")
        assert "duplicate ids when padded to 4 digits: 0003 (1)" in fault

    def test_images_of_no_row_are_counted_but_other_files_are_not(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        write_images(tmp_path, [f"train_set/2999{view}.jpg" for view in VIEWS])
        (tmp_path / "train_set/2998XX-A.jpg").write_bytes(b"")
        (warning,) = read_table(ANEURYSM, tmp_path, (), "multilabel").warnings
        assert "2999LI-A.jpg" in warning and "(8); 88 files, 80 expected" in warning

    def test_dropping_a_row_drops_all_its_views(self, tmp_path: Path) -> None:
        table = read_table(ANEURYSM, aneurysm(tmp_path), (), "multilabel")
        less = drop(table, {"1002"})
        assert less.row_files == table.row_files[:1] + table.row_files[2:]
        assert less.targets_TN.tolist() == [[1, 1, 0, 1, 0, 1, 0]]
        assert less.test_files == table.test_files

    def test_the_test_folder_alone_can_be_the_test_rows(self, tmp_path: Path) -> None:
        aneurysm(tmp_path)
        ids, files = read_test(replace(ANEURYSM, test="test_set"), tmp_path)
        assert (ids, files) == read_test(ANEURYSM, tmp_path)


class TestChannelsByName:
    """One grey file per channel, classes in a column, the sample submission as test table."""

    def test_an_image_has_a_file_per_channel_and_rows_have_many_hot_targets(
        self, tmp_path: Path
    ) -> None:
        table = read_table(ATLAS, atlas(tmp_path), (), "multilabel")
        colours = ATLAS.channels
        assert table.files[1] == tuple(f"train/u1_{colour}.png" for colour in colours)
        assert len(table.files) == 6 and table.paths[4:8] == table.files[1]
        assert table.classes == table.target_names == tuple(map(str, range(19)))
        assert table.targets_TN.dtype == np.float32 and table.targets_TN.shape == (19, 6)
        hot = [np.flatnonzero(row_T).tolist() for row_T in table.targets_TN.T]
        assert hot == [[0, 5, 8], [18], [3], [10, 11], [0], [7]]
        assert table.test_ids == table.submission_ids == ("t0", "t1")
        assert table.submission_columns == ("ID", *table.classes) and table.columns == {}

    def test_the_store_holds_the_channels(self, tmp_path: Path) -> None:
        table = read_table(ATLAS, atlas(tmp_path / "data"), (), "multilabel")
        store = open_store(table.root, table.files, 8, tmp_path / "cache")
        assert store.images_NHWC.shape == (6, 8, 8, ATLAS.channel_count)

    def test_lacking_channels_are_named(self, tmp_path: Path) -> None:
        atlas(tmp_path)
        (tmp_path / "train/u3_blue.png").unlink()
        (tmp_path / "test/t1_red.png").unlink()
        assert set(faults(ATLAS, tmp_path, "multilabel")) == {
            "id u3 lacks channels blue in train; add the files or remove the row",
            "id t1 lacks channels red in test; add the files or remove the row",
        }

    def test_unknown_and_empty_labels_are_named_with_their_rows(self, tmp_path: Path) -> None:
        atlas(tmp_path)
        for row, label in ((1, "19"), (2, ""), (4, "0|x"), (5, "7|")):
            edit_csv(tmp_path / "train.csv", row, "Label", label)
        empty, unknown = faults(ATLAS, tmp_path, "multilabel")
        assert "'Label' is empty for ids u2, u5 (2)" in empty
        assert "unknown classes: u1: '19', u4: 'x' (2); known: 0, 1, 2" in unknown

    def test_classes_are_found_and_sorted_as_people_count(self, tmp_path: Path) -> None:
        layout = replace(ATLAS, classes=())
        table = read_table(layout, atlas(tmp_path), (), "multilabel")
        assert table.classes == ("0", "3", "5", "7", "8", "10", "11", "18")

    def test_a_label_column_needs_a_task_of_classes(self, tmp_path: Path) -> None:
        (fault,) = faults(ATLAS, atlas(tmp_path), "binary")
        assert "multilabel or multiclass, not binary" in fault


class TestPathsInColumns:
    """Several columns of paths, one per view."""

    def test_views_stand_row_by_row_and_other_columns_stay(self, tmp_path: Path) -> None:
        table = read_table(TWO, two(tmp_path))
        assert table.views == 2 and table.paths[4:6] == ("l/2.png", "r/2.png")
        assert table.test_paths == ("l/0.png", "r/0.png", "l/1.png", "r/1.png")
        assert table.target_names == ("a", "b")
        assert table.columns == {"site": ("s0", "s1") * 4}
        assert read_test(TWO, tmp_path) == (table.test_ids, table.test_files)

    def test_faults_of_every_view_are_told(self, tmp_path: Path) -> None:
        two(tmp_path)
        edit_csv(tmp_path / "train.csv", 1, "left", "")
        edit_csv(tmp_path / "train.csv", 2, "right", "../r/2.png")
        edit_csv(tmp_path / "train.csv", 3, "right", "r/30.png")
        found = "\n".join(faults(TWO, tmp_path))
        for part in ("no image path for ids 1 (1)", "2: ../r/2.png (1)", "3: r/30.png (1)"):
            assert part in found

    def test_stated_targets_that_are_lacking_or_groups_are_faults(self, tmp_path: Path) -> None:
        two(tmp_path)
        (fault,) = faults(replace(TWO, targets=("a", "c")), tmp_path)
        assert "no column 'c'" in fault
        with pytest.raises(UserError, match=r"makes a \(1\) a target"):
            read_table(TWO, tmp_path, ["a"])

    def test_a_sample_submission_with_the_same_targets_gives_their_order(
        self, tmp_path: Path
    ) -> None:
        two(tmp_path)
        write_csv(tmp_path / "sample_submission.csv", ["id", "b", "a"], [[1, 0, 0], [0, 0, 0]])
        table = read_table(TWO, tmp_path)
        assert table.target_names == ("a", "b")
        assert table.submission_columns == ("id", "b", "a")
        assert table.submission_ids == ("1", "0")

    def test_one_label_a_row_becomes_one_hot(self, tmp_path: Path) -> None:
        layout = replace(TWO, targets=(), label_column="site")
        table = read_table(layout, two(tmp_path), (), "multiclass")
        assert table.classes == ("s0", "s1")
        assert table.targets_TN.tolist() == [[1, 0] * 4, [0, 1] * 4]
        assert table.columns == {"a": tuple("01201201"), "b": table.columns["b"]}

    def test_columns_of_exclusive_classes_have_one_1_a_row(self, tmp_path: Path) -> None:
        two(tmp_path)
        header = ["id", "left", "right", "a", "b"]
        rows = [[i, f"l/{i}.png", f"r/{i}.png", i % 2, 1 - i % 2] for i in range(8)]
        write_csv(tmp_path / "train.csv", header, rows)
        assert read_table(TWO, tmp_path, (), "multiclass").targets_TN.sum() == 8
        edit_csv(tmp_path / "train.csv", 2, "a", "1")
        edit_csv(tmp_path / "train.csv", 3, "a", "0")
        (fault,) = faults(TWO, tmp_path, "multiclass")
        assert "2: 2, 3: 0 (2)" in fault


def test_a_layout_without_any_place_for_images_is_refused(tmp_path: Path) -> None:
    (fault,) = faults(replace(TWO, image_columns=()), two(tmp_path))
    assert "where images are" in fault


def test_a_task_without_a_sample_asks_for_data(tmp_path: Path) -> None:
    task = replace(load_task("breast_path"), write_sample=None)
    with pytest.raises(UserError, match="breast_path has no embedded sample; give --data DIR"):
        resolve_data(task, None, tmp_path, 0)
    assert resolve_data(task, str(tmp_path), tmp_path, 0) == tmp_path


@pytest.mark.real_data
def test_real_folders_are_read(data_root: Path) -> None:
    chest = read_table(BREAST, data_root / "pneumonia", (), "binary")
    assert (len(chest.ids), len(chest.test_ids), chest.warnings) == (5232, 624, ())
    glands = read_table(ANEURYSM, data_root / "adrenal", (), "multilabel")
    assert (len(glands.ids), len(glands.test_ids), glands.warnings) == (1286, 298, ())
    assert len(glands.files) == 8 * 1286 and glands.targets_TN.shape == (1, 1286)
    assert glands.test_files[0] == ("test_set/0001LI-A.png",)
