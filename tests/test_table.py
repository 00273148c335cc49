import shutil
from pathlib import Path

import numpy as np
import pytest

from search.data.table import Table, drop, read_table, read_test
from spaces.errors import UserError
from tests.datafolder import LAYOUT, edit_csv, make_folder, write_csv


def faults(root: Path, *not_targets: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_table(LAYOUT, root, not_targets)
    return caught.value.faults


def test_a_clean_folder_gives_rows_in_file_order_with_ids_as_written(tmp_path: Path) -> None:
    table = read_table(LAYOUT, make_folder(tmp_path, rows=12, tests=3, genes=4))
    assert table.ids[:2] == ("0000", "0001")
    assert table.paths[0] == "train/0000.png"
    assert table.target_names == ("g0", "g1", "g2", "g3")
    assert table.targets_TN.shape == (4, 12) and table.targets_TN.dtype == np.float32
    first = [float(x) for x in (tmp_path / "train.csv").read_text().splitlines()[1].split(",")[2:]]
    assert np.allclose(table.targets_TN[:, 0], first)
    assert table.test_ids == table.submission_ids == ("T000", "T001", "T002")
    assert table.submission_columns == ("ID", "g0", "g1", "g2", "g3")
    assert table.warnings == ()


def test_a_folder_that_is_not_there_is_one_fault(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path / "nowhere")
    assert "nowhere is no folder" in fault


def test_a_missing_train_csv_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train.csv").unlink()
    assert any("train.csv does not exist" in fault for fault in faults(tmp_path))


@pytest.mark.parametrize("column", ["ID", "path"])
def test_a_missing_key_column_is_named(tmp_path: Path, column: str) -> None:
    make_folder(tmp_path)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace(column, "other", 1))
    (fault,) = faults(tmp_path)
    assert f"train.csv has no column '{column}'" in fault


@pytest.mark.parametrize("value", ["abc", "", "NaN", "inf", "-Infinity", "1e39", "NA", "True"])
@pytest.mark.parametrize("sample", [True, False])
def test_what_is_no_finite_number_in_a_target_is_named_with_its_row(
    tmp_path: Path, value: str, sample: bool
) -> None:
    make_folder(tmp_path, sample=sample)
    edit_csv(tmp_path / "train.csv", 7, "g2", value)
    (fault,) = faults(tmp_path)
    assert "column 'g2'" in fault and "0007" in fault and "(1)" in fault


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    make_folder(tmp_path)
    train = tmp_path / "train.csv"
    edit_csv(train, 1, "g1", "x")
    edit_csv(train, 2, "g3", "")
    edit_csv(train, 3, "ID", "0004")
    edit_csv(train, 5, "path", "../secret.png")
    edit_csv(train, 6, "path", "/etc/passwd")
    edit_csv(train, 8, "path", "")
    (tmp_path / "train/0009.png").unlink()
    (tmp_path / "test/0001.png").unlink()
    edit_csv(tmp_path / "sample_submission.csv", 0, "ID", "T999")
    found = "\n".join(faults(tmp_path))
    for part in (
        "'g1'", "'g3'", "duplicate ids: 0004 (1)", "leave the data folder",
        "0005: ../secret.png, 0006: /etc/passwd (2)", "no image path for ids 0008 (1)",
        "0009: train/0009.png (1)", "T001: test/0001.png (1)", "no test rows: T999 (1)",
        "lacks ids of test rows: T000 (1)",
    ):  # fmt: skip
        assert part in found


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    make_folder(tmp_path, rows=20)
    shutil.rmtree(tmp_path / "train")
    (fault,) = faults(tmp_path)
    assert "0004: train/0004.png, ... (20)" in fault and "0005" not in fault


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    outside = tmp_path / "outside.png"
    (root / "train/0003.png").rename(outside)
    (root / "train/0003.png").symlink_to(outside)
    (root / "train/0005.png").unlink()
    (root / "train/0005.png").symlink_to(root / "train/0006.png")
    (fault,) = faults(root)
    assert "leave the data folder" in fault and "0003" in fault and "0005" not in fault


def test_a_folder_that_links_out_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    (fault,) = faults(root)
    assert "leave the data folder" in fault and "(48)" in fault


def test_a_data_folder_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    make_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(read_table(LAYOUT, tmp_path / "link").ids) == 48


def test_the_samples_order_rules_the_submission(tmp_path: Path) -> None:
    make_folder(tmp_path, tests=3, genes=2)
    write_csv(tmp_path / "sample_submission.csv", ["ID", "g1", "g0"],
              [["T002", 0, 0], ["T000", 0, 0], ["T001", 0, 0]])  # fmt: skip
    table = read_table(LAYOUT, tmp_path)
    assert table.submission_ids == ("T002", "T000", "T001")
    assert table.submission_columns == ("ID", "g1", "g0")
    swapped = read_table(LAYOUT, tmp_path).targets_TN
    (tmp_path / "sample_submission.csv").unlink()
    assert np.array_equal(swapped, read_table(LAYOUT, tmp_path).targets_TN[::-1])


def test_a_target_of_the_sample_that_train_lacks_is_a_fault(tmp_path: Path) -> None:
    make_folder(tmp_path)
    header = (tmp_path / "sample_submission.csv").read_text().replace("g4", "g9", 1)
    (tmp_path / "sample_submission.csv").write_text(header)
    (fault,) = faults(tmp_path)
    assert "lacks: g9 (1)" in fault


def test_other_columns_stay_text_and_are_no_targets(tmp_path: Path) -> None:
    slides = [f"{i % 3:02d}" for i in range(48)]
    make_folder(tmp_path, columns={"slide": slides})
    table = read_table(LAYOUT, tmp_path)
    assert table.columns == {"slide": tuple(slides)}
    assert "slide" not in table.target_names
    assert any("no targets: slide" in warning for warning in table.warnings)


def test_without_a_sample_numeric_columns_but_not_targets_are_targets(tmp_path: Path) -> None:
    columns = {"slide": [f"{i % 3:02d}" for i in range(48)], "organ": ["liver"] * 48}
    make_folder(tmp_path, sample=False, genes=2, columns=columns)
    table = read_table(LAYOUT, tmp_path, ["slide"])
    assert table.target_names == ("g0", "g1")
    assert table.columns["slide"][:3] == ("00", "01", "02")
    assert table.submission_columns == ("ID", "g0", "g1")
    assert any("organ" in warning for warning in table.warnings)


def test_constant_targets_are_a_warning(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for row in range(48):
        edit_csv(tmp_path / "train.csv", row, "g1", "0.5")
    table = read_table(LAYOUT, tmp_path)
    assert table.constant_targets == ("g1",)
    assert any("never vary: g1 (1)" in warning for warning in table.warnings)


def test_without_test_rows_there_is_no_submission(tmp_path: Path) -> None:
    table = read_table(LAYOUT, make_folder(tmp_path, tests=0))
    assert table.test_ids == table.test_paths == table.submission_ids == ()


@pytest.mark.parametrize(
    "text",
    ["", "ID,path,g0,g0\na,train/0000.png,1,2\n", "ID,path,g0\na,train/0000.png,1,2\n",
     "ID,path,g0\na,b,1\nc,d,1,2\n", "ID,path,g0\n", b"ID,path,g0\n\xff\xfe,b,1\n"],
)  # fmt: skip
def test_a_broken_csv_is_a_fault_and_no_traceback(tmp_path: Path, text: str | bytes) -> None:
    make_folder(tmp_path, tests=0)
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "train.csv").write_bytes(data)
    assert any("train.csv" in fault for fault in faults(tmp_path))


def test_a_byte_order_mark_and_awkward_ids_are_read_as_written(tmp_path: Path) -> None:
    make_folder(tmp_path, tests=0, rows=10)
    for row, name in enumerate(["NA", "1e5", "007", "nan"]):
        edit_csv(tmp_path / "train.csv", row, "ID", name)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text("\ufeff" + text)
    assert read_table(LAYOUT, tmp_path).ids[:4] == ("NA", "1e5", "007", "nan")


def test_test_rows_are_read_without_a_train_csv(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train.csv").unlink()
    ids, files = read_test(LAYOUT, tmp_path)
    assert ids[0] == "T000" and files[0] == ("test/0000.png",) and len(ids) == len(files) == 6
    (tmp_path / "test/0002.png").unlink()
    with pytest.raises(UserError, match="T002"):
        read_test(LAYOUT, tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UserError, match=r"test\.csv does not exist"):
        read_test(LAYOUT, tmp_path)


def test_dropping_rows_keeps_all_columns_aligned(tmp_path: Path) -> None:
    make_folder(tmp_path, columns={"slide": [f"s{i}" for i in range(48)]})
    table: Table = read_table(LAYOUT, tmp_path)
    less = drop(table, {"0000", "0005"})
    assert len(less.ids) == 46 and "0005" not in less.ids
    for row, name in enumerate(less.ids):
        old = table.ids.index(name)
        assert less.paths[row] == table.paths[old]
        assert less.columns["slide"][row] == table.columns["slide"][old]
        assert np.array_equal(less.targets_TN[:, row], table.targets_TN[:, old])
    assert less.test_ids == table.test_ids
