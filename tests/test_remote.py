"""Data at URLs: copied once, as it is there now, and nothing else on this disk is touched."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search import check
from search.data import remote
from search.data.cache import store_key
from search.data.remote import Changed, Place, is_url, label, mirror, mirrored
from search.data.source import resolve_data
from spaces.errors import UserError
from spaces.registry import load_task
from tests import s3 as stores
from tests.datafolder import make_folder
from tests.s3 import CLOSED, KEYS, Bucket, copies

# Fixtures: pytest finds them here.
bucket, memory = stores.bucket, stores.memory
s3, s3_environment = stores.s3, stores.s3_environment

FILES = {"train.csv": b"id,x\n", "train/a.png": b"\x89PNG", "train/deep/b.png": b"", "t.csv": b"1"}


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are copied from now on."""
    return copies(monkeypatch)


def fill(bucket: Bucket) -> None:
    for name, content in FILES.items():
        bucket.put(name, content)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in content(folder)}


def test_urls_are_told_from_paths() -> None:
    for text in ("s3://b/x", "gs://b", "file:///x", "memory://x", "abfs://c@a/x"):
        assert is_url(text)
    for text in ("runs/x", "/data", "C:\\data", "a:b", "data//x", "", None, Path("s3:/b")):
        assert not is_url(text)


def test_all_files_are_copied_and_a_second_time_none(
    bucket: Bucket, tmp_path: Path, copied: list[str]
) -> None:
    fill(bucket)
    told: list[tuple[int, int]] = []
    assert mirrored(bucket.url, tmp_path) is None
    folder = mirror(bucket.url, tmp_path, lambda done, total: told.append((done, total)))
    assert content(folder) == FILES and sorted(copied) == sorted(FILES)
    assert told == [(n + 1, len(FILES)) for n in range(len(FILES))]
    copied.clear()
    before = times(folder)
    assert mirror(bucket.url + "/", tmp_path) == folder == mirrored(bucket.url, tmp_path)
    assert not copied and times(folder) == before


def test_what_has_changed_is_copied_again_and_what_is_gone_is_deleted(
    bucket: Bucket, tmp_path: Path, copied: list[str]
) -> None:
    fill(bucket)
    folder = mirror(bucket.url, tmp_path)
    before = times(folder)
    copied.clear()
    bucket.put("train.csv", b"id,y\n")  # of the same length, and within the same second
    bucket.put("new/c.png", b"c")
    bucket.delete("train/deep/b.png")
    mirror(bucket.url, tmp_path)
    assert sorted(copied) == ["new/c.png", "train.csv"]
    assert content(folder) == bucket.content() and not (folder / "train/deep").exists()
    after = times(folder)
    assert after["train.csv"] != before["train.csv"] and after["t.csv"] == before["t.csv"]


def test_a_damaged_copy_is_mended(memory: Bucket, tmp_path: Path, copied: list[str]) -> None:
    fill(memory)
    folder = mirror(memory.url, tmp_path)
    copied.clear()
    (folder / "t.csv").write_bytes(b"2")
    (folder / "train.csv").unlink()
    (folder / "extra.txt").write_bytes(b"of nobody")
    mirror(memory.url, tmp_path)
    assert sorted(copied) == ["t.csv", "train.csv"] and content(folder) == FILES
    (folder / "extra.txt").write_bytes(b"of nobody")
    assert content(mirror(memory.url, tmp_path)) == FILES


def test_a_file_that_became_a_folder_and_the_other_way_round(
    memory: Bucket, tmp_path: Path
) -> None:
    memory.put("a/x", b"1")
    memory.put("b", b"2")
    mirror(memory.url, tmp_path)
    memory.delete("a/x")
    memory.delete("b")
    memory.put("a", b"3")
    memory.put("b/y", b"4")
    assert content(mirror(memory.url, tmp_path)) == {"a": b"3", "b/y": b"4"}


def test_a_copy_that_broke_off_is_not_whole_and_goes_on_where_it_was(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: list[str]
) -> None:
    fill(memory)
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    in_parallel = remote.in_parallel

    def die(work: Any, items: Any, **options: Any) -> None:
        in_parallel(work, list(items)[:2], 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(remote, "in_parallel", die)
    with pytest.raises(KeyboardInterrupt):
        mirror(memory.url, tmp_path)
    assert mirrored(memory.url, tmp_path) is None and len(copied) == 2
    monkeypatch.setattr(remote, "in_parallel", in_parallel)
    assert content(mirror(memory.url, tmp_path)) == FILES
    assert sorted(copied) == sorted(FILES)  # each once
    memory.put("new.csv", b"")
    monkeypatch.setattr(remote, "in_parallel", die)
    with pytest.raises(KeyboardInterrupt):
        mirror(memory.url, tmp_path)
    assert mirrored(memory.url, tmp_path) is None


def test_a_file_that_changes_while_it_is_copied_leaves_nothing_half(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory)
    files = Place.files

    def longer(self: Place) -> dict[str, remote.Remote]:
        return {n: f._replace(size=f.size + (n == "t.csv")) for n, f in files(self).items()}

    monkeypatch.setattr(Place, "files", longer)
    with pytest.raises(Changed, match=r"t\.csv changed while it was copied; start again"):
        mirror(memory.url, tmp_path)
    found = content(tmp_path)
    assert not [name for name in found if name.endswith("t.csv")]
    assert mirrored(memory.url, tmp_path) is None


def test_the_key_of_an_image_store_survives_a_new_copy(memory: Bucket, tmp_path: Path) -> None:
    for name, data in content(make_folder(tmp_path / "data", rows=3, tests=0)).items():
        memory.put(name, data)
    files = [(f"train/{i:04d}.png",) for i in range(3)]
    keys = []
    for _ in range(2):
        folder = mirror(memory.url, tmp_path / "cache")
        keys.append(store_key(folder, files, 8, ""))
        for path in sorted(folder.rglob("*.png")):
            path.unlink()
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x", "a//x", "./x", "a/.", "a\\..\\x"]
)
def test_names_that_would_leave_the_folder_are_refused(
    memory: Bucket, tmp_path: Path, name: str
) -> None:
    fill(memory)
    memory.put(name, b"evil")
    with pytest.raises(UserError, match="would leave the folder that it is copied to"):
        mirror(memory.url, tmp_path / "cache")
    assert not content(tmp_path) or set(content(tmp_path)) == {
        f"cache/remote/{label(memory.url)}.lock"
    }


def test_markers_of_folders_are_no_files(s3: Bucket, tmp_path: Path) -> None:
    fill(s3)
    for name in ("", "train/", "empty/"):
        s3.fs.call_s3("put_object", Bucket=s3.root.split("/")[0], Key=f"some/folder/{name}")
    assert content(mirror(s3.url, tmp_path)) == FILES


def test_a_key_that_is_file_and_folder_is_refused(s3: Bucket, tmp_path: Path) -> None:
    s3.put("a", b"1")
    s3.put("a/b", b"2")
    with pytest.raises(UserError, match="both a file and a folder named 'a'"):
        mirror(s3.url, tmp_path)


def test_no_room_is_told_before_anything_is_copied(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: list[str]
) -> None:
    fill(memory)
    monkeypatch.setattr("search.data.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(UserError, match="the copy of 4 files of memory://"):
        mirror(memory.url, tmp_path)
    assert not copied


def test_an_empty_folder_and_a_file_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("x.csv", b"1")
    with pytest.raises(UserError, match="holds no files, or there is no such folder"):
        mirror(f"{bucket.url}/elsewhere", tmp_path)
    with pytest.raises(UserError, match="is a file; give the folder"):
        mirror(f"{bucket.url}/x.csv", tmp_path)


def test_a_bucket_that_is_not_there_is_refused(s3: Bucket, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket/x: no such bucket or folder"):
        mirror("s3://no-such-bucket/x", tmp_path)


def dead_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.timeout(60)
def test_where_nothing_answers_it_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**CLOSED, **KEYS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead_port()}")
    with pytest.raises(UserError, match=r"its store does not answer .* check the connection"):
        mirror("s3://bucket/x", tmp_path)


def test_without_credentials_it_says_where_they_are_looked_for(
    s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"no credentials .*AWS_ACCESS_KEY_ID"):
        mirror(s3.url, tmp_path)


def test_refused_access_is_told(
    memory: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.find", refuse)
    with pytest.raises(UserError, match=r"access is refused \(Access Denied\)"):
        mirror(memory.url, tmp_path)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs:// is missing: pip install 'rungfold\[gcs\]'"):
        mirror("gs://bucket/x", tmp_path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://bucket/x", "nosuch"),
        ("s3://", "names no folder"),
        ("file:///", "names no folder"),
        ("simplecache::s3://bucket/x", "chains several stores"),
        ("sftp://me:secret@host/x", "holds a password"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        mirror(url, tmp_path)
    assert "secret" not in str(caught.value) and not list(tmp_path.iterdir())


def test_data_at_a_url_is_resolved_to_its_copy(memory: Bucket, tmp_path: Path) -> None:
    fill(memory)
    task = load_task("gene_expr", {})
    assert content(resolve_data(task, memory.url, tmp_path, 0)) == FILES
    folder = tmp_path / "plain"
    folder.mkdir()
    assert resolve_data(task, str(folder), tmp_path, 0) == folder


def test_the_check_reads_a_url(
    memory: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in content(make_folder(tmp_path / "data")).items():
        memory.put(name, data)
    assert check.main(["gene_expr", "--data", memory.url, "--cache", str(tmp_path)]) == 0
    assert "train rows" in capsys.readouterr().out and mirrored(memory.url, tmp_path)


def test_a_folder_on_this_disk_can_be_given_as_a_url(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", rows=3, tests=0)
    assert content(mirror(f"file://{folder}", tmp_path / "cache")) == content(folder)
