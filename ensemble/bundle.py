"""A bundle on disk: its manifest, and the proof that no byte of it changed.

The manifest is written last and names every other file with its digest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble.blend import Blend
from search.run_folder import write_json
from spaces.errors import UserError
from spaces.layout import Layout

FORMAT = 3  # version of the manifest
MANIFEST = "manifest.json"
REPORT = "ensemble.json"  # scores and members, for people and for --explain
BLEND = "blend.safetensors"
REQUIREMENTS = "requirements.txt"
CODE = "code"  # folder with the sources that prediction needs
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BundlePart:
    """Fold models of one recipe."""

    recipe: dict[str, Any]
    decode_size: int  # pixels that images are decoded to; the model resizes to its own size
    models: dict[str, str]  # fold -> file of the bundle


@dataclass(frozen=True, kw_only=True)
class BundleMember:
    """A member of the ensemble: fold models, or a linear layer on the features of several."""

    name: str  # the trial; RUN/TRIAL when runs were joined; soup ..., features ...
    weight: float  # its share of the blend
    parts: tuple[BundlePart, ...]
    layers: dict[str, str]  # fold -> file of the bundle; empty: one part that predicts by itself

    @property
    def folds(self) -> list[str]:
        return list(self.layers or self.parts[0].models)

    @property
    def decode_size(self) -> int:
        """Parts are of one run, whose images are decoded once."""
        return self.parts[0].decode_size

    @property
    def files(self) -> list[str]:
        models = (name for part in self.parts for name in part.models.values())
        return [*models, *self.layers.values()]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What prediction needs to know, beside the weights."""

    root: Path
    task: str
    target_names: tuple[str, ...]
    columns: tuple[str, ...]  # of the submission, the id column first
    layout: Layout
    clean: dict[str, bool]  # what is done to images before they are resized: search.data.borders
    members: tuple[BundleMember, ...]  # in the blend's order, heaviest first
    blend: Blend  # makes one prediction of the members'

    @property
    def task_type(self) -> str:
        return self.blend.task_type

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
        try:
            files = dict(data["files"])
            members = tuple(_read_member(member) for member in data["members"])
            named = {*files, BLEND, *(name for member in members for name in member.files)}
            faults = [
                f"{root / name} {fault}; restore or rebuild the bundle"
                for name in sorted(named)
                if (fault := _fault(root, name, files.get(name)))
            ]
            if faults:
                raise UserError(faults)
            return cls(
                root=root,
                task=data["task"],
                target_names=tuple(data["target_names"]),
                columns=tuple(data["columns"]),
                layout=Layout.from_dict(data["layout"]),
                clean=dict(data["clean"]),
                members=members,
                blend=Blend.load(root / BLEND),
            )
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # made by hand
            raise UserError(
                f"{path} is no manifest of a bundle ({type(error).__name__}: {error}); rebuild it"
            ) from None

    def member(self, name: str) -> BundleMember:
        """Raises UserError for a member that is not in the bundle."""
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise UserError(f"member {name} is not in {self.root}; it has: {known}")

    def model_bytes(self, member: BundleMember) -> int:
        """Size of a member's files."""
        return sum((self.root / name).stat().st_size for name in member.files)

    def write_manifest(self, facts: dict[str, Any]) -> None:
        """Write manifest.json for the files that lie in the bundle now; `facts` are for people."""
        files = sorted(p for p in self.root.rglob("*") if p.is_file() and p.name != MANIFEST)
        data = {
            "format": FORMAT,
            "task": self.task,
            "target_names": list(self.target_names),
            "columns": list(self.columns),
            "layout": asdict(self.layout),
            "clean": self.clean,
            "members": [asdict(member) for member in self.members],
            "facts": facts,
            "files": {str(p.relative_to(self.root).as_posix()): file_digest(p) for p in files},
        }
        data = json.loads(json.dumps(data))
        write_json(self.root / MANIFEST, {**data, "digest": _content_digest(data)})


def _read_member(data: dict[str, Any]) -> BundleMember:
    parts = tuple(BundlePart(**part) for part in data["parts"])
    return BundleMember(**{**data, "parts": parts})


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


def _fault(root: Path, name: str, digest: str | None) -> str:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        return "lies outside the bundle"
    if digest is None:
        return "has no digest in the manifest"
    if not path.is_file():
        return "is missing"
    return "" if file_digest(path, known=False) == digest else "was changed: its digest differs"


def _content_digest(data: dict[str, Any]) -> str:
    """Digest of the manifest's own content, so that a changed byte in it is noticed too."""
    content = {name: value for name, value in data.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
