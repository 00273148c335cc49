"""A folder at a URL, through fsspec, and its copy on this machine's disk.

Endpoint and credentials are what the store's own library finds: AWS_ENDPOINT_URL, ~/.aws, the role
of a machine, GOOGLE_APPLICATION_CREDENTIALS and so on.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from search.data.disk import need_space, only_writer
from search.run_folder import write_file, write_json
from spaces.errors import UserError

Progress = Callable[[int, int], None]  # (done, total)
T = TypeVar("T")

AT_ONCE = 16  # files copied at the same time
_SHOWN = 10  # faults told one by one
_MIB = 2**20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What a store is opened with beside what its library finds. S3: whoever has no connection is told
# within seconds, and AT_ONCE big files need no more memory than 16 MiB each.
_S3 = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 15,
        "max_pool_connections": AT_ONCE,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
    "default_block_size": 8 * _MIB,
    "max_concurrency": 2,
}
_OPENED_WITH: dict[str, dict[str, Any]] = {
    "s3": _S3, "s3a": _S3, "file": {"auto_mkdir": True}, "local": {"auto_mkdir": True},
}  # fmt: skip
_PUT_WITH: dict[str, dict[str, Any]] = {"s3": {"chunksize": 8 * _MIB}}
_PUT_WITH["s3a"] = _PUT_WITH["s3"]
_EXTRA = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> what to install
# By which stores tell that a file's content has changed, and when; the first that there is counts.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "content_md5")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


class Changed(UserError):
    """A file is no longer there as it was listed."""


class Remote(NamedTuple):
    """A file as it is listed."""

    size: int  # bytes
    mtime_ns: int  # for the copy: another one for other content, the same wherever it is copied to


def is_url(text: object) -> bool:
    """Whether what the user gave for a folder is a URL (any protocol) rather than a path."""
    return isinstance(text, str) and _URL.match(text) is not None


def label(url: str) -> str:
    """A file name for what is kept of a URL: its last part, for people, and its digest."""
    last = re.sub(r"[^A-Za-z0-9_-]", "-", url.rstrip("/").rpartition("/")[2])
    return f"{last}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:10]}"


def inside(name: str) -> bool:
    """Whether a file of this relative name stays in the folder that it is written to."""
    return not any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in name.split("/"))


def in_parallel(
    work: Callable[[T], object],
    items: Iterable[T],
    at_once: int = AT_ONCE,
    progress: Progress | None = None,
) -> None:
    """Call work(item) for all items in threads; the first error ends it and is raised."""
    items = list(items)
    pool = ThreadPoolExecutor(at_once)
    try:
        for done, _ in enumerate(pool.map(work, items), start=1):
            if progress:
                progress(done, len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun


class Place:
    """A folder at a URL. Its files go by relative names, with "/" between the parts.

    Whatever goes wrong with the store is raised as UserError that says what to do.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        protocol, _, path = self.url.partition("://")
        if not path:
            raise UserError(f"{url} names no folder; give one, such as s3://bucket/folder")
        if "::" in url:
            raise UserError(f"{url} chains several stores; give the URL of one")
        if urlsplit(url).password is not None:
            raise UserError(
                f"{protocol}://...: the URL holds a password, which would be written into files; "
                "give it to the store's library by its own environment variables"
            )
        self._put_with = _PUT_WITH.get(protocol, {})
        try:
            self._fs, root = url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True,
                **_OPENED_WITH.get(protocol, {}),
            )  # fmt: skip
        except ImportError as error:
            how = f"pip install 'rungfold[{_EXTRA[protocol]}]'" if protocol in _EXTRA else error
            raise UserError(f"{url}: the library for {protocol}:// is missing: {how}") from None
        except Exception as error:
            raise UserError(_fault(self.url, error)) from error
        self._root = str(root).rstrip("/")

    def files(self) -> dict[str, Remote]:
        """All files below the folder, by name. Markers of empty folders are none of them."""
        with self._asking():
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        files: dict[str, Remote] = {}
        faults: list[str] = []
        for path, info in found.items():
            name = str(path).removeprefix(self._root).removeprefix("/")
            if str(path) == self._root:
                raise UserError(f"{self.url} is a file; give the folder that it lies in")
            if (not name or name.endswith("/")) and not info["size"]:
                continue
            if info["size"] is None:
                faults.append(f"{self.url}/{name}: its store does not tell its size; use another")
            elif not inside(name):
                faults.append(
                    f"{self.url} has a file named {name!r}, which would leave the folder that it "
                    "is copied to; delete or rename it"
                )
            else:
                files[name] = Remote(int(info["size"]), _mtime_ns(info))
        faults += [
            f"{self.url} has both a file and a folder named {above!r}; rename one"
            for above in sorted({above for name in files for above in _above(name)} & set(files))
        ]
        if faults:
            more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
            raise UserError([*faults[:_SHOWN], *more])
        return files

    def get(self, name: str, path: Path, listed: Remote, exact: bool = True) -> None:
        """Copy a file to `path`, whole or not at all, with the time of change that it is listed
        with. Raises Changed when it is gone, or, if it must be `exact`, of another length."""

        def fill(temporary: Path) -> None:
            with self._asking():
                try:
                    self._fs.get_file(self._at(name), str(temporary))
                except FileNotFoundError:
                    raise Changed(f"{self.url}/{name} was deleted meanwhile; start again") from None
            if exact and temporary.stat().st_size != listed.size:
                raise Changed(f"{self.url}/{name} changed while it was copied; start again")
            os.utime(temporary, ns=(listed.mtime_ns, listed.mtime_ns))

        write_file(path, fill)

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None when there is none."""
        with self._asking():
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def put(self, path: Path, name: str) -> None:
        """Copy a file from this disk; it is there whole or not at all."""
        with self._asking():
            self._fs.put_file(str(path), self._at(name), **self._put_with)

    def write(self, name: str, content: bytes) -> None:
        with self._asking():
            self._fs.pipe_file(self._at(name), content)

    def copy(self, name: str, to: str) -> None:
        """Copy a file there, without its way over this machine."""
        with self._asking():
            self._fs.cp_file(self._at(name), self._at(to))

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no fault."""
        with self._asking(), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        assert inside(name), name
        return f"{self._root}/{name}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Within it the store is asked; the libraries raise whatever they like."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(_fault(self.url, error)) from error


def mirror(url: str, cache: Path, progress: Progress | None = None) -> Path:
    """A folder below `cache` with the files at `url`, as they are there now.

    Only what is new or has changed is copied, so a copy that broke off goes on; what is gone there
    is deleted. A mark beside the folder, written last, says that it is whole. The files' times of
    change, on which the keys of image stores hang, follow from the listing alone. Raises UserError
    when the store cannot be read, when there is no file, and when the disk has no room.
    """
    place, folder = Place(url), _folder(url, cache)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder {cache} cannot be made: {error}") from None
    with only_writer(folder, f"copy of {url}"):
        files = place.files()
        if not files:
            raise UserError(f"{url} holds no files, or there is no such folder; check the URL")
        missing = [name for name in files if not is_copy(folder / name, files[name])]
        size = sum(files[name].size for name in missing)
        need_space(folder, size, f"the copy of {len(missing)} files of {url}")
        if not missing and _mark(folder).exists() and _count(folder) == len(files):
            return folder
        _mark(folder).unlink(missing_ok=True)
        clear(folder, files.__contains__)
        in_parallel(
            lambda name: place.get(name, folder / name, files[name]), missing, progress=progress
        )
        write_json(_mark(folder), {"url": url, "files": len(files)})
    return folder


def mirrored(url: str, cache: Path) -> Path | None:
    """The folder that `mirror` made, if it is there and whole; nobody is asked."""
    folder = _folder(url, cache)
    return folder if _mark(folder).is_file() and folder.is_dir() else None


def is_copy(path: Path, listed: Remote) -> bool:
    """Whether the file at `path` was copied from one that is listed so."""
    try:
        stat = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (stat.st_size, stat.st_mtime_ns) == listed


def clear(folder: Path, keep: Callable[[str], bool]) -> None:
    """Delete all files below `folder` whose relative name is not to be kept, and folders that are
    empty then."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif not keep(path.relative_to(folder).as_posix()):
            path.unlink()


def _count(folder: Path) -> int:
    return sum(not path.is_dir() for path in folder.rglob("*"))


def _folder(url: str, cache: Path) -> Path:
    return cache / "remote" / label(url)


def _mark(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _above(name: str) -> list[str]:
    """The folders that a file lies in."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _mtime_ns(info: dict[str, Any]) -> int:
    """When a file changed, to the second; the fraction comes from the store's tag of its content,
    since stores tell no fraction and a file may change twice in a second. In whole microseconds,
    which file systems keep."""
    when = next((info[key] for key in _TIMES if info.get(key) is not None), 0)
    if isinstance(when, str):
        with suppress(ValueError):
            when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        when = when.timestamp()
    tag = next((info[key] for key in _TAGS if info.get(key) is not None), "")
    digest = hashlib.sha256(f"{tag} {when}".encode()).digest()
    seconds = int(when) if isinstance(when, int | float) else 0
    return seconds * 10**9 + int.from_bytes(digest[:8], "big") % 10**6 * 1000


def _fault(url: str, error: Exception) -> str:
    """What to tell of an error that a store's library raised. Told apart by names: the libraries
    are not installed everywhere, and each has its own."""
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, FileNotFoundError):
        return f"{url}: no such bucket or folder ({text}); check the URL"
    if isinstance(error, PermissionError):
        return f"{url}: access is refused ({text}); check the credentials and what they allow"
    if "Credential" in kinds:
        return (
            f"{url}: no credentials ({text}); log in as the store's own tools want it, e.g. with "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or a machine's role"
        )
    if "Connect" in kinds or "Timeout" in kinds or "gaierror" in kinds:
        return f"{url}: its store does not answer ({text}); check the connection and the endpoint"
    return f"{url}: {type(error).__name__}: {text}"
