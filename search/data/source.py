"""Where the data is: the folder or URL the user gave, or the task's embedded sample."""

import hashlib
import inspect
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from search.data.remote import Progress, is_url, mirror
from spaces import samples
from spaces.errors import UserError
from spaces.task import Task


def resolve_data(
    task: Task, data: str | None, cache: Path, seed: int, progress: Progress | None = None
) -> Path:
    """The data folder: `data`, or a copy below `cache` of what lies at the URL `data`, or without
    it the task's sample, written once below `cache`.

    The sample is written to a temporary folder and renamed: a folder of its final name is whole.
    Raises UserError when `data` is no folder or cannot be copied, and without it when the task has
    no sample.
    """
    if is_url(data):
        assert data is not None
        return mirror(data, cache, progress)
    if data is not None:
        root = Path(data).expanduser()
        if not root.is_dir():
            raise UserError(f"--data {data} is no folder; give the folder that holds the data")
        return root
    if task.write_sample is None:
        raise UserError(f"task {task.name} has no embedded sample; give --data DIR")
    parent = cache / "samples"
    folder = parent / f"{task.name}-{_version(task.write_sample, seed)}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent / f"{folder.name}.lock"):
        if folder.is_dir():  # another process was quicker
            return folder
        temporary = parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
        try:
            task.write_sample(temporary, seed)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def sample_notice(task: Task, root: Path) -> str:
    """What a command says first when it runs without --data."""
    return f"No --data: using the embedded sample of {task.name}, generated in\n{root}"


def _version(write_sample: Callable[[Path, int], None], seed: int) -> str:
    """Names the code that makes the sample, and its seed: new code gives a new sample."""
    module = sys.modules.get(inspect.unwrap(write_sample).__module__)
    sources = sorted(path for folder in samples.__path__ for path in Path(folder).glob("*.py"))
    if own := getattr(module, "__file__", None):
        sources.append(Path(own))
    digest = hashlib.sha256(str(seed).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
