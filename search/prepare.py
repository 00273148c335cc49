"""From a command line to a run that can start: data checked, folds made, plan decided."""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.plan import Facts, Resources, Wish, check_wish, make_plan, plan_images
from search.policy.priors import PriorRun, identity
from search.run_folder import RunFolder, write_file, write_json
from search.setup import Setup, save
from search.terminal import progress_bar
from search.warm_start import notes, read_priors
from search.warm_start import save as save_priors
from spaces.errors import UserError
from spaces.registry import load_task
from spaces.task import Means, Task

if TYPE_CHECKING:
    import numpy as np

    from search.data.check import DataReport
    from search.metrics import FittedMetric

Say = Callable[[str], None]
ROOM = 64 * 2**20  # bytes of a run's folder beside its predictions
MEMBERS = 20  # predictions of this many members should fit


@dataclass(frozen=True, kw_only=True, eq=False)
class _Split:
    """The rows in their folds."""

    groups: tuple[str, ...] | None
    fold_N: "np.ndarray"

    @property
    def folds(self) -> int:
        return int(self.fold_N.max()) + 1

    def sizes(self) -> list[int]:
        return [int((self.fold_N == k).sum()) for k in range(self.folds)]


def prepare(args: argparse.Namespace, say: Say) -> Setup | None:
    """Check, decode, split and plan, then write the run's folder. None for --dry-run, which writes
    nothing but the cached images.

    Raises UserError with all faults of what could be looked at together.
    """
    from search.data.cache import default_cache, open_store
    from search.data.source import resolve_data, sample_notice

    # What costs nothing to check comes first: a typing error is answered at once.
    task = load_task(args.task)
    wish = wish_of(args)
    out = Path(args.out or f"runs/{task.name}-{time.strftime('%m%d-%H%M%S')}")
    priors = _check_command_line(args, wish, out)
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    data = resolve_data(task, args.data, cache, args.seed)
    if args.data is None:
        say(sample_notice(task, data))
    if wish.backbones:
        _check_backbones(wish.backbones)
    resources = _resources(args.address)
    backbones = wish.backbones or task.backbones(resources.gpu)

    say("checking the data")
    report = _inspect(args, task, data, out)
    for warning in report.warnings:
        say(f"warning: {warning}")
    weights = _weights(args.weights, backbones)
    say(f"weights: {weights['reason']}")
    table = report.table
    native = _native_size(report.images.sizes)
    images = plan_images(wish, native, backbones, resources.gpu)
    paths = [*table.paths, *table.test_paths]
    say(
        f"{len(table.ids)} train and {len(table.test_ids)} test rows, "
        f"{len(table.target_names)} targets"
    )
    with progress_bar("decoding images") as bar:
        store = open_store(data, paths, images.store_size, cache, progress=bar)
    train_NHWC = store.images_NHWC[: len(table.ids)]
    split = _split(report, train_NHWC, args, say)
    metric, baselines, order = _baselines(task, report, train_NHWC, split, say)

    facts = Facts(
        rows=len(table.ids), folds=split.folds, backbones=tuple(backbones),
    )  # fmt: skip
    plan = make_plan(wish, facts, images, resources)
    for reason in plan.reasons:
        say(f"plan: {reason}")
    means = Means(
        gpu=resources.gpu, pretrained=weights["pretrained"], image_sizes=plan.image_sizes,
        backbones=plan.backbones, epochs=plan.epochs,
        train_rows=len(table.ids) - max(split.sizes()),
    )  # fmt: skip
    setup = Setup(
        run=RunFolder(out), task_name=task.name if args.task == task.name else _absolute(args.task),
        data=data, cache=cache, groups_asked=args.groups, plan=plan, means=means,
        resources=resources, metric=metric.to_dict(), target_names=table.target_names,
        store=store.folder.resolve(), fold_order=tuple(order), baselines=tuple(baselines),
        weights=weights, seed=args.seed, address=args.address, keep_gb=args.keep_gb,
    )  # fmt: skip
    for values in setup.task.space(means).first:  # a fault in the task shows here, not later
        setup.task.space(means).fixed(values)
    own = identity(setup.task_name, setup.metric, setup.target_names)
    for note in notes(priors, setup.task.space(means), own):
        say(note)
    if args.dry_run:
        return None
    _write(setup, report, split)
    if priors:
        save_priors(setup.run, priors)
    save(setup, args)
    return setup


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


def _check_command_line(args: argparse.Namespace, wish: Wish, out: Path) -> list[PriorRun]:
    """The earlier runs to start from.

    Raises UserError with all faults that the command line and the folders it names show.
    """
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
    if args.keep_gb is not None and not 0 <= args.keep_gb < math.inf:
        faults.append(f"--keep-gb is {args.keep_gb:g}; it must be 0 (the ensemble's only) or more")
    priors: list[PriorRun] = []
    try:
        priors = read_priors(args.warm_start or (), out)
    except UserError as error:
        faults += error.faults
    if faults:
        raise UserError(faults)
    return priors


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


def _resources(address: str | None) -> Resources:
    from search.cluster import cluster_resources, connect, local_resources

    if address is None:
        return local_resources()
    with connect(address, None):
        return cluster_resources()


def _inspect(args: argparse.Namespace, task: Task, data: Path, out: Path) -> "DataReport":
    from search.data.check import inspect

    with progress_bar("checking images") as bar:
        return inspect(
            task.layout, data, groups=args.groups, folds=args.folds, seed=args.seed,
            skip_bad=args.skip_bad, progress=bar,
            needs=lambda table: [
                (out, ROOM + MEMBERS * table.targets_TN.nbytes, "the run's folder")
            ],
        )  # fmt: skip


def _weights(mode: str, backbones: tuple[str, ...]) -> dict[str, Any]:
    from search.model.weights import probe_weights

    return vars(probe_weights(mode, backbones))


def _native_size(sizes: Mapping[str, int]) -> int:
    """The shorter side in pixels of the commonest size ("64x48", commonest first)."""
    return min(map(int, next(iter(sizes)).split("x")))


def _split(
    report: "DataReport", train_NHWC: "np.ndarray", args: argparse.Namespace, say: Say
) -> _Split:
    """The folds that the report made; for --groups auto, those that the images ask for."""
    if report.fold_N is not None:
        return _Split(groups=report.groups, fold_N=report.fold_N)
    from search.data.folds import check_folds, make_folds
    from search.data.groups import auto_groups

    found = auto_groups(train_NHWC, args.seed)
    groups = None
    if found.labels is None:
        say(f"groups: none found ({found.reason}); rows are folded at random")
    else:
        groups = tuple(f"group {label}" for label in found.labels.tolist())
        say(f"groups: {found.reason}; folds follow them (--groups none to switch off)")
    fold_N = make_folds(report.table.ids, groups, args.folds, args.seed)
    check_folds(fold_N, groups)
    return _Split(groups=groups, fold_N=fold_N)


def _baselines(
    task: Task, report: "DataReport", train_NHWC: "np.ndarray", split: _Split, say: Say
) -> tuple["FittedMetric", list[dict[str, Any]], list[int]]:
    """The metric, the trivial baselines' rows for the leaderboard, and the order in which folds are
    visited, which their scores decide."""
    from search.baselines import BASELINES, fold_order
    from search.metrics import fold_scores, get_metric, trial_score

    targets_TN = report.table.targets_TN
    metric = get_metric(task.metric, **task.metric_args).fit(targets_TN)
    rows: list[dict[str, Any]] = []
    for name, baseline in BASELINES.items():
        started = time.monotonic()
        oof_TN = baseline.oof(train_NHWC, targets_TN, split.fold_N)
        scores = fold_scores(metric, oof_TN, targets_TN, split.fold_N)
        say(f"baseline {name}: {trial_score(scores):.4f} (mean over {split.folds} folds)")
        rows.append({
            "name": name,
            "fold_scores": [s.value for s in scores],
            "fold_parts": [s.parts for s in scores],
            "pooled": metric.score(oof_TN, targets_TN).value,
            "seconds": time.monotonic() - started,
        })  # fmt: skip
    # The strongest baseline tells most about how hard a fold is.
    strongest = max(rows, key=lambda row: sum(row["fold_scores"]))
    return metric, rows, fold_order(strongest["fold_scores"])


def _write(setup: Setup, report: "DataReport", split: _Split) -> None:
    """The run's files but run.json."""
    import numpy as np

    from ensemble.submission import SubmissionForm
    from search.data.folds import write_folds

    table, run = report.table, setup.run
    write_folds(run.folds, table.ids, split.groups, split.fold_N)
    write_file(run.targets, lambda path: np.save(path, table.targets_TN, allow_pickle=False))
    if table.test_ids:
        form = SubmissionForm(
            target_names=table.target_names, test_ids=table.test_ids,
            ids=table.submission_ids, columns=table.submission_columns,
        )  # fmt: skip
        form.save(run.form)
    groups = None if split.groups is None else dict(sorted(Counter(split.groups).items()))
    write_json(run.data, {**report.to_dict(), "groups": groups, "fold_sizes": split.sizes()})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())
