"""From what the user asked to a run that can start: data checked, folds made, plan decided.

`prepare` makes a new run's folder; `reopen` reads one back. Both give a Setup.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from search.plan import Facts, Plan, Resources, Wish, check_wish, make_plan, plan_images
from search.run_folder import RunFolder, read_json, write_json
from spaces.errors import UserError
from spaces.registry import load_task
from spaces.task import Means, Task

Say = Callable[[str], None]
Meter = Callable[[str], Callable[[int, int], None]]  # what -> (done, total) callback


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run that can start or go on."""

    run: RunFolder
    task: Task
    task_name: str  # name or path, as `load_task` takes it
    data: Path
    plan: Plan
    means: Means
    resources: Resources
    metric: dict[str, Any]  # FittedMetric.to_dict()
    target_names: tuple[str, ...]
    store: Path  # the image store's folder
    fold_order: tuple[int, ...]
    baselines: tuple[Mapping[str, Any], ...]
    seed: int
    address: str | None
    weights_dir: Path | None


def wish_of(args: argparse.Namespace) -> Wish:
    """The part of the command line that the plan is about."""
    return Wish(
        trials=args.trials,
        hours=args.hours,
        epochs=args.epochs,
        image_sizes=tuple(args.image_size or ()),
        backbones=tuple(args.backbone or ()),
        gpus_per_trial=args.gpus_per_trial,
        cpus_per_trial=args.cpus_per_trial,
    )


def prepare(args: argparse.Namespace, say: Say, meter: Meter) -> Setup | None:
    """Check, decode, split and plan; write the run's folder. None for --dry-run, which writes
    nothing but the cached images.

    Raises UserError with all faults of what could be looked at together.
    """
    from search.data.cache import default_cache
    from search.data.source import resolve_data, sample_notice

    # What costs nothing to check comes first: a typing error is answered at once.
    task = load_task(args.task)
    wish = wish_of(args)
    out = (
        Path(args.out) if args.out else Path("runs") / f"{task.name}-{time.strftime('%m%d-%H%M%S')}"
    )
    _check_cheaply(args, wish, out)
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    data = resolve_data(task, args.data, cache, args.seed)
    if args.data is None:
        say(sample_notice(task, data))
    if wish.backbones:
        _check_backbones(wish.backbones)
    resources = _resources(args.address)
    backbones = wish.backbones or task.backbones(resources.gpu)
    import numpy as np

    from search.baselines import BASELINES, fold_order
    from search.data.cache import open_store, store_bytes
    from search.data.check import inspect
    from search.data.folds import check_folds, make_folds, write_folds
    from search.metrics import fold_scores, get_metric, mean_score

    say("checking the data")
    report = inspect(
        task.layout, data, groups=args.groups, folds=args.folds, seed=args.seed,
        skip_bad=args.skip_bad, progress=meter("checking images"),
        needs=lambda table: [(out, 64 * 2**20 + 20 * table.targets_TN.nbytes, "the run's folder")],
    )  # fmt: skip
    table = report.table
    for warning in report.warnings:
        say(f"warning: {warning}")
    for row in report.quarantined:
        say(f"left out: {row.id} ({row.path}: {row.reason})")

    weights = _weights(args.weights, backbones)
    images = plan_images(wish, _native_size(report.images.sizes), backbones, resources.gpu)
    paths = [*table.paths, *table.test_paths]
    say(f"{len(table.ids)} train and {len(table.test_ids)} test rows, {len(table.target_names)} "
        f"targets; store {store_bytes(len(paths), images.store_size) / 2**20:.0f} MB")  # fmt: skip
    store = open_store(data, paths, images.store_size, cache, progress=meter("decoding images"))
    train_NHWC = store.images_NHWC[: len(table.ids)]

    groups, fold_N = report.groups, report.fold_N
    if fold_N is None:  # --groups auto
        groups, reason = _auto_groups(train_NHWC, args.seed)
        say(reason)
        fold_N = make_folds(table.ids, groups, args.folds, args.seed)
        check_folds(fold_N, groups)
    folds = int(fold_N.max()) + 1

    metric = get_metric(task.metric, **task.metric_args).fit(table.targets_TN)
    baselines: list[dict[str, Any]] = []
    for name, baseline in BASELINES.items():
        started = time.monotonic()
        oof_TN = baseline.oof(train_NHWC, table.targets_TN, fold_N)
        scores = fold_scores(metric, oof_TN, table.targets_TN, fold_N)
        baselines.append({
            "name": name,
            "fold_scores": [s.value for s in scores],
            "fold_parts": [s.parts for s in scores],
            "pooled": metric.score(oof_TN, table.targets_TN).value,
            "seconds": time.monotonic() - started,
        })  # fmt: skip
        say(f"baseline {name}: {mean_score(scores).value:.4f} (mean over {folds} folds)")
    # The strongest baseline tells most about how hard a fold is.
    strongest = max(baselines, key=lambda b: sum(b["fold_scores"]))
    order = fold_order(strongest["fold_scores"])

    facts = Facts(
        rows=len(table.ids), test_rows=len(table.test_ids), outputs=len(table.target_names),
        folds=folds, backbones=tuple(backbones),
    )  # fmt: skip
    plan = make_plan(wish, facts, images, resources)
    say(f"weights: {weights.reason}")
    for reason in plan.reasons:
        say(f"plan: {reason}")
    means = Means(
        gpu=resources.gpu, pretrained=weights.pretrained, image_sizes=plan.image_sizes,
        backbones=plan.backbones, epochs=plan.epochs,
        train_rows=len(table.ids) - int(np.bincount(fold_N).max()),
    )  # fmt: skip
    task.space(means)  # a first recipe outside its own space shows here, not an hour later
    if args.dry_run:
        return None

    run = RunFolder(out)
    write_folds(run.folds, table.ids, groups, fold_N)
    _save_targets(run, table.targets_TN)
    _save_form(run, table)
    write_json(run.data, {
        **report.to_dict(),
        "groups": None if groups is None else dict(sorted(Counter(groups).items())),
        "fold_sizes": np.bincount(fold_N).tolist(),
    })  # fmt: skip
    task_name = args.task if args.task == task.name else str(Path(args.task).resolve())
    write_json(run.run, {
        "task": task_name,
        "asked": {k: v for k, v in vars(args).items() if v is not None},
        "command": [sys.executable, "-m", "search.run", *sys.argv[1:]],
        "data": str(data.resolve()),
        "cache": str(cache.resolve()),
        "store": str(store.folder.resolve()),
        "plan": plan.to_dict(),
        "means": vars(means),
        "metric": metric.to_dict(),
        "target_names": table.target_names,
        "layout": vars(task.layout),
        "fold_order": order,
        "baselines": baselines,
        "seed": args.seed,
        "address": args.address,
        "weights": vars(weights),
        "hardware": {**vars(resources), "machine": platform.platform()},
        "versions": _versions(),
        "commit": _commit(),
    })  # fmt: skip
    return reopen(out)


def reopen(path: Path | str) -> Setup:
    """The setup of the run at `path`. Raises UserError when it is none, or its images are gone or
    have changed."""
    from search.data.cache import load_store, open_store
    from search.data.table import read_table

    run = RunFolder.open(path)
    saved = read_json(run.run)
    data, store = Path(saved["data"]), Path(saved["store"])
    if not store.is_dir():  # the cache was emptied: decode again
        from search.data.folds import read_folds

        task = load_task(saved["task"])
        asked = saved["asked"].get("groups", "auto")
        not_targets = () if asked in ("auto", "none") or ".csv" in asked else (asked,)
        table = read_table(task.layout, data, not_targets)
        path_of = dict(zip(table.ids, table.paths, strict=True))
        paths = [*(path_of[i] for i in read_folds(run.folds).ids), *table.test_paths]
        store = open_store(data, paths, saved["plan"]["store_size"], Path(saved["cache"])).folder
    load_store(store)
    means = dict(saved["means"])
    for name in ("image_sizes", "backbones"):
        means[name] = tuple(means[name])
    hardware = dict(saved["hardware"])
    folder = saved["weights"]["folder"]
    return Setup(
        run=run,
        task=load_task(saved["task"]),
        task_name=saved["task"],
        data=data,
        plan=Plan.from_dict(saved["plan"]),
        means=Means(**means),
        resources=Resources(
            cpus=hardware["cpus"], gpus=hardware["gpus"], memory_bytes=hardware["memory_bytes"]
        ),
        metric=saved["metric"],
        target_names=tuple(saved["target_names"]),
        store=store,
        fold_order=tuple(saved["fold_order"]),
        baselines=tuple(saved["baselines"]),
        seed=saved["seed"],
        address=saved["address"],
        weights_dir=Path(folder) if folder else None,
    )


def _check_cheaply(args: argparse.Namespace, wish: Wish, out: Path) -> None:
    """Raises UserError with all faults that can be seen in the command line and the out folder."""
    faults: list[str] = []
    try:
        check_wish(wish)
    except UserError as error:
        faults += error.faults
    if args.folds is not None and args.folds < 2:
        faults.append(f"--folds is {args.folds}; at least 2 are needed")
    if args.data is not None and not Path(args.data).expanduser().is_dir():
        faults.append(f"--data {args.data} is no folder; give the folder that holds the data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        faults.append(
            f"--out {out} exists and is not empty; give another folder, or --resume {out} to go on"
        )
    if faults:
        raise UserError(faults)


def _native_size(sizes: Mapping[str, int]) -> int:
    """The shorter side in pixels of the commonest size ("64x48", commonest first)."""
    return min(map(int, next(iter(sizes)).split("x")))


def _resources(address: str | None) -> Resources:
    from search.cluster import cluster_resources, connect, local_resources

    if address is None:
        return local_resources()
    with connect(address, None):
        return cluster_resources()


def _check_backbones(names: tuple[str, ...]) -> None:
    from search.model.backbone import known_backbone

    faults: list[str] = []
    for name in names:
        try:
            known_backbone(name)
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)


def _weights(mode: str, backbones: tuple[str, ...]) -> Any:
    from search.model.backbone import probe_weights

    return probe_weights(mode, backbones)


def _auto_groups(images_NHWC: Any, seed: int) -> tuple[tuple[str, ...] | None, str]:
    from search.data.groups import auto_groups

    found = auto_groups(images_NHWC, seed)
    if found.labels is None:
        return None, f"groups: none found ({found.reason}); rows are folded at random"
    names = tuple(f"group {label}" for label in found.labels.tolist())
    return names, f"groups: {found.reason}; folds follow them (--groups none to switch off)"


def _save_targets(run: RunFolder, targets_TN: Any) -> None:
    import numpy as np

    from search.run_folder import write_file

    write_file(run.targets, lambda temporary: np.save(temporary, targets_TN, allow_pickle=False))


def _save_form(run: RunFolder, table: Any) -> None:
    from ensemble.submission import SubmissionForm

    if table.test_ids:
        SubmissionForm(
            target_names=table.target_names, test_ids=table.test_ids,
            ids=table.submission_ids, columns=table.submission_columns,
        ).save(run.form)  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("rungfold", "ray", "optuna", "torch", "torchvision", "timm", "numpy", "pandas"):
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
