"""load_task: a known task by name, or the user's own task file by path."""

import hashlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task called `name`, or the `TASK` defined in the Python file at path `name`; `options`
    make it anew where the module can, by its `make_task`.

    Raises UserError for an unknown name, a file without a Task named TASK, and options of a task
    that takes none.
    """
    path = task_file(name)
    if name in known_tasks():
        module = importlib.import_module(f"spaces.tasks.{name}")
    else:
        # A name of its own per path keeps two users' my_task.py apart in one process.
        module_name = f"user_task_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if options:
        make = getattr(module, "make_task", None)
        if make is None:
            given = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise UserError(f"task {name} states itself what {given} would; leave it out, or: csv")
        try:
            task = make(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        except TypeError as error:
            raise UserError(f"{path}: {error}; its make_task must take what is given") from None
    else:
        task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise UserError(f"{path} defines no TASK of type spaces.task.Task; add one")
    return task
