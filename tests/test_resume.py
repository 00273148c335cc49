"""A run that was killed, moved or extended goes on as if nothing had happened, or says why not."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from search.setup import reopen
from spaces.errors import UserError
from spaces.registry import task_file
from tests.kills import Pace, Victim
from tests.runs import SMALL, call, decisions, events_of, rows_of, start


def check_equal(run: Path, whole: Path) -> None:
    """The run decided as the whole one did, and left the same predictions."""
    assert decisions(run) == decisions(whole)
    for path in sorted(whole.glob("oof/*/*.npy")):
        assert path.read_bytes() == (run / path.relative_to(whole)).read_bytes(), path
    assert rows_of(run / "submission.csv") == rows_of(whole / "submission.csv")


def test_killed_at_random_moments_it_ends_as_an_unbroken_run(
    whole: tuple[Path, str], tiles: Path, tmp_path: Path
) -> None:
    victim, rng = Victim(tmp_path, tiles, trials=6, cores=1), random.Random(0)
    for _ in range(3):
        victim.kill(rng, Pace.of(whole[0]), kills=3)
    victim.finish()
    victim.check()
    check_equal(victim.run, whole[0])


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, tiles: Path) -> Path:
    """An unbroken run with one worker, long enough to be killed ten times."""
    folder = tmp_path_factory.mktemp("longer")
    call("gene_expr", "--data", tiles, "--out", "run", "--trials", 16, *SMALL, cwd=folder)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_ten_times_it_ends_as_an_unbroken_run(
    longer: Path, tiles: Path, tmp_path: Path
) -> None:
    victim, rng = Victim(tmp_path, tiles, trials=16, cores=1), random.Random(1)
    for _ in range(10):
        victim.kill(rng, Pace.of(longer), kills=10)
    victim.finish()
    victim.check()
    check_equal(victim.run, longer)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_ten_times_two_workers_lose_and_repeat_nothing(
    longer: Path, tiles: Path, tmp_path: Path
) -> None:
    pace = Pace.of(longer)
    pace = Pace(startup=pace.startup, work=pace.work / 2)
    victim, rng = Victim(tmp_path, tiles, trials=16, cores=2), random.Random(2)
    for _ in range(10):
        victim.kill(rng, pace, kills=10)
    victim.finish()
    victim.check()
    assert len({e.trial for e in events_of(victim.run) if e.kind == "end"}) == 16


def edit(run: Path, **fields: Any) -> None:
    """Change fields of run.json; None takes one out."""
    data = json.loads((run / "run.json").read_text()) | fields
    for name in (name for name, value in fields.items() if value is None):
        del data[name]
    (run / "run.json").write_text(json.dumps(data))


@pytest.fixture
def copy(whole: tuple[Path, str], tmp_path: Path) -> Path:
    """The finished run, copied elsewhere."""
    shutil.copytree(whole[0], tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_copy_is_extended_by_as_many_trials_as_asked_though_killed_and_without_its_cache(
    whole: tuple[Path, str], copy: Path
) -> None:
    original = content(whole[0])
    cache = copy.parent / "cache"
    store = json.loads((copy / "run.json").read_text())["store"]
    edit(copy, cache=str(cache), store=str(cache / "store" / Path(store).name))
    process = start("--resume", "copy", "--extend", 2, cwd=copy.parent)
    deadline = time.monotonic() + 200
    while not any(e.kind == "extend" for e in events_of(copy)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    call("--resume", "copy", cwd=copy.parent)
    events = events_of(copy)
    assert [e.data for e in events if e.kind == "extend"] == [{"trials": 2}]
    assert sorted({e.trial for e in events if e.kind == "end"}) == list(range(8))
    before = decisions(whole[0])
    assert decisions(copy)[: len(before)] == before
    assert content(whole[0]) == original and list(cache.glob("store/*/images.npy"))


def my_task(copy: Path) -> Path:
    """Makes the run one of the user's own task file."""
    path = copy.parent / "my_task.py"
    path.write_text(task_file("gene_expr").read_text())
    edit(copy, task=str(path))
    edit(copy, task_digest=reopen(copy, force=True).task_digest)
    return path


def test_a_task_file_that_changed_is_refused_unless_forced(copy: Path) -> None:
    path = my_task(copy)
    reopen(copy)
    path.write_text(path.read_text() + "\n# other numbers\n")
    with pytest.raises(UserError, match=r"my_task\.py has changed since .*--force"):
        reopen(copy)
    reopen(copy, force=True)


def test_a_known_task_that_changed_is_refused_too(copy: Path) -> None:
    reopen(copy)
    edit(copy, task_digest="0" * 64)
    with pytest.raises(UserError, match=r"gene_expr\.py has changed since"):
        reopen(copy)


def test_all_that_is_gone_is_told_at_once(copy: Path) -> None:
    my_task(copy).unlink()
    gone = copy.parent / "gone"
    edit(copy, data=str(gone), weights={"pretrained": True, "folder": str(gone), "reason": ""})
    with pytest.raises(UserError) as caught:
        reopen(copy)
    assert len(caught.value.faults) == 3
    for words in ("my_task.py is gone", f"data folder {gone} is gone", "put it back", "cp -a"):
        assert words in str(caught.value)


def test_other_images_than_the_runs_own_are_refused(copy: Path, tiles: Path) -> None:
    shutil.copytree(tiles, copy.parent / "open")
    edit(copy, data=str(copy.parent / "open"))
    with pytest.raises(UserError, match="have changed since"):
        reopen(copy)
