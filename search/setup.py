"""Setup: everything that a run needs to start or go on, and run.json, which keeps it."""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from search.data.remote import is_url, mirror, mirrored
from search.download import fetch_run
from search.journal import read_events
from search.plan import Plan, Resources
from search.run_folder import RunFolder, read_json, write_json
from search.terminal import progress_bar
from spaces.errors import UserError
from spaces.means import Means
from spaces.registry import load_task, task_file
from spaces.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run that can start or go on."""

    run: RunFolder
    task_name: str  # name or path, as `load_task` takes it
    task_options: Mapping[str, Any]
    data: Path
    cache: Path
    groups_asked: str  # the value of --groups
    plan: Plan
    means: Means
    resources: Resources
    metric: Mapping[str, Any]  # FittedMetric.to_dict()
    target_names: tuple[str, ...]
    store: Path  # the image store's folder
    fold_order: tuple[int, ...]
    baselines: tuple[Mapping[str, Any], ...]
    weights: Mapping[str, Any]  # where pretrained weights come from, and why
    seed: int
    address: str | None
    keep_gb: float | None  # 10^9 bytes that checkpoints may take; None: all are kept
    clean: Mapping[str, bool]  # what is done to images before they are resized
    initial: Mapping[str, Mapping[str, str]]  # backbone -> fold -> checkpoint to start from

    @property
    def task(self) -> Task:
        return load_task(self.task_name, self.task_options)

    @property
    def task_digest(self) -> str:
        """Of the task's source file as it is now, and of its options."""
        options = json.dumps(self.task_options, sort_keys=True).encode()
        return hashlib.sha256(task_file(self.task_name).read_bytes() + options).hexdigest()

    @property
    def weights_dir(self) -> Path | None:
        folder = self.weights["folder"]
        return Path(folder) if folder else None


def save(setup: Setup, args: argparse.Namespace) -> None:
    """Write run.json, the manifest of a run that can start: written after all other files."""
    write_json(setup.run.run, {
        "task": setup.task_name,
        "task_options": dict(setup.task_options),
        "task_digest": setup.task_digest,
        "asked": {k: v for k, v in vars(args).items() if v is not None},
        "command": [sys.executable, "-m", "search.run", *sys.argv[1:]],
        "data": str(setup.data.resolve()),
        "cache": str(setup.cache.resolve()),
        "store": str(setup.store.resolve()),
        "groups_asked": setup.groups_asked,
        "plan": setup.plan.to_dict(),
        "means": vars(setup.means),
        "metric": setup.metric,
        "task_type": setup.task.task_type,
        "target_names": setup.target_names,
        "layout": asdict(setup.task.layout),
        "fold_order": setup.fold_order,
        "baselines": setup.baselines,
        "seed": setup.seed,
        "address": setup.address,
        "keep_gb": setup.keep_gb,
        "clean": dict(setup.clean),
        "initial": setup.initial,
        "weights": setup.weights,
        "resources": vars(setup.resources),
        "versions": _versions(),
        "commit": _commit(),
    })  # fmt: skip


def reopen(path: Path | str, force: bool = False) -> Setup:
    """The setup of the run at `path`, which may have been moved since; of one at a URL in its
    folder on this disk.

    Raises UserError when it is none, and when what it needs outside its folder (task file, data,
    images, weights) is gone or has changed; `force` accepts another task file.
    """
    if is_url(str(path)):
        with progress_bar("fetching the run") as bar:
            path = fetch_run(str(path), bar)
    run = RunFolder.open(path)
    read_events(run.journal)  # of another version, or damaged: told before all else
    saved = read_json(run.run)
    try:
        setup = _setup(run, saved)
        url = saved["asked"].get("data")
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{run.run} is none that this version wrote ({type(error).__name__}: {error}); restore "
            "it"
        ) from None
    if setup.task_name.endswith(".py") and _inside(run.root, setup.task_name):
        raise UserError(
            f"the run's task file {setup.task_name} lies in the run's own folder: it may have come "
            "with it from somebody else, and would be executed; look at it, then start a new run "
            "from a copy outside"
        )
    if is_url(url) and not mirrored(url, setup.cache):  # its copy is gone, or on another machine
        with progress_bar("fetching the data") as bar:
            mirror(url, setup.cache, bar)
    _need_folders(setup)
    if not force:
        _need_same_task(setup, saved["task_digest"])
    _need_images(setup)
    return setup


def _inside(folder: Path, path: str) -> bool:
    return Path(path).resolve().is_relative_to(folder.resolve())


def _setup(run: RunFolder, saved: Mapping[str, Any]) -> Setup:
    means = {**saved["means"]}
    for name in ("image_sizes", "backbones"):
        means[name] = tuple(means[name])
    return Setup(
        run=run,
        task_name=saved["task"],
        task_options=saved["task_options"],
        data=Path(saved["data"]),
        cache=Path(saved["cache"]),
        groups_asked=saved["groups_asked"],
        plan=Plan.from_dict(saved["plan"]),
        means=Means(**means),
        resources=Resources.from_dict(saved["resources"]),
        metric=saved["metric"],
        target_names=tuple(saved["target_names"]),
        store=Path(saved["store"]),
        fold_order=tuple(saved["fold_order"]),
        baselines=tuple(saved["baselines"]),
        weights=saved["weights"],
        seed=saved["seed"],
        address=saved["address"],
        keep_gb=saved["keep_gb"],
        clean=saved["clean"],
        initial=saved["initial"],
    )


def _need_folders(setup: Setup) -> None:
    """Raises UserError with all that the run needs outside its own folder and that is gone."""
    faults = []
    if setup.task_name.endswith(".py") and not Path(setup.task_name).is_file():
        faults.append(f"the run's task file {setup.task_name} is gone; put it back there")
    if not setup.data.is_dir():
        faults.append(
            f"the run's data folder {setup.data} is gone; put it back there, its files with their "
            "times (mv, cp -a, rsync -a), or start a new run"
        )
    if setup.weights_dir and not setup.weights_dir.is_dir():
        faults.append(f"the folder of weights {setup.weights_dir} is gone; put it back there")
    starts = {path for files in setup.initial.values() for path in files.values()}
    if lost := sorted(path for path in starts if not Path(path).is_file()):
        faults.append(f"the checkpoints that folds start from are gone: {', '.join(lost[:5])}")
    if faults:
        raise UserError(faults)


def _need_same_task(setup: Setup, began_with: str) -> None:
    if setup.task_digest != began_with:
        raise UserError(
            f"{task_file(setup.task_name)} has changed since {setup.run.root} was started: trials "
            "before and after could not be compared; restore the file, start a new run, or give "
            "--force to go on all the same"
        )


def _need_images(setup: Setup) -> None:
    """Make sure that the image store is there, decoding again where the cache was emptied; a file
    that has changed since gives another store, and is refused."""
    from search.data.cache import open_store
    from search.data.cleaning import cleaner
    from search.data.folds import not_targets, read_folds
    from search.data.table import read_table

    task = setup.task
    table = read_table(task.layout, setup.data, not_targets(setup.groups_asked), task.task_type)
    ids = read_folds(setup.run.folds).ids
    if lost := sorted(set(ids) - set(table.ids)):
        raise UserError(f"{setup.data} no longer has the rows {lost[:5]}; restore the data")
    images_of = dict(zip(table.ids, table.row_files, strict=True))
    files = [*(image for name in ids for image in images_of[name]), *table.test_files]
    clean, clean_key = cleaner(setup.clean)
    store = open_store(
        setup.data, files, setup.plan.store_size, setup.cache, clean=clean, clean_key=clean_key
    )
    if store.folder.resolve() != setup.store:
        raise UserError(
            f"images in {setup.data} have changed since {setup.run.root} was started; restore "
            "them, or start a new run"
        )


def _versions() -> dict[str, str]:
    names: Sequence[str] = (
        "rungfold", "ray", "optuna", "torch", "torchvision", "timm", "numpy", "pandas",
    )  # fmt: skip
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """The commit of this checkout; None when it is not run from one."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
