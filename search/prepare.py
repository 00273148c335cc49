"""From a command line to a run that can start: data checked, folds made, plan decided."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cluster import cluster_resources, connect, local_resources
from search.cluster import start as start_ray
from search.data.remote import Place, is_url
from search.download import local_folder
from search.options import task_options
from search.pictures import draw
from search.plan import (
    Facts,
    Resources,
    Wish,
    check_gpus,
    check_wish,
    make_plan,
    plan_images,
    share_out,
)
from search.policy.priors import PriorRun, identity
from search.run_folder import RunFolder, write_file, write_json, write_text
from search.setup import Setup, save
from search.terminal import progress_bar
from search.warm_start import notes, read_priors
from search.warm_start import save as save_priors
from spaces.errors import UserError
from spaces.means import Means
from spaces.registry import load_task
from spaces.task import Task

if TYPE_CHECKING:
    import numpy as np

    from search.data.report import DataReport
    from search.metrics import FittedMetric

Say = Callable[[str], None]
ROOM = 64 * 2**20  # bytes of a run's folder beside its predictions
MEMBERS = 20  # predictions of this many members should fit


def prepare(args: argparse.Namespace, say: Say) -> Setup | None:
    """Check, split, plan and decode, then write the run's folder. None for --dry-run, which writes
    nothing but the cached images. Ray is started early: its processes import beside all that.

    Raises UserError with all faults of what could be looked at together.
    """
    import numpy as np

    from search.data.cache import default_cache, open_store
    from search.data.cleaning import cleaner
    from search.data.source import resolve_data, sample_notice
    from search.metrics import metric_of

    # What costs nothing to check comes first: a typing error is answered at once.
    options = task_options(args)
    task = load_task(args.task, options)
    metric_of(task.metric, task.metric_args, task.task_type)
    wish = wish_of(args)
    url = args.out if is_url(args.out) else None
    out = Path(args.out or f"runs/{task.name}-{time.strftime('%m%d-%H%M%S')}")
    if url:
        out = local_folder(url)
    priors = _check_command_line(args, wish, out)
    cache = Path(args.cache).expanduser() if args.cache else default_cache()
    with progress_bar("fetching the data") as bar:
        data = resolve_data(task, args.data, cache, args.seed, bar)
    if args.data is None:
        say(sample_notice(task, data))
    elif is_url(args.data):
        say(f"data: {args.data}, copied to {data}")
    offered = {*task.backbones(True), *task.backbones(False)}
    if other := [name for name in wish.backbones if name not in offered]:
        _check_backbones(other)
    resources = _resources(args.address)
    if wish.gpus_per_trial:
        check_gpus(wish, resources, local_resources().gpus)
    if args.address is None and not args.dry_run and wish.gpus_per_trial != "auto":
        workers, cpus, _ = share_out(wish, resources)
        start_ray(resources, workers, cpus)
    backbones = wish.backbones or task.backbones(resources.gpu)

    say("checking the data")
    report = _inspect(args, task, data, out, cache)
    for warning in report.warnings:
        say(f"warning: {warning}")
    _say_groups(report, args.groups, say)
    table = report.table
    initial: dict[str, dict[str, str]] = {}
    if args.init_from:
        from search.model.initial import plan_initial

        start = plan_initial(args.init_from, backbones, table.ids, report.fold_N)
        say(f"weights: {start.sentence}")
        backbones = tuple(name for name in backbones if name in start.files)
        initial = {
            name: {str(k): str(start.file_for(name, k)) for k in np.unique(report.fold_N).tolist()}
            for name in backbones
        }
    weights, backbones = _weights("random" if initial else args.weights, backbones, say)
    if not initial:
        say(f"weights: {weights['reason']}")
    native = _native_size(report.images.sizes)
    images = plan_images(wish, native, backbones, resources.gpu)
    views = f" of {table.views} views" if table.views > 1 else ""
    say(
        f"{len(table.ids)} train and {len(table.test_ids)} test rows{views}, "
        f"{len(table.target_names)} targets"
    )
    fold_sizes = np.bincount(report.fold_N).tolist()
    facts = Facts(
        rows=len(table.ids), folds=len(fold_sizes), backbones=tuple(backbones), views=table.views,
    )  # fmt: skip
    means = Means(
        gpu=resources.gpu, pretrained=weights["pretrained"] or bool(initial),
        image_sizes=images.sizes, backbones=tuple(backbones), epochs=1,
        train_rows=len(table.ids) - max(fold_sizes), views=table.views,
        channels=task.layout.channel_count, outputs=len(table.target_names),
    )  # fmt: skip
    task_name = task.name if args.task == task.name else _absolute(args.task)
    packing = None
    if wish.gpus_per_trial == "auto":
        from search.footprint import Shape, packing_of

        say("measuring how much GPU memory trials take")
        shape = Shape(
            task_name=task_name, task_options=options, side=images.store_size,
            channels=task.layout.channel_count, views=table.views, outputs=len(table.target_names),
        )  # fmt: skip
        packing = packing_of(
            task, shape, means, resources, images=len(table.files) + len(table.test_files),
            cpus_per_trial=wish.cpus_per_trial or 1,
        )  # fmt: skip
    plan = make_plan(wish, facts, images, resources, packing)
    means = replace(means, backbones=plan.backbones, epochs=plan.epochs)
    for reason in plan.reasons:
        say(f"plan: {reason}")
    clean = {"crop_borders": args.crop_borders, "mask_captions": args.mask_captions}
    act, clean_key = cleaner(clean)
    with progress_bar("decoding images") as bar:
        store = open_store(
            data, [*table.files, *table.test_files], images.store_size, cache, progress=bar,
            clean=act, clean_key=clean_key,
        )  # fmt: skip
    train_NHWC = store.images_NHWC[: len(table.files)]
    metric, baselines, order = _baselines(task, report, train_NHWC, say)
    setup = Setup(
        run=RunFolder(out), task_name=task_name, task_options=options,
        data=data, cache=cache, groups_asked=args.groups, plan=plan, means=means,
        resources=resources, metric=metric.to_dict(), target_names=table.target_names,
        store=store.folder.resolve(), fold_order=tuple(order), baselines=tuple(baselines),
        weights=weights, seed=args.seed, address=args.address, keep_gb=args.keep_gb,
        clean=clean, initial=initial,
    )  # fmt: skip
    for values in setup.task.space(means).first:  # a fault in the task shows here, not later
        setup.task.space(means).fixed(values)
    own = identity(setup.task_name, setup.metric, setup.target_names)
    for note in notes(priors, setup.task.space(means), own):
        say(note)
    if args.dry_run:
        return None
    if url:
        write_text(setup.run.url, url)
    _write(setup, report)
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
        compile=args.compile,
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
    local = args.data is not None and not is_url(args.data)
    if local and not Path(args.data).expanduser().is_dir():
        faults.append(f"--data {args.data} is no folder; give the folder that holds the data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        faults.append(
            f"--out {out} exists and is not empty; give another folder, or --resume {out} to go on"
        )
    if is_url(args.out):
        try:
            if Place(args.out).files():
                faults.append(
                    f"--out {args.out} is not empty; give another URL, or --resume {args.out} to "
                    "go on"
                )
        except UserError as error:
            faults += [f"--out {fault}" for fault in error.faults]
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


def _check_backbones(names: Sequence[str]) -> None:
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
    if address is None:
        return local_resources()
    with connect(address):
        return cluster_resources()


def _inspect(
    args: argparse.Namespace, task: Task, data: Path, out: Path, cache: Path
) -> "DataReport":
    from search.data.check import inspect

    with progress_bar("checking images") as bar:
        return inspect(
            task, data, groups=args.groups, folds=args.folds, seed=args.seed,
            skip_bad=args.skip_bad, group_duplicates=args.group_duplicates, progress=bar,
            cache=cache, needs=lambda table: [
                (out, ROOM + MEMBERS * table.targets_TN.nbytes, "the run's folder")
            ],
        )  # fmt: skip


def _say_groups(report: "DataReport", asked: str, say: Say) -> None:
    """What --groups auto found."""
    if report.auto is None:
        return
    if report.auto.labels is None:
        reason = report.auto.reason.removeprefix("no groups: ")
        say(f"groups: none found ({reason}); rows are folded one by one")
    else:
        say(f"groups: {report.auto.reason}; folds follow them (--groups none to switch off)")


def _weights(
    mode: str, backbones: Sequence[str], say: Say
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where pretrained weights come from, and the backbones that can be had."""
    from search.model.weights import probe_weights, reachable_backbones

    source = probe_weights(mode, backbones)
    kept, skipped = reachable_backbones(backbones, source)
    for line in skipped:
        say(line)
    if not kept:
        raise UserError("none of the backbones can be had; name others with --backbone")
    return vars(source), tuple(kept)


def _native_size(sizes: Mapping[str, int]) -> int:
    """The shorter side in pixels of the commonest size ("64x48", commonest first)."""
    return min(map(int, next(iter(sizes)).split("x")))


def _baselines(
    task: Task, report: "DataReport", train_NHWC: "np.ndarray", say: Say
) -> tuple["FittedMetric", list[dict[str, Any]], list[int]]:
    """The metric, the trivial baselines' rows for the leaderboard, and the order in which folds are
    visited, which their scores decide. Raises UserError where the metric cannot score a fold."""
    from search.baselines import BASELINES, fold_order
    from search.metrics import check_truth, fold_scores, metric_of, trial_score

    table, fold_N = report.table, report.fold_N
    targets_TN = table.targets_TN
    metric = metric_of(task.metric, task.metric_args, task.task_type).fit(targets_TN)
    if faults := check_truth(metric, targets_TN, fold_N, table.target_names):
        raise UserError(faults)
    rows: list[dict[str, Any]] = []
    for name, baseline in BASELINES.items():
        started = time.monotonic()
        oof_TN = baseline.oof(train_NHWC, targets_TN, fold_N, task.task_type, table.views)
        scores = fold_scores(metric, oof_TN, targets_TN, fold_N)
        say(f"baseline {name}: {trial_score(scores):.4f} (mean over {len(scores)} folds)")
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


def _write(setup: Setup, report: "DataReport") -> None:
    """The run's files but run.json."""
    import numpy as np

    from ensemble.submission import form_of
    from search.data.decode import size_of
    from search.data.folds import write_folds

    table, run, task = report.table, setup.run, setup.task
    write_folds(run.folds, table.ids, report.groups, report.fold_N)
    write_file(run.targets, lambda path: np.save(path, table.targets_TN, allow_pickle=False))
    if table.test_ids:
        form = form_of(
            task.layout, task.task_type, target_names=table.target_names, test_ids=table.test_ids,
            ids=table.submission_ids, columns=table.submission_columns,
            sizes=lambda: [
                size_of(table.root / image[0]) for image in table.test_files[:: table.views]
            ],
        )  # fmt: skip
        form.save(run.form)
    write_json(run.data, {**report.to_dict(), "pictures": draw(report, run.pictures)})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())
