"""The floors of the house, read from the sources: who may import whom, and what is never read."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("spaces", "search", "ensemble")

# From the ground up. A module belongs to the longest name that is its own or one of its parents,
# and imports only from its own floor and those below.
FLOORS = (
    ("spaces",),
    (
        "search.run_folder", "search.metrics", "search.oof", "search.journal", "search.data",
        "search.model", "search.train", "search.exchange", "search.machine", "search.upload",
        "search.download",
    ),
    ("ensemble",),
    (
        "search.leaderboard", "search.baselines", "search.check", "search.plan", "search.policy",
        "search.report",
        "search.trials", "search.director", "search.sampler", "search.results", "search.progress",
        "search.finish", "search.terminal", "search.warm_start", "search.ablation",
        "search.detail", "search.options", "search.pictures", "search.footprint",
        "search.memory_watch", "search.table", "search.selection", "search.compare", "search.notes",
        "search.watch", "search.follow", "search.screen", "search.live", "search.quiet",
        "search.export", "search.api",
    ),
    (
        "search.cluster", "search.trial", "search.searcher", "search.scheduler", "search.study",
        "search.group", "search.data_parallel",
    ),
    ("search.setup", "search.prepare", "search.compose", "search.summary", "search.refit"),
    ("search.run",),
)  # fmt: skip

# Libraries that only some modules may know.
RAY = (
    "search.cluster", "search.trial", "search.searcher", "search.scheduler", "search.study",
    "search.group", "search.data_parallel",
)  # fmt: skip
KNOWN_BY = {
    "ray": RAY,
    "optuna": ("search.sampler", "search.export.optuna"),
    "tensorboardX": ("search.export.tensorboard",),
    "mlflow": ("search.export.mlflow",),
    "timm": ("search.model", "search.train"),
}
# What the ensemble, which works without a search, may use of it.
OF_SEARCH = (
    "search.run_folder", "search.metrics", "search.oof", "search.data", "search.model",
    "search.download",
)  # fmt: skip

HEAVY = ("torch", "timm", "ray", "optuna", "pandas", "sklearn")
CLIS = (
    "search.run", "search.check", "search.leaderboard", "search.report", "search.export",
    "ensemble.build", "ensemble.predict",
)  # fmt: skip

# Import name -> name in pyproject.toml, where they differ.
PROJECT_OF = {
    "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "tensorboardX": "tensorboardx",
    "mlflow": "mlflow-skinny",
}  # fmt: skip
UNSAFE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def modules() -> dict[str, Path]:
    """Every module of the rooms by its dotted name; packages by the package's name."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """What a module imports, at its top or inside a function: dotted names, ours resolved to
    modules (`from search import oof` is search.oof)."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: relative import; write it in full"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def ours(name: str) -> bool:
    return within(name, ROOMS)


def floor(name: str) -> int:
    found = [i for i, names in enumerate(FLOORS) if within(name, names)]
    assert found, f"{name} stands on no floor; add it to FLOORS in {Path(__file__).name}"
    return found[0]


def edges() -> Iterator[tuple[str, str]]:
    """(importer, imported) among our own modules."""
    for name in MODULES:
        for other in imports(name):
            if ours(other):
                yield name, other


def test_the_rooms_are_read() -> None:
    assert {"spaces.recipe", "search.leaderboard", "search.data.table", "ensemble"} <= set(MODULES)
    assert ("search.run_folder", "spaces.errors") in set(edges())


def test_modules_import_only_downward() -> None:
    upward = [
        f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"
        for name, other in edges()
        if name != "search" and floor(other) > floor(name)
    ]
    assert not upward, "\n".join(upward)


def test_every_import_of_ours_exists() -> None:
    missing = [f"{name} imports {other}" for name, other in edges() if other not in MODULES]
    assert not missing, "\n".join(missing)


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, other in edges():
        if name != other:
            graph[name].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("library", KNOWN_BY)
def test_a_library_is_known_only_where_it_belongs(library: str) -> None:
    knowing = {name for name in MODULES if any(within(i, (library,)) for i in imports(name))}
    strangers = sorted(name for name in knowing if not within(name, KNOWN_BY[library]))
    assert not strangers, f"{strangers} import {library}; only {KNOWN_BY[library]} may"


def test_the_ensemble_uses_only_what_a_bundle_can_carry() -> None:
    found = [
        f"{name} imports {other}"
        for name, other in edges()
        if within(name, ("ensemble",))
        and within(other, ("search",))
        and not within(other, OF_SEARCH)
    ]
    assert not found, "\n".join(found)


def loaded_after(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys\nprint('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_what_is_loaded() -> None:
    assert "pandas" in loaded_after("import pandas")


def test_importing_spaces_loads_nothing_heavy() -> None:
    names = [name for name in MODULES if within(name, ("spaces",))]
    assert not loaded_after(f"import {', '.join(names)}")


def test_package_files_load_nothing_heavy() -> None:
    """What an __init__ imports, every module below it pays for."""
    names = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    assert not loaded_after(f"import {', '.join(names)}")


@pytest.mark.parametrize("module", CLIS)
def test_help_loads_nothing_heavy(module: str) -> None:
    loaded = loaded_after(
        f"import {module} as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not loaded, f"--help of {module} loads {loaded}"


def test_an_impossible_value_is_answered_before_a_network_could_be_loaded() -> None:
    loaded = loaded_after(
        "import search.run, spaces.errors\n"
        "try:\n    search.run.main(['gene_expr', '--trials', '0'])\n"
        "except spaces.errors.UserError as error:\n    assert '--trials' in str(error)"
    )
    assert not loaded


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that could run a pickle from a run or a bundle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (f"imports {n}" for n in names if n and n.split(".")[0] in UNSAFE)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: getattr(k.value, "value", k) for k in node.keywords}
        if called == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if given.get("allow_pickle", False) is not False:
            yield f"{called} with allow_pickle"
        if called.split(".")[-1] in ("read_pickle", "to_pickle"):
            yield called


def test_no_pickle_is_ever_read() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {what}"
        for path in [*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")]
        for what in unsafe_calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
    ],
)
def test_the_pickle_check_finds(code: str) -> None:
    assert list(unsafe_calls(ast.parse(code)))


def test_the_pickle_check_lets_safe_reading_pass() -> None:
    safe = "torch.load(p, weights_only=True); np.load(p); np.load(p, allow_pickle=False)"
    assert not list(unsafe_calls(ast.parse(safe)))


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in lines}


def third_party(names: list[str]) -> dict[str, str]:
    """Project name -> one module of ours that imports it."""
    found = {}
    for name in names:
        for top in {i.split(".")[0] for i in imports(name)}:
            if top not in sys.stdlib_module_names and top not in ROOMS:
                found[PROJECT_OF.get(top, top.replace("_", "-"))] = name
    return found


def test_dependencies_are_what_the_sources_import() -> None:
    base = declared(PROJECT["project"]["dependencies"])
    optional = PROJECT["project"]["optional-dependencies"]
    extra = declared([*optional["search"], *optional["mlflow"]])
    lower = [name for name in MODULES if not within(name, ("search",)) or within(name, FLOORS[1])]
    for project, name in third_party(lower).items():
        assert project in base, f"{name} imports {project}, which the base does not install"
    used = third_party(list(MODULES))
    for project, name in used.items():
        assert project in base | extra, f"{name} imports {project}, which nothing installs"
    unused = (base | extra) - set(used) - {"torchvision"}  # timm's, held at torch's release
    assert not unused, f"installed but never imported: {sorted(unused)}"


def test_every_package_is_listed_and_holds_only_modules() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages
    folders = {path.parent for path in MODULES.values()}
    assert folders == {ROOT.joinpath(*name.split(".")) for name in packages}, "no __init__.py"
    others = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".py"
    ]
    assert not others, f"{others} are no modules and would be missing from an installation"
