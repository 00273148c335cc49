"""load_task: a known task by name, or the user's own task file by path."""

import hashlib
import importlib
import importlib.util
import pkgutil
from pathlib import Path

from spaces import tasks
from spaces.errors import UserError, near
from spaces.task import Task


def known_tasks() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def task_file(name: str) -> Path:
    """The source file of the task called `name`, or the user's own at path `name`.

    Raises UserError for an unknown name and for a file that does not exist.
    """
    if name in known_tasks():
        spec = importlib.util.find_spec(f"spaces.tasks.{name}")
        assert spec and spec.origin
        return Path(spec.origin)
    if not name.endswith(".py"):
        raise UserError(f"task {name!r} is unknown; {near(name, known_tasks())}")
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"task file {path} does not exist; give a path to a Python file")
    return path


def load_task(name: str) -> Task:
    """The task called `name`, or the `TASK` defined in the Python file at path `name`.

    Raises UserError for an unknown name and for a file without a Task named TASK.
    """
    path = task_file(name)
    if name in known_tasks():
        return importlib.import_module(f"spaces.tasks.{name}").TASK
    # A name of its own per path keeps two users' my_task.py apart in one process.
    module_name = f"user_task_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"{path} defines no TASK of type spaces.task.Task; add one")
    return task
