"""A bundle on disk: its manifest, and the proof that no byte of it changed.

The manifest is written last and names every other file with its digest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.run_folder import write_json
from spaces.errors import UserError
from spaces.task import CsvLayout

FORMAT = 1  # version of the manifest
MANIFEST = "manifest.json"
CODE = "code"  # folder with the sources that prediction needs
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BundleMember:
    """A trial with its weight and its fold models."""

    trial: int
    weight: float
    recipe: dict[str, Any]
    decode_size: int  # pixels that images are decoded to; the model resizes to its own size
    models: dict[str, str]  # fold -> file of the bundle


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What prediction needs to know, beside the weights."""

    root: Path
    task: str
    target_names: tuple[str, ...]
    columns: tuple[str, ...]  # of the submission, the id column first
    layout: CsvLayout
    members: tuple[BundleMember, ...]  # heaviest first

    @classmethod
    def open(cls, root: Path | str) -> "Bundle":
        """The bundle at `root`, every digest verified.

        Raises UserError naming all files that are absent or changed.
        """
        root = Path(root)
        path = root / MANIFEST
        if not path.is_file():
            raise UserError(f"{root} is no bundle: it has no {MANIFEST}; give RUN/ensemble")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            data = None
        if not isinstance(data, dict) or data.get("digest") != _content_digest(data):
            raise UserError(
                f"{path} was changed: its digest differs; restore or rebuild the bundle"
            )
        if data["format"] != FORMAT:
            raise UserError(
                f"{path} has format {data['format']!r}; this version reads {FORMAT}: "
                "use the predict.py inside the bundle"
            )
        faults = [
            f"{root / name} {fault}; restore or rebuild the bundle"
            for name, digest in data["files"].items()
            if (fault := _fault(root / name, digest))
        ]
        if faults:
            raise UserError(faults)
        return cls(
            root=root,
            task=data["task"],
            target_names=tuple(data["target_names"]),
            columns=tuple(data["columns"]),
            layout=CsvLayout(**data["layout"]),
            members=tuple(BundleMember(**member) for member in data["members"]),
        )

    def member(self, trial: int) -> BundleMember:
        """Raises UserError for a trial that is not in the bundle."""
        for member in self.members:
            if member.trial == trial:
                return member
        known = ", ".join(str(member.trial) for member in self.members)
        raise UserError(f"trial {trial} is not in {self.root}; it has: {known}")

    def write_manifest(self, facts: dict[str, Any]) -> None:
        """Write manifest.json for the files that lie in the bundle now; `facts` are for people."""
        files = sorted(p for p in self.root.rglob("*") if p.is_file() and p.name != MANIFEST)
        data = {
            "format": FORMAT,
            "task": self.task,
            "target_names": list(self.target_names),
            "columns": list(self.columns),
            "layout": asdict(self.layout),
            "members": [asdict(member) for member in self.members],
            "facts": facts,
            "files": {str(p.relative_to(self.root).as_posix()): file_digest(p) for p in files},
        }
        data = json.loads(json.dumps(data))
        write_json(self.root / MANIFEST, {**data, "digest": _content_digest(data)})


_digests: dict[tuple[int, int, int, int], str] = {}


def file_digest(path: Path, known: bool = True) -> str:
    """SHA-256 of a file, in hex. With `known` a file that this process hashed before and that has
    not been touched since is not read again: a search rebuilds the bundle after each member."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if not known or key not in _digests:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        _digests[key] = digest.hexdigest()
    return _digests[key]


def _fault(path: Path, digest: str) -> str:
    if not path.is_file():
        return "is missing"
    return "" if file_digest(path, known=False) == digest else "was changed: its digest differs"


def _content_digest(data: dict[str, Any]) -> str:
    """Digest of the manifest's own content, so that a changed byte in it is noticed too."""
    content = {name: value for name, value in data.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
