import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from search.data import cache as cache_module
from search.data.cache import Store, check_headers, default_cache, load_store, open_store
from search.data.decode import decode, decode_image
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


FILES = [(f"train/{i:04d}.png",) for i in range(40)]


def opened(root: Path, size: int = 8, files: list[tuple[str, ...]] = FILES) -> tuple[Store, int]:
    """The store, and how many images were decoded for it."""
    counter = Counter()
    store = open_store(root, files, size, root.parent / "cache", counter, workers=2)
    return store, counter.calls[-1][0] if counter.calls else 0


def test_row_i_is_the_decoded_image_i_and_read_only(root: Path) -> None:
    store, _ = opened(root, size=8, files=FILES[::-1])
    assert isinstance(store.images_NHWC, np.memmap)
    assert store.images_NHWC.shape == (40, 8, 8, 3) and store.images_NHWC.dtype == np.uint8
    for i, (path,) in enumerate(FILES[::-1]):
        assert np.array_equal(store.images_NHWC[i], decode(root / path, 8))
    with pytest.raises(ValueError, match="read-only"):
        store.images_NHWC[0] = 0


def test_progress_rises_to_the_total(root: Path) -> None:
    counter = Counter()
    open_store(root, FILES, 8, root.parent / "cache", counter, workers=2)
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
    stat = os.stat(root / FILES[0][0])
    os.utime(root / FILES[0][0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    assert opened(root)[1] == 40


def test_added_removed_reordered_images_and_another_size_are_other_stores(root: Path) -> None:
    keys = {
        opened(root)[0].key,
        opened(root, files=FILES[:-1])[0].key,
        opened(root, files=[*FILES, ("test/0000.png",)])[0].key,
        opened(root, files=FILES[::-1])[0].key,
        opened(root, size=16)[0].key,
    }
    assert len(keys) == 5


def test_another_folder_with_the_same_names_and_times_is_another_store(root: Path) -> None:
    shutil.copytree(root, root.parent / "copy", copy_function=shutil.copy2)
    first, _ = opened(root)
    other = open_store(root.parent / "copy", FILES, 8, root.parent / "cache")
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
    left = sorted(p.name for p in rebuilt.folder.iterdir())
    assert left == ["images.npy", "manifest.json", "sources.json"]


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
        opened(root, files=[("train/none.png",)])


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
    def touch_and_decode(root: Path, files: tuple[str, ...], *rest: object) -> np.ndarray:
        os.utime(root / files[0], ns=(1, 1))
        return decode_image(root, files, *rest)

    monkeypatch.setattr(cache_module, "decode_image", touch_and_decode)
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


def grey_files(root: Path) -> list[tuple[str, ...]]:
    """Ten images of four grey channels each."""
    rng = np.random.default_rng(0)
    files = [tuple(f"{i}_{colour}.png" for colour in "rgby") for i in range(10)]
    for path in (path for image in files for path in image):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(root / path)
    return files


def test_several_files_of_an_image_become_its_channels(root: Path) -> None:
    files = grey_files(root)
    store, decoded = opened(root, files=files)
    assert store.images_NHWC.shape == (10, 8, 8, 4) and store.channels == 4 and decoded == 10
    for image_HWC, image in zip(store.images_NHWC, files, strict=True):
        for channel, path in enumerate(image):
            assert np.array_equal(image_HWC[..., channel], decode(root / path, 8)[..., 0])
    again = load_store(store.folder)
    assert np.array_equal(again.images_NHWC, store.images_NHWC)
    flat = [(path,) for image in files for path in image]
    assert opened(root, files=flat)[0].key != store.key


def test_the_unreadable_channel_is_named(root: Path) -> None:
    files = grey_files(root)
    truncate(root / "3_b.png")
    (root / "7_y.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        opened(root, files=files)
    assert [f"{root}/3_b.png is unreadable" in fault for fault in caught.value.faults] == [1, 0]
    with pytest.raises(UserError, match=r"7_y\.png is unreadable: it is none of"):
        check_headers(root, files)


def test_cleaning_comes_before_squeezing_and_makes_a_store_of_its_own(root: Path) -> None:
    def top(image_HWC: np.ndarray) -> np.ndarray:
        return image_HWC[:8]

    plain, _ = opened(root)
    clean = open_store(root, FILES, 8, root.parent / "cache", clean=top, clean_key="top")
    assert clean.key != plain.key
    with Image.open(root / FILES[5][0]) as image:
        want = image.crop((0, 0, 16, 8)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(clean.images_NHWC[5], want)


def test_a_store_of_an_older_version_is_told(root: Path) -> None:
    store, _ = opened(root)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    del manifest["channels"]  # the first version had none
    (store.folder / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    with pytest.raises(UserError, match="resume the run"):
        load_store(store.folder)
