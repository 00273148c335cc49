"""The sources that prediction needs, found by following imports, and the packages they need.

The imports of a package's `__init__` inside functions are not followed: they are conveniences for
people (`from search import Run`), and would drag in the whole program.
"""

import ast
import functools
import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OURS = ("spaces", "search", "ensemble")
ENTRY = "ensemble.predict"
# timm imports it, so it must be pinned beside torch although nothing here names it.
ALSO = ("torchvision",)
_ROOT = Path(__file__).resolve().parent.parent  # holds the folders of OURS


@dataclass(frozen=True)
class Closure:
    """Our files, relative to the folder that holds our packages, and other packages' names."""

    files: tuple[Path, ...]
    packages: tuple[str, ...]


@functools.cache  # a run exports many times, and sources do not change under it
def closure(entry: str = ENTRY, root: Path = _ROOT) -> Closure:
    """Everything of ours that `entry` imports, directly or not, lazily or not."""
    files: set[Path] = set()
    packages: set[str] = set()
    waiting = [entry]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        top = name.split(".")[0]
        if top not in OURS:
            if top not in sys.stdlib_module_names:
                packages.add(top)
            continue
        waiting += [name.rpartition(".")[0]] if "." in name else []
        path = _file(name, root)
        if path is None:  # a name of a module, not a module: `from spaces.recipe import Recipe`
            continue
        files.add(path.relative_to(root))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        waiting += _imports(tree, lazy=path.name != "__init__.py")
    return Closure(tuple(sorted(files)), tuple(sorted(packages)))


def copy_code(found: Closure, target: Path, root: Path = _ROOT) -> None:
    for file in found.files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target / file)


@functools.cache
def requirements(found: Closure) -> tuple[str, ...]:
    """Pinned to what is installed here, e.g. 'pillow==13.0.0'. A local part such as '+cpu' is left
    out: no package index has it."""
    owners = importlib.metadata.packages_distributions()
    names = {owners[package][0] for package in (*found.packages, *ALSO) if package in owners}
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in names}
    return tuple(f"{name.lower()}=={versions[name]}" for name in sorted(names, key=str.lower))


def _file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    choices = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in choices if path.is_file()), None)


def _imports(node: ast.AST, lazy: bool) -> Iterator[str]:
    """Full names of the modules, and of what is taken from them, under `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "our sources import by full names"
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (name for part in child.orelse for name in _imports(part, lazy))
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(child, lazy)
