"""Room on disk, asked for before anything is written."""

import shutil
from pathlib import Path

from spaces.errors import UserError


def need_space(path: Path, needed: int, what: str) -> None:
    """Raise UserError unless the disk that holds (or will hold) `path` has `needed` bytes free for
    `what`."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {_gb(needed)}, but {folder} has {_gb(free)} free; "
            "free some space or choose another folder"
        )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"
