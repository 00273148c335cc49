"""The run's folder: every file name in one place, and how files are written.

Everything is written under a temporary name and renamed, so a reader sees a whole file or none.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from spaces.errors import UserError

FORMAT = 2  # version of the run folder's files; each carries it


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers (numpy, pandas) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # safetensors makes files that only their owner can read
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
    check_format(path, data.get("format") if isinstance(data, dict) else None)
    return data


def check_format(where: Path | str, got: object, reads: int = FORMAT) -> None:
    """Raises UserError unless `got`, the format version that was read at `where`, is `reads`."""
    if got == reads:
        return
    if isinstance(got, int) and got > reads:
        raise UserError(
            f"{where} was written by a newer version (format {got}; this version reads {reads}); "
            "update rungfold"
        )
    if isinstance(got, int):
        raise UserError(
            f"{where} was written by an older version (format {got}; this version reads {reads}); "
            "use that version to go on, or start a new run"
        )
    raise UserError(f"{where} has format {got!r}; this version reads format {reads}")


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
        self.warm_start = root / "warm_start.json"  # what was learned from earlier runs
        self.trials = root / "trials.parquet"
        self.leaderboard = root / "leaderboard.csv"
        self.ensemble = root / "ensemble"
        self.refit = root / "refit"  # the ensemble trained on all rows: models, bundle, submission
        self.ablation = root / "ablation.csv"  # what one change at a time did
        self.report = root / "report.html"  # pictures of the run, in one file
        self.notes = root / "notes.json"  # what people say of trials
        self.tensorboard = root / "tensorboard"  # event files, with --tensorboard
        self.pictures = root / "pictures"  # of what the data report tells
        self.task = root / "task.py"  # the user's own task file, for workers on other hosts
        self.mark = root / ".mark"  # by which they know whether they see this folder
        self.url = root / ".url"  # where the folder is copied to while the run goes on
        self.staging = root / ".upload"  # holds what is being copied there
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

    def epoch(self, trial: int, attempt: int, fold: int) -> Path:
        """The checkpoint of a fold that is being trained."""
        return self.work(trial, attempt) / f"epoch-{fold}.safetensors"

    def drop_epochs(self, trial: int, attempt: int, fold: int) -> None:
        """Delete a finished fold's epoch checkpoints of this attempt and all before."""
        for earlier in range(1, attempt + 1):
            self.epoch(trial, earlier, fold).unlink(missing_ok=True)

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
        """Numbers of the trials with a complete OOF and their fold models, ascending."""
        return [trial for trial in self._complete() if self._has_models(trial)]

    def without_models(self) -> list[int]:
        """Numbers of the trials with a complete OOF whose fold models were deleted, ascending."""
        return [trial for trial in self._complete() if not self._has_models(trial)]

    def model_bytes(self) -> dict[int, int]:
        """Bytes of every trial's fold models and of what its workers have checkpointed."""
        sizes: dict[int, int] = {}
        for folder in (*self.root.glob("checkpoints/*"), *self.root.glob("work/*")):
            trial = int(folder.name.partition("-")[0])  # work folders: TRIAL-ATTEMPT
            for path in folder.glob("*.safetensors"):
                with suppress(FileNotFoundError):  # adopted or ended meanwhile
                    sizes[trial] = sizes.get(trial, 0) + path.stat().st_size
        return sizes

    def drop_models(self, trial: int) -> None:
        """Delete a finished trial's fold models; its OOF stays. recipe.json goes first: what is
        left of a deletion that was cut short is never taken for a member."""
        (self.checkpoints(trial) / "recipe.json").unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints(trial), ignore_errors=True)

    def sweep(self, members: Collection[int], others: Collection[int]) -> None:
        """Delete what a killed driver had no time to delete, given the trials that have ended with
        a complete OOF and those without: their work, files of the others, half-written files."""
        for folder in self.root.glob("work/*"):
            if int(folder.name.partition("-")[0]) in (*members, *others):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (*self.root.glob("oof/*"), *self.root.glob("checkpoints/*")):
            if int(folder.name) in others:
                shutil.rmtree(folder, ignore_errors=True)
            for half in folder.glob(".*"):
                half.unlink(missing_ok=True)

    def _complete(self) -> list[int]:
        return sorted(int(meta.parent.name) for meta in self.root.glob("oof/*/meta.json"))

    def _has_models(self, trial: int) -> bool:
        # Written before the OOF is complete, so that nothing can be complete without it.
        return (self.checkpoints(trial) / "recipe.json").is_file()
