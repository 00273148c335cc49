"""What was seen of images is kept: the same report, and whatever changed is looked at again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.data import images
from search.data.check import inspect
from search.data.images import ImageReport, check_images
from spaces.errors import UserError
from spaces.registry import load_task
from tests.datafolder import make_folder, truncate

TASK = load_task("gene_expr")
Opened = list[Path]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of every file that is decoded."""
    found: list[bytes] = []
    examine = images.examine

    def note(data: bytes) -> Any:
        found.append(data)
        return examine(data)

    monkeypatch.setattr(images, "examine", note)
    return found


def same(one: ImageReport, other: ImageReport) -> bool:
    facts, others = vars(one).copy(), vars(other).copy()
    return np.array_equal(facts.pop("thumbs_FHW3"), others.pop("thumbs_FHW3")) and facts == others


def captioned(path: Path) -> None:
    """An image with a frame, and three bars on one line that look like letters."""
    pixels_HW3 = np.random.default_rng(5).integers(60, 140, (128, 128, 3), dtype=np.uint8)
    for left in (20, 30, 40):
        pixels_HW3[100:110, left : left + 2] = 255
    pixels_HW3[:6] = pixels_HW3[-6:] = 0
    pixels_HW3[:, :6] = pixels_HW3[:, -6:] = 0
    Image.fromarray(pixels_HW3).save(path)


def test_a_second_look_decodes_nothing_and_reports_the_same(
    root: Path, tmp_path: Path, examined: list[bytes]
) -> None:
    captioned(root / "train/0003.png")
    Image.fromarray(np.full((16, 16), 9000, np.uint16)).save(root / "train/0004.png")
    without = inspect(TASK, root)
    assert without.images.borders and without.images.captions and without.images.peak == 9000
    first = inspect(TASK, root, cache=tmp_path / "cache")
    examined.clear()
    second = inspect(TASK, root, cache=tmp_path / "cache")
    assert not examined
    for report in (first, second):
        assert same(report.images, without.images)
        assert np.array_equal(report.thumbs_IHW3, without.thumbs_IHW3)
        assert np.array_equal(report.fold_N, without.fold_N)
        assert report.to_dict() == without.to_dict()


def touch(root: Path) -> int:
    path = root / "train/0001.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    return 1


def replace_by_one_of_equal_length(root: Path) -> int:
    path = root / "train/0001.tif"
    pixels_HW3 = np.zeros((16, 16, 3), np.uint8)
    Image.fromarray(pixels_HW3).save(path)
    return 1


def add(root: Path) -> int:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "train/9999.png")
    return 1


def remove(root: Path) -> int:
    (root / "train/0002.png").unlink()
    return 0


def break_one(root: Path) -> int:
    truncate(root / "train/0005.png")
    return 1


@pytest.mark.parametrize("change", [touch, replace_by_one_of_equal_length, add, remove, break_one])
def test_only_what_changed_is_looked_at_again(
    change: Callable[[Path], int], root: Path, tmp_path: Path, examined: list[bytes]
) -> None:
    pixels_HW3 = np.full((16, 16, 3), 200, np.uint8)
    Image.fromarray(pixels_HW3).save(root / "train/0001.tif")

    def paths() -> list[str]:
        return sorted(str(p.relative_to(root)) for p in (root / "train").iterdir())

    check_images(root, paths(), cache=tmp_path)
    examined.clear()
    changed = change(root)
    report = check_images(root, paths(), cache=tmp_path)
    assert len(examined) == changed
    assert same(report, check_images(root, paths()))
    examined.clear()
    again = check_images(root, paths(), cache=tmp_path)
    # A file that cannot be read is opened every time: it may have been mended.
    assert len(examined) == len(report.unreadable) and same(again, report)


def test_channels_of_an_image_are_seen_together(
    root: Path, tmp_path: Path, examined: list[bytes]
) -> None:
    paths = sorted(str(p.relative_to(root)) for p in (root / "train").iterdir())
    pairs = list(zip(paths[::2], paths[1::2], strict=True))
    first = check_images(root, paths, channels=pairs, cache=tmp_path)
    examined.clear()
    assert same(check_images(root, paths, channels=pairs, cache=tmp_path), first) and not examined
    # Another file of a pair may have another size, or a border that is no longer shared.
    (root / paths[0]).write_bytes((root / paths[2]).read_bytes())
    report = check_images(root, paths, channels=pairs, cache=tmp_path)
    assert len(examined) == 2 and same(report, check_images(root, paths, channels=pairs))


@pytest.mark.parametrize("harm", ["images.json", "thumbs-*.npy"])
@pytest.mark.parametrize("cut", [0.0, 0.6])
def test_damaged_records_are_not_believed(
    harm: str, cut: float, root: Path, tmp_path: Path, examined: list[bytes]
) -> None:
    expected = inspect(TASK, root, cache=tmp_path)
    (path,) = tmp_path.glob(f"seen/*/{harm}")
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    examined.clear()
    assert same(inspect(TASK, root, cache=tmp_path).images, expected.images)
    assert len(examined) == 54
    (path,) = tmp_path.glob(f"seen/*/{harm}")  # mended, and nothing is left over
    assert path.stat().st_size == len(data)


def test_records_of_an_unknown_shape_are_not_believed(root: Path, tmp_path: Path) -> None:
    expected = inspect(TASK, root, cache=tmp_path)
    (path,) = tmp_path.glob("seen/*/images.json")
    saved = json.loads(path.read_text())
    saved["images"][0]["seen"] = [{"colour": "red"}]
    path.write_text(json.dumps(saved))
    assert same(inspect(TASK, root, cache=tmp_path).images, expected.images)


def test_another_folder_and_other_code_have_records_of_their_own(
    root: Path, tmp_path: Path, examined: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    inspect(TASK, root, cache=cache)
    other = make_folder(tmp_path / "other", seed=1)
    for path in root.rglob("*.png"):  # archives give all their files one time
        os.utime(other / path.relative_to(root), ns=(0, path.stat().st_mtime_ns))
    examined.clear()
    inspect(TASK, other, cache=cache)
    assert len(examined) == 54
    changed = tmp_path / "images.py"
    changed.write_text("# sees other things")
    monkeypatch.setattr(images, "__file__", str(changed))
    examined.clear()
    inspect(TASK, root, cache=cache)
    assert len(examined) == 54


def test_a_cache_without_room_stops_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise UserError("no room")

    monkeypatch.setattr("search.data.seen.need_space", full)
    assert same(inspect(TASK, root, cache=tmp_path).images, inspect(TASK, root).images)
    assert "no room" in caplog.text and not list(tmp_path.glob("seen/*/*"))
