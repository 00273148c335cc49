"""Runs at URLs: what lies there is always a run that can go on, whenever the driver is lost."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ensemble import build
from search import download, leaderboard, upload
from search.compose import Session
from search.data.remote import Place, Remote
from search.download import (
    MANIFEST,
    Manifest,
    fetch_run,
    local_folder,
    read_journal,
    read_manifest,
    segment,
)
from search.journal import Journal, read_events
from search.run import main
from search.run_folder import RunFolder, write_json
from search.trials import RUNNING, Trial, Trials
from search.upload import Uploader
from search.warm_start import read_prior
from spaces.errors import RunFailed, UserError
from tests import onehand, test_director
from tests import s3 as stores
from tests.runs import SMALL, call, events_of, start
from tests.s3 import Bucket, copies
from tests.test_director import director_of, outcome, plan_of, work

# Fixtures: pytest finds them here.
bucket, memory = stores.bucket, stores.memory
s3, s3_environment = stores.s3, stores.s3_environment


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs at URLs live below the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upload, "LAST_PAUSE", 0.0)
    monkeypatch.setattr(download, "_TRIES", 2)


class Lost(BaseException):
    """The driver is lost here."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What stores are asked to change: (method, name), or for copies both names."""
    done: list[tuple[str, ...]] = []

    def spy(method: str, place_of_names: slice) -> None:
        real = getattr(Place, method)

        def asking(self: Place, *given: Any) -> None:
            real(self, *given)
            done.append((method, *given[place_of_names]))

        monkeypatch.setattr(Place, method, asking)

    spy("put", slice(1, 2))
    spy("write", slice(0, 1))
    spy("copy", slice(0, 2))
    spy("delete", slice(0, 1))
    return done


def new_run(root: Path) -> RunFolder:
    """A run of which nothing is done yet."""
    run = RunFolder(root)
    root.mkdir(parents=True)
    write_json(run.run, {"task": "gene_expr"})
    return run


def begun(root: Path, url: str, told: list[str] | None = None) -> tuple[Journal, Uploader]:
    """A run with one event, and what copies it."""
    run = new_run(root)
    journal = Journal(run.journal)
    journal.append("session")
    return journal, Uploader(run, url, journal, (told if told is not None else []).append)


def content(root: Path) -> dict[str, bytes]:
    """All files but hidden ones, as they are named."""
    files = ((path.relative_to(root), path) for path in root.rglob("*") if path.is_file())
    return {
        name.as_posix(): path.read_bytes()
        for name, path in files
        if not any(part.startswith(".") for part in name.parts)
    }


def lying(bucket: Bucket) -> dict[str, bytes]:
    """What lies at the URL, as it would be on a disk: the journal in one piece."""
    found = bucket.content()
    del found[MANIFEST]
    names = sorted(name for name in found if name.startswith("journal/"))
    found["journal.jsonl"] = b"".join(found.pop(name) for name in names)
    return found


# -- what lies there -----------------------------------------------------------------------------


def test_all_of_a_run_is_there_and_the_journal_in_segments_written_once(
    bucket: Bucket, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    run = new_run(tmp_path / "run")
    director = director_of(run.root, plan_of(2))
    uploader = Uploader(run, bucket.url, director._journal, print)
    work(director, uploader.copy)
    assert uploader.close() is None
    assert lying(bucket) == content(run.root) and not run.staging.exists()
    written = [name for method, name in asked if method == "write" and name != MANIFEST]
    assert len(written) > 5
    assert written == [segment(n + 1) for n in range(len(written))]
    assert all(bucket.content()[name].endswith(b"\n") for name in written)


def test_nothing_new_costs_nothing(
    memory: Bucket, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    assert uploader.copy() is None and asked
    asked.clear()
    assert uploader.copy() is None and not asked


def test_files_of_this_machine_and_half_finished_ones_stay_here(
    memory: Bucket, tmp_path: Path
) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    wanted = ("oof/0001/fold-0.npy", "ensemble/manifest.json", "pictures/a.png")
    others = (".lock", ".url", "oof/0001/.fold-1.ab.npy", "work/0001-1/fold-1.npy",
              "ensemble/.x/y", "work/0001-1/.epoch-1.ab.safetensors")  # fmt: skip
    for name in (*wanted, *others):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert uploader.close() is None
    assert set(lying(memory)) == {"run.json", "journal.jsonl", *wanted}


def test_epoch_checkpoints_are_copied_rarely_and_at_the_end(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    name = "work/0003-1/epoch-0.safetensors"
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    now = 1000.0
    monkeypatch.setattr(upload, "time", SimpleNamespace(monotonic=lambda: now))
    seen = []
    for minute in range(24):
        path.write_bytes(b"epoch" * (minute + 1))
        now = 1000.0 + 60.0 * minute
        assert uploader.copy() is None
        assert (name in json.loads(memory.content()[MANIFEST])["files"]) == (minute >= 10)
        seen.append(len(memory.content().get(name, b"")) // 5)
    assert seen == [0] * 10 + [11] * 10 + [21] * 4
    assert uploader.close() is None
    assert memory.content()[name] == path.read_bytes()


def test_what_is_deleted_here_is_deleted_there_when_nothing_names_it_any_more(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, uploader = begun(tmp_path / "run", memory.url)
    part = tmp_path / "run/oof/0000/fold-0.npy"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    uploader.copy()
    journal.append("end", 0, 1, state="pruned", reason="")
    shutil.rmtree(part.parent)
    delete = Place.delete

    def check(self: Place, name: str) -> None:
        there = read_manifest(self)
        assert name == "oof/0000/fold-0.npy" and name in memory.content()
        assert there and name not in there.files and name in there.gone
        assert b'"pruned"' in read_journal(self, there)
        delete(self, name)

    monkeypatch.setattr(Place, "delete", check)
    assert uploader.copy() is None
    assert set(lying(memory)) == {"run.json", "journal.jsonl"}
    assert uploader.close() is None


def test_models_that_a_bundle_links_to_are_not_sent_again(
    bucket: Bucket, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    _, uploader = begun(tmp_path / "run", bucket.url)
    model = tmp_path / "run/checkpoints/0000/fold-0.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    uploader.copy()
    asked.clear()
    twins = ("ensemble/models/00/fold-0.safetensors", "ensemble/models/01/fold-0.safetensors")
    for twin in twins:
        (tmp_path / "run" / twin).parent.mkdir(parents=True)
        (tmp_path / "run" / twin).hardlink_to(model)
    assert uploader.close() is None
    assert not [name for method, name, *_ in asked if method == "put"]
    assert lying(bucket) == content(tmp_path / "run")


def test_without_hard_links_it_copies(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise PermissionError("no hard links on this file system")

    monkeypatch.setattr("os.link", refuse)
    _, uploader = begun(tmp_path / "run", memory.url)
    assert uploader.close() is None
    assert lying(memory) == content(tmp_path / "run")


@pytest.mark.parametrize("step", ["_list", "_link"])
@pytest.mark.parametrize("sent", [True, False])
def test_files_and_journal_are_of_one_moment(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, sent: bool
) -> None:
    """A trial that ends while the run is looked at: its files are not there, so its end is."""
    journal, uploader = begun(tmp_path / "run", memory.url)
    part = tmp_path / "run/oof/0000/fold-0.npy"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    journal.append("fold", 0, 1, fold=0)
    if sent:
        uploader.copy()
    real = getattr(Uploader, step)

    def end_meanwhile(self: Uploader, *given: Any) -> Any:
        if part.exists():
            journal.append("end", 0, 1, state="pruned", reason="")
            part.unlink()
        return real(self, *given)

    (tmp_path / "run/leaderboard.csv").write_text("new")
    monkeypatch.setattr(Uploader, step, end_meanwhile)
    assert uploader.copy() is None
    assert b'"end"' in lying(memory)["journal.jsonl"]
    assert set(lying(memory)) == {"run.json", "journal.jsonl", "leaderboard.csv"}


def test_events_of_a_later_moment_wait(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are not there yet."""
    journal, uploader = begun(tmp_path / "run", memory.url)
    real = Uploader._moment

    def go_on(self: Uploader, everything: bool) -> Any:
        found = real(self, everything)
        journal.append("fold", 0, 1, fold=0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Uploader, "_moment", go_on)
        assert uploader.copy() is None
    assert b'"fold"' not in lying(memory)["journal.jsonl"]
    assert uploader.close() is None
    assert lying(memory) == content(tmp_path / "run")


# -- a driver that is lost -----------------------------------------------------------------------


def lose(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is lost after it asked the store to change something so many times."""
    left = after

    def dying(method: str) -> None:
        real = getattr(Place, method)

        def asking(self: Place, *given: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Lost
            real(self, *given)

        monkeypatch.setattr(Place, method, asking)

    for method in ("put", "write", "copy", "delete"):
        dying(method)


@pytest.mark.parametrize("seed", range(25))
def test_lost_between_any_two_copies_it_goes_on_from_the_url_to_the_same_end(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)  # nothing is lost with a process

    def complete(trial: Trial) -> dict[str, float]:
        """As the real one: needs the predictions of all folds."""
        parts = [here.oof(trial.number) / f"fold-{fold}.npy" for fold in trial.folds]
        assert all(part.is_file() for part in parts), f"trial {trial.number} lacks a fold"
        return {"score": trial.score(), "pooled": 0.0}

    monkeypatch.setattr(test_director, "finalise", complete)
    here = new_run(tmp_path / "whole")
    work(director_of(here.root))
    whole = outcome(here.root)

    rng = random.Random(seed)
    here = new_run(tmp_path / "first")
    director = director_of(here.root)
    with monkeypatch.context() as patch:
        uploader = Uploader(here, memory.url, director._journal, print)
        lose(rng.randrange(3, 40), patch)
        with pytest.raises(Lost):
            work(director, lambda: uploader.copy() and None if rng.random() < 0.5 else None)
    before = here.journal.read_bytes()
    here = RunFolder(fetch_run(memory.url))
    assert before.startswith(here.journal.read_bytes())
    director = director_of(here.root)
    uploader = Uploader(here, memory.url, director._journal, print)
    work(director)
    assert outcome(here.root) == whole
    assert uploader.close() is None and lying(memory) == content(here.root)


def test_the_copy_of_a_run_is_the_run(bucket: Bucket, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    director = director_of(run.root)
    work(director)
    uploader = Uploader(run, bucket.url, director._journal, print)
    assert uploader.close() is None
    told: list[tuple[int, int]] = []
    folder = fetch_run(bucket.url, lambda done, total: told.append((done, total)))
    assert folder == local_folder(bucket.url) and content(folder) == content(run.root)
    assert (folder / ".url").read_text() == bucket.url
    assert told[-1][0] == told[-1][1] == len(content(run.root)) - 2  # run.json, journal


# -- a store that fails --------------------------------------------------------------------------


def test_a_failing_store_is_told_once_and_everything_follows_later(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    journal, uploader = begun(tmp_path / "run", memory.url, told)
    with monkeypatch.context() as patch:

        def fail(*given: Any) -> None:
            raise UserError("its store does not answer")

        patch.setattr(Place, "put", fail)
        for _ in range(3):
            journal.append("ask", 0)
            assert uploader.copy() == "its store does not answer"
    assert uploader.copy() is None
    assert ["for now" in line for line in told] == [True, False] and "again" in told[1]
    assert lying(memory) == content(tmp_path / "run")


def test_what_is_not_there_at_the_end_is_a_fault(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    tries = []

    def fail(*given: Any) -> None:
        tries.append(given)
        raise UserError("its store does not answer")

    monkeypatch.setattr(Place, "put", fail)
    fault = uploader.close()
    assert fault and "its store does not answer" in fault and "--resume" in fault
    assert len(tries) == upload.LAST_TRIES


def test_a_bug_does_not_stop_the_run(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    _, uploader = begun(tmp_path / "run", memory.url, told)
    monkeypatch.setattr(Place, "put", lambda *given: 1 // 0)
    assert "division" in str(uploader.copy()) and len(told) == 1


def test_the_thread_copies_until_it_is_closed(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PAUSE", 0.01)
    journal, uploader = begun(tmp_path / "run", memory.url)
    uploader.start()
    for _ in range(1000):
        if segment(1) in memory.content():
            break
        upload.time.sleep(0.01)
    assert segment(1) in memory.content()
    journal.append("ask", 0)
    assert uploader.close() is None and not uploader._thread.is_alive()
    assert lying(memory) == content(tmp_path / "run")


# -- who may write -------------------------------------------------------------------------------


def test_a_driver_that_was_cut_off_cannot_damage_the_run_that_went_on(
    memory: Bucket, tmp_path: Path
) -> None:
    told: list[str] = []
    journal, cut_off = begun(tmp_path / "run", memory.url, told)
    cut_off.copy()
    run = RunFolder(fetch_run(memory.url))
    second = Journal(run.journal)
    successor = Uploader(run, memory.url, second, print)
    second.append("ask", 0, params={"of": "the successor"})
    successor.copy()
    before = memory.content()
    for _ in range(2):
        journal.append("ask", 0, params={"of": "the cut off"})
        (tmp_path / "run/leaderboard.csv").write_text("mine")
        assert "another process copies to" in str(cut_off.copy())
    assert "another process copies to" in str(cut_off.close())
    assert memory.content() == before
    assert successor.close() is None


def test_a_url_that_is_taken_over_during_a_copy_stays_taken(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    put = Place.put

    def overtaken(self: Place, *given: Any) -> None:
        put(self, *given)
        self.write(MANIFEST, Manifest(writer="the successor").to_json())

    monkeypatch.setattr(Place, "put", overtaken)
    assert "another process copies to" in str(uploader.copy())
    assert json.loads(memory.content()[MANIFEST])["writer"] == "the successor"


def test_a_folder_that_the_url_went_on_without_is_refused(memory: Bucket, tmp_path: Path) -> None:
    journal, uploader = begun(tmp_path / "run", memory.url)
    uploader.copy()
    run = RunFolder(fetch_run(memory.url))
    second = Journal(run.journal)
    second.append("ask", 0)
    assert Uploader(run, memory.url, second, print).close() is None
    journal.append("lost", 0)
    with pytest.raises(UserError, match=r"went on from there in another place; --resume memory:"):
        Uploader(RunFolder(tmp_path / "run"), memory.url, journal, print)


def test_a_url_that_cannot_be_written_is_refused_at_the_start(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refuse)
    with pytest.raises(UserError, match="access is refused"):
        begun(tmp_path / "run", memory.url)


def test_a_new_run_needs_an_empty_url_and_an_empty_folder_here(memory: Bucket, tiles: Path) -> None:
    given = ["gene_expr", "--data", str(tiles), "--out", memory.url]
    memory.put("something", b"x")
    with pytest.raises(UserError, match=f"--out {memory.url} is not empty"):
        main(given)
    memory.delete("something")
    local_folder(memory.url).mkdir(parents=True)
    (local_folder(memory.url) / "x").touch()
    with pytest.raises(UserError, match=f"--out {local_folder(memory.url)} exists"):
        main(given)


# -- coming back ---------------------------------------------------------------------------------


def test_a_folder_that_is_further_on_is_taken_as_it_is(memory: Bucket, tmp_path: Path) -> None:
    run = RunFolder(local_folder(memory.url))
    journal, uploader = begun(run.root, memory.url)
    uploader.copy()
    journal.append("ask", 0)
    (run.root / "leaderboard.csv").write_text("new")
    before = content(run.root)
    assert fetch_run(memory.url) == run.root and content(run.root) == before


def test_files_that_were_lost_here_come_back(memory: Bucket, tmp_path: Path) -> None:
    _, uploader = begun(tmp_path / "run", memory.url)
    (tmp_path / "run/oof").mkdir()
    (tmp_path / "run/oof/pred.npy").write_bytes(b"x")
    uploader.copy()
    folder = fetch_run(memory.url)
    shutil.rmtree(folder / "oof")
    (folder / "run.json.bak").write_text("of the user")
    fetch_run(memory.url)
    assert content(folder) == content(tmp_path / "run") | {"run.json.bak": b"of the user"}


def test_an_older_folder_is_brought_up_to_what_lies_there(memory: Bucket, tmp_path: Path) -> None:
    journal, uploader = begun(tmp_path / "run", memory.url)
    (tmp_path / "run/old.csv").write_text("old")
    uploader.copy()
    folder = fetch_run(memory.url)
    (folder / "journal.jsonl").write_bytes((folder / "journal.jsonl").read_bytes() + b'{"torn')
    (tmp_path / "run/old.csv").unlink()
    (tmp_path / "run/new.csv").write_text("new")
    journal.append("ask", 0)
    uploader.copy()
    fetch_run(memory.url)
    assert content(folder) == content(tmp_path / "run")


def test_a_folder_that_went_on_by_itself_is_refused(memory: Bucket, tmp_path: Path) -> None:
    journal, uploader = begun(tmp_path / "run", memory.url)
    uploader.copy()
    mine = Journal(fetch_run(memory.url) / "journal.jsonl")
    mine.append("ask", 0, params={"mine": 1})
    journal.append("ask", 0, params={"theirs": 1})
    uploader.copy()
    with pytest.raises(UserError, match="one run that went on in two places"):
        fetch_run(memory.url)


def test_a_folder_that_another_process_works_on_is_refused(memory: Bucket, tmp_path: Path) -> None:
    from filelock import FileLock

    _, uploader = begun(tmp_path / "run", memory.url)
    uploader.copy()
    folder = fetch_run(memory.url)
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another process works on"):
        fetch_run(memory.url)
    fetch_run(memory.url)


def test_a_url_without_a_run_is_refused_and_leaves_nothing_here(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.put("x", b"1")
    with pytest.raises(UserError, match="holds no run"):
        fetch_run(bucket.url)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def published(memory: Bucket, tmp_path: Path) -> Bucket:
    """A run of three segments."""
    journal, uploader = begun(tmp_path / "run", memory.url)
    for number in range(3):
        journal.append("ask", number)
        uploader.copy()
    assert uploader._there.segments == 3
    return memory


def test_a_missing_segment_is_refused(published: Bucket) -> None:
    published.delete(segment(2))
    with pytest.raises(UserError, match=r"00000002\.jsonl is missing"):
        fetch_run(published.url)


def test_a_torn_segment_is_refused(published: Bucket) -> None:
    published.put(segment(3), published.content()[segment(3)][:-5])
    with pytest.raises(UserError, match=r"00000003\.jsonl is torn"):
        fetch_run(published.url)


def test_a_segment_of_another_run_is_refused(published: Bucket) -> None:
    published.put(segment(2), published.content()[segment(3)])
    with pytest.raises(UserError, match=r"is not the one that manifest\.json speaks of"):
        fetch_run(published.url)


def test_a_segment_that_no_manifest_counts_is_not_read(published: Bucket) -> None:
    """A driver that is lost between segment and manifest leaves one."""
    published.put(segment(4), b"of nobody knows what\n")
    events = read_events(fetch_run(published.url) / "journal.jsonl")[0]
    assert [event.kind for event in events] == ["session", "ask", "ask", "ask"]


def test_a_file_that_is_named_and_not_there_is_refused(published: Bucket) -> None:
    published.delete("run.json")
    with pytest.raises(UserError, match=r"lacks files that its manifest\.json names"):
        fetch_run(published.url)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//x", ".lock", ".url", "oof/.hidden/x", ""]
)
def test_a_manifest_that_names_files_outside_of_the_run_is_refused(
    published: Bucket, tmp_path: Path, name: str
) -> None:
    before = content(tmp_path)
    facts = json.loads(published.content()[MANIFEST])
    published.put(MANIFEST, json.dumps({**facts, "gone": [name]}).encode())
    for _ in range(2):
        with pytest.raises(UserError, match="which no run has"):
            fetch_run(published.url)
        facts["files"][name] = [4, 0]
        published.put(MANIFEST, json.dumps(facts).encode())
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{", b'{"format":1}', b'{"format":1,"files":[],"writer":""}']
)
def test_a_damaged_manifest_is_told_in_one_line(published: Bucket, damage: bytes) -> None:
    published.put(MANIFEST, damage)
    with pytest.raises(UserError, match="is none that this version wrote"):
        fetch_run(published.url)


def test_a_manifest_of_a_newer_version_is_told(published: Bucket) -> None:
    facts = json.loads(published.content()[MANIFEST])
    published.put(MANIFEST, json.dumps({**facts, "format": 99}).encode())
    with pytest.raises(UserError, match="written by a newer version"):
        fetch_run(published.url)


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = Manifest(
        writer="me", files={"a/b": Remote(3, 4)}, gone=("c",), segments=2, events=5,
        journal_bytes=7, journal_sha256="ab",
    )  # fmt: skip
    assert Manifest.from_json("x", manifest.to_json()) == manifest


# -- whole runs ----------------------------------------------------------------------------------


@pytest.fixture
def shown(whole: tuple[Path, str], memory: Bucket, tmp_path: Path) -> Iterator[Bucket]:
    """A finished run at a URL."""
    shutil.copytree(whole[0], tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert Uploader(run, memory.url, Journal(run.journal), print).close() is None
    yield memory


def test_the_leaderboard_of_a_url_is_that_of_the_folder(
    shown: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    got = copies(monkeypatch)
    capsys.readouterr()
    for more in ([], ["--json"], ["--trial", "0"]):
        printed = []
        for place in (str(tmp_path / "run"), shown.url):
            assert leaderboard.main([place, *more]) == 0
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] and printed[0]
    assert "trials.parquet" in got and not [name for name in got if "safetensors" in name]
    assert not (tmp_path / "runs").exists()


def test_a_new_run_learns_from_one_at_a_url(shown: Bucket, tmp_path: Path) -> None:
    there, here = read_prior(shown.url), read_prior(tmp_path / "run")
    assert there.name == shown.url
    assert there.trials == here.trials and there.trials and there.identity == here.identity


def test_an_ensemble_is_built_of_a_run_at_a_url(shown: Bucket, tmp_path: Path) -> None:
    assert build.main([shown.url]) == 0
    made = local_folder(shown.url) / "ensemble" / "ensemble.json"
    scores = json.loads(made.read_text())["scores"]
    assert scores == json.loads((tmp_path / "run/ensemble/ensemble.json").read_text())["scores"]


@pytest.mark.parametrize("error", [None, ValueError("a bug"), KeyboardInterrupt()])
def test_a_session_ends_with_all_of_the_run_there_or_tells(
    error: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second Ctrl-C does not wait for it, and nothing hides why a session broke off."""
    calls: list[object] = []

    def close(**given: bool) -> str | None:
        calls.append(given)
        return "not at the URL" if given["flush"] else None

    session: Any = object.__new__(Session)
    session._uploader = SimpleNamespace(close=close)
    session._feeds = ()
    session._refresher = SimpleNamespace(close=lambda: calls.append("refresher"))
    session._journal = SimpleNamespace(close=lambda: calls.append("journal"))
    session._lock = SimpleNamespace(release=lambda: calls.append("lock"))
    flush = not isinstance(error, KeyboardInterrupt)
    if error is None:
        with pytest.raises(RunFailed, match="not at the URL"):
            session.__exit__(None, None, None)
    else:
        session.__exit__(type(error), error, None)
    assert calls == ["refresher", {"flush": flush}, "journal", "lock"]
    assert ("not at the URL" in capsys.readouterr().err) == isinstance(error, ValueError)


def stopped(after: str) -> Callable[..., None]:
    """A study in this process whose driver is lost at the first event of a kind."""

    def study(director: Any, *rest: Any) -> None:
        def hear(event: Any) -> None:
            if event.kind == after:
                raise Lost

        director._journal.listen(hear, replay=False)
        onehand.study(director, *rest)

    return study


def test_a_run_is_copied_lost_and_resumed_from_the_url_alone(
    whole: tuple[Path, str], memory: Bucket, tiles: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The command as it is, with training in this process."""
    data = Bucket("memory://bucket/data")
    for path in tiles.rglob("*"):
        if path.is_file():
            data.put(path.relative_to(tiles).as_posix(), path.read_bytes())
    monkeypatch.setattr(upload, "PAUSE", 0.05)
    cache = tmp_path / "cache"

    def die(self: Uploader, flush: bool) -> None:
        self._closing.set()
        self._thread.join()

    with onehand.alone(), monkeypatch.context() as patch:
        patch.setattr("search.compose.run_study", stopped("end"))
        patch.setattr(Uploader, "close", die)
        with pytest.raises(Lost):
            main(["gene_expr", "--data", data.url, "--out", memory.url, "--cache", str(cache),
                  "--trials", "2", *map(str, SMALL)])  # fmt: skip
    folder = local_folder(memory.url)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["asked"]["data"] == data.url and Path(facts["data"]).is_relative_to(cache)
    before = events_of(folder)
    shutil.rmtree(folder)
    shutil.rmtree(cache)
    onehand.search("--resume", memory.url)
    events = events_of(folder)
    shared = next(i for i, e in enumerate(events) if e.kind == "session" and i)
    assert events[:shared] == before[:shared]
    assert {e.trial for e in events if e.kind == "end"} == {0, 1}
    assert (folder / "ensemble/manifest.json").is_file()
    assert lying(memory) == content(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_data_and_run_at_urls_from_the_command_line_killed_and_resumed(
    s3: Bucket, tiles: Path, tmp_path: Path
) -> None:
    data = Bucket(f"{s3.url}/data")
    for path in tiles.rglob("*"):
        if path.is_file():
            data.put(path.relative_to(tiles).as_posix(), path.read_bytes())
    out = Bucket(f"{s3.url}/run")
    given = ("--data", data.url, "--out", out.url, "--cache", tmp_path / "cache")
    process = start("gene_expr", *given, "--trials", 12, *SMALL, cwd=tmp_path)
    try:
        for _ in range(600):
            segments = [out.fs.cat_file(path) for path in out.names() if "/journal/" in path]
            if b'"state":"finished"' in b"".join(segments):
                break
            assert process.poll() is None, process.communicate()[0]
            upload.time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "cache")
    told = call("--resume", out.url, cwd=tmp_path)
    run = tmp_path / local_folder(out.url)
    trials = Trials()
    for event in events_of(run):
        trials.apply(event)
    assert len(trials.all) == 12 and all(t.state != RUNNING for t in trials.all.values())
    folds = [(e.trial, e.data["fold"]) for e in events_of(run) if e.kind == "fold"]
    assert len(folds) == len(set(folds))
    assert out.url in told and lying(out) == content(run)
    assert not [noise for noise in ("Traceback", "Unclosed", "WARNING") if noise in told]
    assert "ensemble/manifest.json" in out.content() and "submission.csv" in out.content()
    boards = {call(place, cwd=tmp_path, module="search.leaderboard") for place in (out.url, run)}
    assert len(boards) == 1
    call(run / "ensemble", "--data", data.url, "--out", "again.csv", cwd=tmp_path,
         module="ensemble.predict")  # fmt: skip
    assert (tmp_path / "again.csv").is_file()
