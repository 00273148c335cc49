import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.check import main
from search.data.check import Need, _auto, check_images, inspect
from search.data.source import resolve_data
from search.data.table import Table
from spaces.errors import UserError
from spaces.registry import load_task
from tests.datafolder import edit_csv, make_folder, png, truncate

REPO = Path(__file__).parents[1]
TASK = load_task("gene_expr")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


def test_a_clean_folder_has_a_report_that_is_json(root: Path) -> None:
    report = inspect(TASK, root, groups="none")
    data = json.loads(json.dumps(report.to_dict()))
    assert data["rows"] == {"train": 48, "test": 6}
    assert data["images"]["count"] == 54 and data["images"]["sizes"] == {"16x16": 54}
    assert data["images"]["modes"] == {"RGB": 54} and data["images"]["formats"] == {"PNG": 54}
    assert data["targets"]["count"] == 5 and data["targets"]["constant"] == []
    assert sorted(data["fold_sizes"]) == [9, 9, 10, 10, 10]
    assert data["warnings"] == [] and data["quarantined"] == []


def test_conversions_and_sizes_are_counted(root: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., 0]).save(root / "train/0000.png")
    Image.fromarray(pixels).save(root / "train/0001.png")
    Image.fromarray(pixels[:8, :12, :3]).save(root / "train/0002.png")
    (root / "train/0003.png").write_bytes(png(np.full((16, 16, 1), 4000, dtype=np.uint16)))
    report = inspect(TASK, root)
    assert report.images.converted == {"grey": 2, "alpha": 1, "16 bit": 1}
    assert report.images.sizes == {"16x16": 53, "12x8": 1}
    text = "\n".join(report.warnings)
    assert "grey 2" in text and "12x8: 1" in text and "above 4000" in text


def test_unreadable_images_stop_the_run_with_the_list(root: Path) -> None:
    for name in ("train/0002.png", "train/0007.png", "test/0001.png"):
        truncate(root / name)
    with pytest.raises(UserError) as caught:
        inspect(TASK, root)
    assert len(caught.value.faults) == 3
    assert all("is unreadable" in fault for fault in caught.value.faults)


def test_skip_bad_leaves_train_rows_out_and_lists_them(root: Path) -> None:
    truncate(root / "train/0002.png")
    report = inspect(TASK, root, skip_bad=True)
    assert len(report.table.ids) == 47 and "0002" not in report.table.ids
    (row,) = report.to_dict()["quarantined"]
    assert (row["id"], row["files"]) == ("0002", ("train/0002.png",)) and row["reason"]
    assert any("0002 (1)" in warning for warning in report.warnings)


def test_an_unreadable_test_image_stays_a_fault_with_skip_bad(root: Path) -> None:
    truncate(root / "train/0002.png")
    truncate(root / "test/0001.png")
    with pytest.raises(UserError) as caught:
        inspect(TASK, root, skip_bad=True)
    (fault,) = caught.value.faults
    assert "test/0001.png" in fault and "cannot be skipped" in fault


def test_faults_of_table_images_folds_and_disk_come_together(root: Path) -> None:
    edit_csv(root / "train.csv", 1, "g1", "x")
    (root / "train/0004.png").unlink()
    truncate(root / "train/0002.png")

    def needs(table: Table) -> list[Need]:
        return [(root, 10**18 + len(table.ids), "the cake")]

    with pytest.raises(UserError) as caught:
        inspect(TASK, root, groups="slide.csv", needs=needs)
    text = str(caught.value)
    for part in ("'g1'", "0004.png", "0002.png is unreadable", "slide.csv", "the cake needs"):
        assert part in text
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize("groups", ["none", "auto"])
def test_too_few_rows_per_fold_are_a_fault(tmp_path: Path, groups: str) -> None:
    with pytest.raises(UserError, match="at least 8 rows each"):
        inspect(TASK, make_folder(tmp_path, rows=20), groups=groups)


def test_groups_make_the_folds(tmp_path: Path) -> None:
    root = make_folder(tmp_path, columns={"slide": [f"s{i % 3}" for i in range(48)]})
    report = inspect(TASK, root, groups="slide")
    assert report.to_dict()["groups"] == {"s0": 16, "s1": 16, "s2": 16}
    assert report.to_dict()["fold_sizes"] == [16, 16, 16]


def test_auto_tells_what_it_found_and_folds_the_rows(root: Path) -> None:
    report = inspect(TASK, root, groups="auto")
    assert report.auto is not None and report.auto.labels is None and report.groups is None
    assert sorted(np.bincount(report.fold_N)) == [9, 9, 10, 10, 10]
    rng = np.random.default_rng(0)
    for row in range(48):
        pixels = rng.normal(190 if row % 3 else 60, 15, (16, 16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"train/{row:04d}.png")
    report = inspect(TASK, root, groups="auto")
    assert report.to_dict()["groups"] == {"group 0": 32, "group 1": 16}
    assert report.to_dict()["fold_sizes"] == [32, 16]
    assert len(report.to_dict()["clusters"]) == 2


def test_a_column_that_looks_like_groups_is_told(tmp_path: Path) -> None:
    columns = {"Patient": [f"p{i % 12}" for i in range(48)], "note": ["x"] * 48}
    root = make_folder(tmp_path, columns=columns)
    told = [w for w in inspect(TASK, root, groups="auto").warnings if "--groups COLUMN" in w]
    assert len(told) == 1 and "'Patient' has 12 values in 48 rows" in told[0]
    for asked in ("none", "Patient"):
        assert not any("--groups COLUMN" in w for w in inspect(TASK, root, groups=asked).warnings)
    columns["Patient"] = [f"p{i}" for i in range(48)]
    root = make_folder(tmp_path / "own", columns=columns)
    assert not any("--groups" in w for w in inspect(TASK, root, groups="auto").warnings)


def test_clusters_that_are_the_classes_are_no_groups(root: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["dark" if row % 3 else "light" for row in range(48)]
    for row, name in enumerate(names):
        pixels = rng.normal(60 if name == "dark" else 190, 15, (16, 16)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"train/{row:04d}.png")
    table = pd.read_csv(root / "train.csv", dtype=str).assign(kind=names)
    table[["ID", "path", "kind"]].to_csv(root / "train.csv", index=False)
    (root / "sample_submission.csv").unlink()
    task = load_task("csv", {"targets": ["kind"], "image_columns": ["path"], "id_column": "ID"})
    report = inspect(task, root, groups="auto")
    assert report.auto is not None and report.auto.labels is None
    assert "follow the labels" in report.auto.reason
    assert len(report.to_dict()["fold_sizes"]) == 5


def test_near_duplicates_that_join_all_clusters_leave_no_groups(root: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(48):
        pixels = rng.normal(190 if row % 3 else 60, 15, (16, 16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"train/{row:04d}.png")
    found = inspect(TASK, root, groups="auto")
    assert found.auto is not None and found.auto.labels is not None
    alike = replace(found.alike, train=((0, 1),))  # of both clusters
    again = _auto(found.thumbs_IHW3, found.table, "regression", alike, 0)
    assert again.labels is None and "near duplicates join" in again.reason


def test_a_groups_file_may_name_a_quarantined_row(root: Path) -> None:
    path = root.parent / "groups.csv"
    path.write_text("ID,slide\n" + "".join(f"{i:04d},s{i % 3}\n" for i in range(48)))
    truncate(root / "train/0002.png")
    assert inspect(TASK, root, groups=str(path), skip_bad=True).groups is not None


def test_files_with_the_same_bytes_are_told_also_across_train_and_test(root: Path) -> None:
    data = (root / "train/0000.png").read_bytes()
    (root / "train/0005.png").write_bytes(data)
    (root / "test/0002.png").write_bytes((root / "train/0009.png").read_bytes())
    duplicates = inspect(TASK, root).to_dict()["duplicates"]
    assert duplicates["files"] == [
        ["train/0000.png", "train/0005.png"],
        ["train/0009.png", "test/0002.png"],
    ]
    assert duplicates["train_and_test"] == [["train/0009.png", "test/0002.png"]]


def test_images_outside_the_folder_are_never_opened(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    truncate(root / "train/0000.png")
    (root / "train/0000.png").rename(tmp_path / "secret.png")
    edit_csv(root / "train.csv", 0, "path", "../secret.png")
    with pytest.raises(UserError) as caught:
        inspect(TASK, root)
    assert "unreadable" not in str(caught.value) and "leave the data folder" in str(caught.value)


def test_the_number_of_threads_does_not_change_the_report(root: Path) -> None:
    paths = [f"train/{i:04d}.png" for i in range(48)]
    truncate(root / paths[3])
    one, four = (vars(check_images(root, paths, workers=workers)) for workers in (1, 4))
    for name, value in one.items():
        np.testing.assert_equal(four[name], value, err_msg=name)


def test_progress_counts_every_image(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    inspect(TASK, root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 54) for i in range(1, 55)]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def command(*args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RUNGFOLD_CACHE": str(tmp_path / "cache"), "COLUMNS": "80"}
        return subprocess.run(
            [sys.executable, "-m", "search.check", *args],
            cwd=REPO, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    return command


def test_the_command_prints_a_plain_report_of_eighty_columns(run, root: Path) -> None:
    done = run("gene_expr", "--data", str(root))
    assert done.returncode == 0 and done.stderr == ""
    assert "train rows" in done.stdout and "48" in done.stdout and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_command_exits_1_with_all_faults_and_no_traceback(run, root: Path) -> None:
    edit_csv(root / "train.csv", 1, "g1", "x")
    truncate(root / "train/0002.png")
    done = run("gene_expr", "--data", str(root))
    assert done.returncode == 1 and done.stdout == ""
    assert "2 faults" in done.stderr and "Traceback" not in done.stderr
    assert run("gene_expr", "--data", str(root / "none")).returncode == 1
    assert run("gene_exprs", "--data", str(root)).returncode == 1


def test_skip_bad_is_a_flag_of_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(root / "train/0002.png")
    assert main(["gene_expr", "--data", str(root), "--skip-bad"]) == 0
    assert "0002" in capsys.readouterr().out


def test_without_data_the_sample_is_used_and_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A small one of its own: the real sample takes seconds to draw.
    task = replace(load_task("gene_expr"), write_sample=lambda folder, seed: make_folder(folder))
    monkeypatch.setattr("spaces.registry.load_task", lambda name, options: task)
    assert main(["gene_expr", "--cache", str(tmp_path / "cache")]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "embedded sample of gene_expr" in first
    assert Path(second).is_relative_to(tmp_path / "cache/samples")


def test_the_sample_is_written_once_whole_per_seed(tmp_path: Path) -> None:
    calls = []

    def write_sample(folder: Path, seed: int) -> None:
        calls.append(seed)
        make_folder(folder, seed=seed)

    task = replace(load_task("gene_expr"), write_sample=write_sample)
    root = resolve_data(task, None, tmp_path, 0)
    assert resolve_data(task, None, tmp_path, 0) == root and calls == [0]
    assert root.is_relative_to(tmp_path / "samples") and root.name.startswith("gene_expr-")
    inspect(TASK, root)
    assert resolve_data(task, None, tmp_path, 1) != root and calls == [0, 1]


def test_a_sample_that_failed_half_way_leaves_nothing_to_be_taken_for_whole(tmp_path: Path) -> None:
    def write_sample(folder: Path, seed: int) -> None:
        folder.mkdir()
        (folder / "train.csv").write_text("ID")
        raise KeyboardInterrupt

    task = replace(load_task("gene_expr"), write_sample=write_sample)
    with pytest.raises(KeyboardInterrupt):
        resolve_data(task, None, tmp_path, 0)
    assert not [path for path in (tmp_path / "samples").iterdir() if path.is_dir()]


def test_given_data_is_used_as_it_is(root: Path, tmp_path: Path) -> None:
    task = load_task("gene_expr")
    assert resolve_data(task, str(root), tmp_path, 0) == root
    with pytest.raises(UserError, match="is no folder"):
        resolve_data(task, str(root / "none"), tmp_path, 0)


@pytest.mark.real_data
def test_her2st_has_no_fault(data_root: Path) -> None:
    root = data_root / "her2st"
    report = inspect(TASK, root, groups=f"{root / 'train_slides.csv'}:section")
    assert report.to_dict()["groups"] == {"B4": 101, "C2": 185, "C3": 179, "C4": 184, "C5": 179}
    assert report.to_dict()["fold_sizes"] == [101, 185, 179, 184, 179]
    assert len(report.table.target_names) == 250 and len(report.table.test_ids) == 244
