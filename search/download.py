"""A run at a URL: what lies there, and how it comes to this disk.

URL/manifest.json names all files of the run and counts the segments of its journal; it is written
after all of them, so what it names is a state from which the run can go on. The journal lies there
in immutable segments of whole lines, journal/00000001.jsonl and on. See upload.py.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from search.data.disk import need_space, only_process
from search.data.remote import (
    Changed,
    Place,
    Progress,
    Remote,
    clear,
    in_parallel,
    inside,
    is_copy,
    is_url,
    label,
)
from search.run_folder import RunFolder, check_format, write_file, write_text
from spaces.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1  # version of the manifest
JOURNAL, RUN = "journal.jsonl", "run.json"
_TRIES = 5  # a run that is under way changes while it is read


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What of a run lies at its URL."""

    writer: str  # the process that copies the run there; another one's name ends its work
    files: dict[str, Remote] = field(default_factory=dict)  # as they are on the writer's disk
    gone: tuple[str, ...] = ()  # files that are named no more, but may not be deleted yet
    segments: int = 0
    events: int = 0  # lines in all segments
    journal_bytes: int = 0
    journal_sha256: str = hashlib.sha256().hexdigest()

    def to_json(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, where: str, content: bytes) -> "Manifest":
        """Raises UserError for what this version did not write, naming `where` it was read."""
        try:
            data = json.loads(content)
            check_format(where, data["format"], FORMAT)
            found = cls(
                writer=str(data["writer"]),
                files={name: Remote(*map(int, facts)) for name, facts in data["files"].items()},
                gone=tuple(map(str, data["gone"])),
                segments=int(data["segments"]),
                events=int(data["events"]),
                journal_bytes=int(data["journal_bytes"]),
                journal_sha256=str(data["journal_sha256"]),
            )
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is none that this version wrote ({type(error).__name__}: {error})"
            ) from None
        for name in (*found.files, *found.gone):
            # Hidden files of a run (locks, marks) belong to one machine and are never copied.
            if not inside(name) or any(part.startswith(".") for part in name.split("/")):
                raise UserError(f"{where} names a file {name!r}, which no run has; do not use it")
        return found


def segment(number: int) -> str:
    """The name of a segment of the journal; the first is 1."""
    return f"journal/{number:08d}.jsonl"


def read_manifest(place: Place) -> Manifest | None:
    """What lies there; None where there is no run. Raises UserError when it is damaged."""
    content = place.read(MANIFEST)
    return None if content is None else Manifest.from_json(f"{place.url}/{MANIFEST}", content)


def begins_with(journal: Path, manifest: Manifest) -> bool:
    """Whether the journal on this disk begins with what was copied there."""
    begin = _whole_lines(journal)[: manifest.journal_bytes]
    return hashlib.sha256(begin).hexdigest() == manifest.journal_sha256


def _whole_lines(journal: Path) -> bytes:
    """A journal on this disk without a line that was torn when its driver died."""
    content = journal.read_bytes() if journal.is_file() else b""
    return content[: content.rfind(b"\n") + 1]


def read_journal(place: Place, manifest: Manifest) -> bytes:
    """The journal as the manifest counts it. Raises UserError where a segment is missing or torn.

    A driver that died may have left one segment more, of which nobody knows whether the files that
    its events speak of are there: it is not read.
    """
    pieces: dict[int, bytes] = {}

    def read(number: int) -> None:
        piece = place.read(segment(number))
        where = f"{place.url}/{segment(number)}"
        if piece is None:
            raise UserError(f"{where} is missing; restore it (are there older versions of it?)")
        if not piece.endswith(b"\n"):
            raise UserError(f"{where} is torn; restore it (are there older versions of it?)")
        pieces[number] = piece

    in_parallel(read, range(1, manifest.segments + 1))
    journal = b"".join(pieces[number] for number in sorted(pieces))
    if hashlib.sha256(journal).hexdigest() != manifest.journal_sha256:
        raise UserError(
            f"the journal in {place.url}/journal is not the one that {MANIFEST} speaks of: "
            f"{len(journal)} bytes instead of {manifest.journal_bytes}, or others; restore it"
        )
    return journal


def local_folder(url: str) -> Path:
    """Where the run that lies at `url` lives on this disk."""
    return Path("runs") / label(url)


def fetch_run(url: str, progress: Progress | None = None) -> Path:
    """The folder on this disk with the run at `url`, marked as the one that is copied there.

    It is taken as it is where it is as far as what lies there, or further on; else it is made so.
    Raises UserError when there is no run or it is damaged, when the folder is another run or has
    gone on by itself, and when another process works on it.
    """
    place, run = Place(url), RunFolder(local_folder(url))
    _need_manifest(place)  # before anything is made here
    run.root.mkdir(parents=True, exist_ok=True)
    lock = only_process(run.lock, run.root)
    try:
        _retried(place, lambda manifest: _bring(place, manifest, run, progress))
        write_text(run.url, place.url)
    finally:
        lock.release()
    return run.root


@contextmanager
def opened(
    path: str | Path, wanted: Callable[[str], bool], journal: bool = False
) -> Iterator[RunFolder]:
    """The run at a path or URL, to be read: of one at a URL the files whose names are `wanted`, and
    the journal, in a folder that is gone afterwards. Raises UserError when there is none."""
    if not is_url(str(path)):
        yield RunFolder.open(path)
        return
    place = Place(str(path))
    with TemporaryDirectory(prefix="rungfold-") as scratch:
        run = RunFolder(Path(scratch) / label(place.url))

        def bring(manifest: Manifest) -> None:
            names = [name for name in manifest.files if name == RUN or wanted(name)]
            _copy(place, manifest, names, run, None)
            if journal:
                content = read_journal(place, manifest)
                write_file(run.journal, lambda temporary: temporary.write_bytes(content))

        _retried(place, bring)
        yield RunFolder.open(run.root)


def _need_manifest(place: Place) -> Manifest:
    manifest = read_manifest(place)
    if manifest is None or RUN not in manifest.files:
        raise UserError(f"{place.url} holds no run; give the URL that a search had for its --out")
    return manifest


def _retried(place: Place, work: Callable[[Manifest], None]) -> None:
    """Do something with what lies there, again where the run deletes files meanwhile."""
    for attempt in range(1, _TRIES + 1):
        try:
            return work(_need_manifest(place))
        except Changed as error:
            if attempt == _TRIES:
                raise UserError(
                    f"{place.url} lacks files that its {MANIFEST} names: {error}"
                ) from None


def _bring(place: Place, manifest: Manifest, run: RunFolder, progress: Progress | None) -> None:
    """Have the run on this disk at least as far as it is there."""
    here = run.run.is_file()
    mine = _whole_lines(run.journal)
    if here and begins_with(run.journal, manifest) and is_copy(run.run, manifest.files[RUN]):
        if len(mine) == manifest.journal_bytes:  # what is not here then has been lost
            lost = [name for name in manifest.files if not (run.root / name).exists()]
            _copy(place, manifest, lost, run, progress)
        return
    theirs = read_journal(place, manifest)
    if here and not theirs.startswith(mine):
        raise UserError(
            f"{run.root} and {place.url} are different runs, or one run that went on in two "
            f"places; move {run.root} away to go on from the URL, or --resume {run.root} after "
            f"deleting {run.url}"
        )
    # Hidden files are this machine's own. Run and journal are replaced last: until then what is
    # here is an older state, or no run.
    kept = {JOURNAL, RUN, *manifest.files}
    clear(run.root, lambda name: name in kept or name.startswith("."))
    _copy(place, manifest, [name for name in manifest.files if name != RUN], run, progress)
    write_file(run.journal, lambda temporary: temporary.write_bytes(theirs))
    _copy(place, manifest, [RUN], run, None)


def _copy(
    place: Place, manifest: Manifest, names: list[str], run: RunFolder, progress: Progress | None
) -> None:
    """Copy those of the files that are not here as they are there."""
    files = {name: manifest.files[name] for name in names}
    missing = [name for name in names if not is_copy(run.root / name, files[name])]
    size = sum(files[name].size for name in missing)
    need_space(run.root, size, f"the copy of {len(missing)} files of {place.url}")
    # A search that is under way replaces files: a newer one is as good.
    in_parallel(
        lambda name: place.get(name, run.root / name, files[name], exact=False), missing,
        progress=progress,
    )  # fmt: skip
