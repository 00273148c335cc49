"""The run's folder: every file name in one place, and how files are written.

Everything is written under a temporary name and renamed, so a reader sees a whole file or none.
"""

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaces.errors import UserError

FORMAT = 1  # version of the run folder's files; each carries it


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers (numpy, pandas) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` with the format version in front."""
    write_text(path, json.dumps({"format": FORMAT, **data}, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises UserError when the file is absent, is no JSON, or has another format version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder that search.run wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); restore it") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else None
        raise UserError(f"{path} has format {got!r}; this version reads format {FORMAT}")
    return data


class RunFolder:
    """Paths inside one run's folder. Creates nothing by itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run.json"
        self.data = root / "data.json"
        self.folds = root / "folds.parquet"
        self.targets = root / "targets.npy"  # (outputs, rows) float32, rows as in folds.parquet
        self.form = root / "submission.json"  # test ids, and the rows and columns of the submission
        self.journal = root / "journal.jsonl"
        self.trials = root / "trials.parquet"
        self.leaderboard = root / "leaderboard.csv"
        self.ensemble = root / "ensemble"
        self.submission = root / "submission.csv"
        self.lock = root / ".lock"

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """The run at `path`. Raises UserError when there is none."""
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give a folder that search.run wrote")
        folder = cls(root)
        if not folder.run.is_file():
            raise UserError(f"{root} is not a run: it has no run.json; give the folder of a run")
        return folder

    def oof(self, trial: int) -> Path:
        """Folder of a trial's predictions: fold-K.npy while it runs, pred.npy when complete."""
        return self.root / "oof" / f"{trial:04d}"

    def checkpoints(self, trial: int) -> Path:
        """Folder of a trial's fold models: fold-K.safetensors and recipe.json."""
        return self.root / "checkpoints" / f"{trial:04d}"

    def derived(self, name: str) -> Path:
        """Folder of what is made from finished trials: soups, feature heads, kept features."""
        return self.root / "derived" / name

    def work(self, trial: int, attempt: int) -> Path:
        """Where the workers of one attempt write. The driver moves finished files out of it, so a
        late writer of an older attempt cannot touch its successor's."""
        return self.root / "work" / f"{trial:04d}-{attempt}"

    def adopt(self, trial: int, attempt: int, fold: int) -> None:
        """Move a finished fold's files from an attempt's work folder to their final places."""
        work = self.work(trial, attempt)
        for suffix, folder in (
            (".npy", self.oof(trial)),
            (".test.npy", self.oof(trial)),
            (".safetensors", self.checkpoints(trial)),
        ):
            source = work / f"fold-{fold}{suffix}"
            if source.exists():
                folder.mkdir(parents=True, exist_ok=True)
                os.replace(source, folder / source.name)

    def members(self) -> list[int]:
        """Numbers of the trials with a complete OOF, ascending."""
        return sorted(int(meta.parent.name) for meta in self.root.glob("oof/*/meta.json"))
