import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from search.data import cache as cache_module
from search.data.cache import Store, default_cache, open_store
from search.data.decode import decode
from spaces.errors import UserError
from tests.datafolder import make_folder, truncate


class Counter:
    """Counts the images that were decoded."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", rows=40, tests=2)


PATHS = [f"train/{i:04d}.png" for i in range(40)]


def opened(root: Path, size: int = 8, paths: list[str] = PATHS) -> tuple[Store, int]:
    """The store, and how many images were decoded for it."""
    counter = Counter()
    store = open_store(root, paths, size, root.parent / "cache", counter, workers=2)
    return store, counter.calls[-1][0] if counter.calls else 0


def test_row_i_is_the_decoded_image_i_and_read_only(root: Path) -> None:
    store, _ = opened(root, size=8, paths=PATHS[::-1])
    assert isinstance(store.images_NHWC, np.memmap)
    assert store.images_NHWC.shape == (40, 8, 8, 3) and store.images_NHWC.dtype == np.uint8
    for i, path in enumerate(PATHS[::-1]):
        assert np.array_equal(store.images_NHWC[i], decode(root / path, 8))
    with pytest.raises(ValueError, match="read-only"):
        store.images_NHWC[0] = 0


def test_progress_rises_to_the_total(root: Path) -> None:
    counter = Counter()
    open_store(root, PATHS, 8, root.parent / "cache", counter, workers=2)
    done = [d for d, _ in counter.calls]
    assert done == sorted(done) and counter.calls[-1] == (40, 40)


def test_a_finished_store_is_reused(root: Path) -> None:
    first, decoded = opened(root)
    again, decoded_again = opened(root)
    assert (decoded, decoded_again) == (40, 0)
    assert again.key == first.key


def test_nothing_is_written_beside_the_data(root: Path) -> None:
    before = sorted(root.rglob("*"))
    opened(root)
    assert sorted(root.rglob("*")) == before


def test_a_changed_image_is_noticed(root: Path) -> None:
    opened(root)
    Image.new("RGB", (16, 16), "red").save(root / "train/0003.png")
    store, decoded = opened(root)
    assert decoded == 40 and (store.images_NHWC[3] == (255, 0, 0)).all()


def test_a_change_of_time_alone_is_noticed(root: Path) -> None:
    opened(root)
    stat = os.stat(root / PATHS[0])
    os.utime(root / PATHS[0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    assert opened(root)[1] == 40


def test_added_removed_reordered_images_and_another_size_are_other_stores(root: Path) -> None:
    keys = {
        opened(root)[0].key,
        opened(root, paths=PATHS[:-1])[0].key,
        opened(root, paths=[*PATHS, "test/0000.png"])[0].key,
        opened(root, paths=PATHS[::-1])[0].key,
        opened(root, size=16)[0].key,
    }
    assert len(keys) == 5


def test_another_folder_with_the_same_names_and_times_is_another_store(root: Path) -> None:
    shutil.copytree(root, root.parent / "copy", copy_function=shutil.copy2)
    first, _ = opened(root)
    other = open_store(root.parent / "copy", PATHS, 8, root.parent / "cache")
    assert first.key != other.key


@pytest.mark.parametrize("damage", ["no manifest", "short", "gone", "partial"])
def test_a_store_that_is_not_whole_is_rebuilt(root: Path, damage: str) -> None:
    store, _ = opened(root)
    images = store.folder / "images.npy"
    want = np.array(store.images_NHWC)
    if damage == "no manifest":
        (store.folder / "manifest.json").unlink()
    elif damage == "short":
        truncate(images)
    elif damage == "gone":
        images.unlink()
    else:
        shutil.rmtree(store.folder)
        store.folder.mkdir()
        (store.folder / "images.partial.npy").write_bytes(b"half")
    rebuilt, decoded = opened(root)
    assert decoded == 40 and np.array_equal(rebuilt.images_NHWC, want)
    assert sorted(p.name for p in rebuilt.folder.iterdir()) == ["images.npy", "manifest.json"]


def test_unreadable_images_are_all_named_and_nothing_is_left(root: Path) -> None:
    for name in ("0002", "0030"):
        truncate(root / f"train/{name}.png")
    with pytest.raises(UserError) as caught:
        opened(root)
    assert len(caught.value.faults) == 2
    assert "0002.png is unreadable" in str(caught.value) and "0030.png" in str(caught.value)
    assert not list((root.parent / "cache/store").glob("*/*"))


def test_a_missing_image_is_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        opened(root, paths=["train/none.png"])


def test_a_full_disk_is_told_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.data.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="image store of 40 images at 8 px needs"):
        opened(root)
    assert not list((root.parent / "cache/store").glob("*/*"))


def test_a_quota_met_on_the_way_is_told_and_nothing_is_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.EDQUOT, "over quota")

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="choose another --cache"):
        opened(root)
    assert not list((root.parent / "cache/store").glob("*/*"))


def test_a_file_that_changes_while_it_is_read_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch_and_decode(path: Path, size: int) -> np.ndarray:
        os.utime(path, ns=(1, 1))
        return decode(path, size)

    monkeypatch.setattr(cache_module, "decode", touch_and_decode)
    with pytest.raises(UserError, match="changed while they were read"):
        opened(root)


def _open_in_process(root: Path, barrier, results) -> None:
    barrier.wait()
    store, decoded = opened(root)
    results.put((decoded, int(store.images_NHWC.sum(dtype=np.int64))))


def test_of_several_processes_one_writes_and_all_read(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    jobs = [
        context.Process(target=_open_in_process, args=(root, barrier, results)) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    found = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    assert sorted(decoded for decoded, _ in found) == [0, 0, 40]
    assert len({total for _, total in found}) == 1


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNGFOLD_CACHE", "/a/b")
    assert default_cache() == Path("/a/b")
    monkeypatch.delenv("RUNGFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_cache() == Path("/c/rungfold")
