"""Memory of a run: shared pages once, peaks over sessions, one line for people."""

import json
import mmap
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from search import memory_watch
from search.leaderboard import main, write_leaderboard
from search.memory_watch import MemoryWatch, Usage, keep_peak, peak_line, processes_of, usage_of
from search.run_folder import RunFolder, read_json, write_json

MB = 10**6
OWN = 40 * MB  # bytes that each worker has for itself
USAGE = Usage(
    measure="PSS", driver=2 * MB, ray=3 * MB, workers=(5 * MB, 7 * MB), images=11 * MB,
    everywhere=True,
)  # fmt: skip
linux = pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
WORKER = f"""
import mmap, sys
own = b"x" * {OWN}
with open(sys.argv[1], "rb") as file:
    images = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
with open(sys.argv[2], "rb") as file:  # by which a process that trains is known
    torch = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
seen = sum(images[i] for i in range(0, len(images), {mmap.PAGESIZE}))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    path.write_bytes(b"i" * 60 * MB)
    return path


def start(title: str, images: Path, library: str = "libtorch.so") -> "subprocess.Popen[str]":
    mapped = images.with_name(library)
    mapped.write_bytes(b"code")
    process = subprocess.Popen(
        [title, "-c", WORKER, str(images), str(mapped)], executable=sys.executable, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def workers(images: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    found = [start(f"ray::{name}", images) for name in ("IDLE", "ResourceTrainable.train")]
    yield found
    for process in found:
        process.communicate("")


@linux
def test_shared_images_count_once(images: Path, workers: list[Any]) -> None:
    usage = usage_of(processes_of(images, True), images, True)
    assert usage.measure == "PSS" and usage.everywhere
    assert usage.images == pytest.approx(60 * MB, rel=0.05)
    assert len(usage.workers) == 2
    assert all(OWN < size < OWN + 30 * MB for size in usage.workers)
    assert usage.total == usage.driver + usage.ray + sum(usage.workers) + usage.images


def test_without_pss_it_is_rss_and_says_so(
    images: Path, workers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p: "smaps" not in p.name and exists(p))
    usage = usage_of(processes_of(images, True), images, True)
    assert usage.measure == "RSS" and usage.images == 0
    assert all(size > OWN + 60 * MB for size in usage.workers)
    assert "RSS" in peak_line({"memory": usage.to_dict()})


@linux
def test_on_a_cluster_only_workers_that_map_the_runs_images_are_counted(
    images: Path, workers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    pids = {process.pid for process in workers}
    assert {p.pid for p in processes_of(images, False)[1:]} == pids
    assert len(processes_of(images, True)) == 1
    other = tmp_path / "other.npy"
    other.write_bytes(b"x")
    assert len(processes_of(other, False)) == 1


@linux
def test_what_does_not_train_is_rays_own(images: Path) -> None:
    others = [start("ray::IDLE", images, "libc.so"), start("loader", images)]
    usage = usage_of(processes_of(images, True), images, True)
    for process in others:
        process.communicate("")
    assert not usage.workers and usage.ray > 2 * OWN


def test_a_process_that_has_ended_takes_nothing(images: Path) -> None:
    process = start("ray::ResourceTrainable.train", images)
    gone = psutil.Process(process.pid)
    process.communicate("")
    usage = usage_of([psutil.Process(), gone], images, True)
    assert usage.ray == 0 and sum(usage.workers) == 0


def test_the_watch_notes_the_peak(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "EVERY", 0.01)
    sizes = iter([5, 9, 2])

    def usage(*args: object) -> Usage:
        return replace(USAGE, images=next(sizes))

    grown = iter(range(1, 10**9))  # RSS that grows by more than GROWN for some time
    monkeypatch.setattr(memory_watch, "usage_of", usage)
    monkeypatch.setattr(memory_watch, "_rss", lambda process: next(grown))
    monkeypatch.setattr(memory_watch, "processes_of", lambda *args: [psutil.Process()])
    monkeypatch.setattr(memory_watch, "GROWN", 1.0)
    watch = MemoryWatch(images, True)
    with pytest.raises(StopIteration):
        while True:
            watch.look()
    assert watch.peak is not None and watch.peak.images == 9


def test_pss_is_asked_for_only_when_rss_has_grown(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    sizes = iter([100, 101, 90, 103, 103])

    def usage(*args: object) -> Usage:
        asked.append(1)
        return USAGE

    monkeypatch.setattr(memory_watch, "usage_of", usage)
    monkeypatch.setattr(memory_watch, "processes_of", lambda *args: [psutil.Process()])
    monkeypatch.setattr(memory_watch, "_rss", lambda process: next(sizes))
    watch = MemoryWatch(images, True)
    counts = []
    for _ in range(5):
        watch.look()
        counts.append(len(asked))
    assert counts == [1, 1, 1, 2, 2]


def test_a_watch_looks_by_itself_and_is_over_when_left(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_watch, "EVERY", 0.01)
    with MemoryWatch(images, True) as watch:
        while watch.peak is None:
            time.sleep(0.01)
    assert watch.peak.driver > 0 and not watch._thread.is_alive()


def test_the_largest_peak_of_all_sessions_is_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_json(run.data, {"rows": {"train": 3}})
    keep_peak(run, None)
    assert "memory" not in read_json(run.data)
    for images in (50 * MB, 20 * MB, 60 * MB, 30 * MB):
        keep_peak(run, replace(USAGE, images=images))
    data = read_json(run.data)
    assert data["rows"] == {"train": 3}
    assert data["memory"]["images"] == 60 * MB and data["memory"]["total"] == 77 * MB
    assert data["memory"]["workers"] == [5 * MB, 7 * MB]


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("measure", ["PSS", "RSS"])
@pytest.mark.parametrize("workers", [0, 1, 2, 128])
def test_the_line_fits_eighty_columns(everywhere: bool, measure: str, workers: int) -> None:
    usage = replace(
        USAGE, everywhere=everywhere, measure=measure, workers=(12 * 10**9,) * workers,
        images=123 * 10**9, ray=9 * 10**9, driver=10**9,
    )  # fmt: skip
    line = peak_line({"memory": json.loads(json.dumps(usage.to_dict()))})
    assert len(line) <= 80
    assert ("RSS" in line) == (measure == "RSS") and (" here" in line) == (not everywhere)
    assert (f"{workers} worker" in line) == bool(workers)


def test_the_line_stands_below_the_leaderboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    run = RunFolder(tmp_path)
    write_json(run.run, {})
    write_leaderboard(run, pd.DataFrame([]))
    assert main([str(tmp_path)]) == 0
    assert "memory" not in capsys.readouterr().out
    write_json(run.data, {"memory": replace(USAGE, images=10**9).to_dict()})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == peak_line(read_json(run.data))
