"""Members: finished trials, or anyone's predictions, with aligned out-of-fold predictions.

Shapes: M members, T outputs, N rows, K folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble.limits import Cost
from ensemble.submission import SubmissionForm, read_truth
from search.metrics import FittedMetric, Score, check_predictions, check_truth, metric_of
from search.oof import read_oof
from search.run_folder import RunFolder, read_json
from spaces.backbones import series
from spaces.errors import UserError
from spaces.layout import Layout

if TYPE_CHECKING:
    from ensemble.files import PlainFiles
    from search.data.folds import Folds


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """What run.json tells the ensemble."""

    task: str
    task_type: str
    metric: FittedMetric
    target_names: tuple[str, ...]
    layout: Layout
    store_size: int  # pixels that images were decoded to; a model resizes to its own size
    clean: dict[str, bool]  # what was done to images before: search.data.borders

    @classmethod
    def read(cls, run: RunFolder) -> "RunFacts":
        """Raises UserError when run.json lacks what it needs."""
        data = read_json(run.run)
        needed = ("task", "task_type", "metric", "target_names", "layout", "clean", "plan")
        missing = [name for name in needed if name not in data]
        if missing:
            raise UserError(f"{run.run} has no {', '.join(missing)}; it is damaged: restore it")
        return cls(
            task=str(data["task"]),
            task_type=str(data["task_type"]),
            metric=FittedMetric.from_dict(data["metric"]),
            target_names=tuple(data["target_names"]),
            layout=Layout.from_dict(data["layout"]),
            store_size=int(data["plan"]["store_size"]),
            clean=dict(data["clean"]),
        )


class Part(NamedTuple):
    """Fold models that a member predicts with."""

    folder: Path  # with fold-K.safetensors
    recipe: dict[str, Any]
    decode_size: int  # pixels that images are decoded to


class Origin(NamedTuple):
    """The trial behind a member."""

    run: RunFolder
    trial: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """Out-of-fold predictions that may join an ensemble."""

    name: str  # the trial; RUN/TRIAL when runs are joined; the file's stem
    pred_TN: NDArray[np.float32]  # memory-mapped where it can be
    cost: Cost
    parts: tuple[Part, ...] = ()  # none: predictions without models; several: a feature head
    layer: Path | None = None  # of a feature head: folder with its layers, fold-K.safetensors
    oof_folder: Path | None = None  # with pred.npy, and test.npy where test rows were predicted
    origin: Origin | None = None  # None: not a trial
    note: str = ""  # how it was made, when it is not a trial


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Aligned members of one task, and the truth they are scored by."""

    task: str
    task_type: str
    metric: FittedMetric
    target_names: tuple[str, ...]
    members: tuple[Member, ...]
    true_TN: NDArray[np.float32]
    fold_N: NDArray[np.int64]
    group_N: NDArray[np.int64] | None  # a code per row; None when rows were not grouped
    facts: RunFacts | None = None  # of the (first) run

    @property
    def folds(self) -> int:
        return int(self.fold_N.max()) + 1


def load_members(*runs: RunFolder) -> Pool:
    """All members of one run, or of several runs of one task with the same folds.

    Raises UserError with all faults when there is none, when one is misaligned, incomplete or not
    finite, and when the runs cannot be joined.
    """
    from search.data.folds import read_folds

    facts = [RunFacts.read(run) for run in runs]
    folds = [read_folds(run.folds) for run in runs]
    _refuse_strangers(runs, facts, folds)
    first, fold_N = facts[0], np.asarray(folds[0].fold, dtype=np.int64)
    shape = (len(first.target_names), len(fold_N))
    true_TN, *others = [read_targets(run.targets, shape) for run in runs]
    for run, other_TN in zip(runs[1:], others, strict=True):
        if not np.array_equal(true_TN, other_TN):
            raise UserError(
                f"{run.root} has other target values than {runs[0].root} for the same rows; only "
                "runs on the same data can be joined"
            )
    labels = _labels(runs)
    members: list[Member] = []
    faults: list[str] = []
    for run, label, fact in zip(runs, labels, facts, strict=True):
        for trial in run.members():
            try:
                members.append(_member(run, trial, label, fact, folds[0]))
            except UserError as error:
                faults += error.faults
    if faults:
        raise UserError(faults)
    if not members:
        names = " and ".join(str(run.root) for run in runs)
        if lost := sum(len(run.without_models()) for run in runs):
            raise UserError(
                f"{names} has no member: {lost} trials have finished all their folds, but their "
                "checkpoints in RUN/checkpoints are gone; restore them, or add trials"
            )
        raise UserError(
            f"{names} has no member: no trial has finished all its folds; "
            "resume the run with --resume, or give it more time"
        )
    return Pool(
        task=first.task,
        task_type=first.task_type,
        metric=first.metric,
        target_names=first.target_names,
        members=tuple(members),
        true_TN=true_TN,
        fold_N=fold_N,
        group_N=folds[0].group_N,
        facts=first,
    )


def pool_of_files(files: "PlainFiles", metric_name: str, task_type: str) -> Pool:
    """Members from plain files, scored by a metric of that name.

    Raises UserError with all faults: a metric that cannot score the task type, values outside
    what it takes, folds in which it is undefined.
    """
    fitted = metric_of(metric_name, {}, task_type).fit(files.true_TN)
    faults = check_truth(fitted, files.true_TN, files.fold_N, files.target_names)
    for name, pred_TN in zip(files.names, files.preds, strict=True):
        faults += check_predictions(fitted, pred_TN, name)
    if faults:
        raise UserError(faults)
    members = tuple(
        Member(name=name, pred_TN=pred_TN, cost=Cost(family=name))
        for name, pred_TN in zip(files.names, files.preds, strict=True)
    )
    return Pool(
        task="files",
        task_type=task_type,
        metric=fitted,
        target_names=files.target_names,
        members=members,
        true_TN=files.true_TN,
        fold_N=files.fold_N,
        group_N=files.group_N,
    )


def score_truth(
    pred_TN: NDArray[Any],
    test_ids: Sequence[str],
    truth: Path,
    facts: RunFacts,
    thresholds_T: NDArray[Any] | None = None,
) -> Score:
    """Score of test predictions against a CSV with the true values (a generated sample keeps one),
    by the run's metric. Rows are those of the truth."""
    ids, true_TN = read_truth(truth, facts.target_names, facts.layout.label_column)
    row_of = {name: row for row, name in enumerate(test_ids)}
    if lost := [name for name in ids if name not in row_of]:
        raise UserError(f"{truth} names rows that are no test rows: {', '.join(lost[:5])}")
    decides = facts.metric.fits_thresholds
    return facts.metric.score(
        pred_TN[:, [row_of[name] for name in ids]], true_TN, thresholds_T if decides else None
    )


def _member(run: RunFolder, trial: int, label: str, facts: RunFacts, folds: "Folds") -> Member:
    pred_TN, _ = read_oof(run.oof(trial), folds, facts.target_names)
    kept = read_json(run.checkpoints(trial) / "recipe.json")
    recipe = kept.get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(f"{run.checkpoints(trial) / 'recipe.json'} holds no recipe; restore it")
    models = run.checkpoints(trial)
    return Member(
        name=f"{label}{trial}",
        pred_TN=pred_TN,
        cost=Cost(
            family=series(str(recipe["backbone"])),
            mb=sum(path.stat().st_size for path in models.glob("fold-*.safetensors")) / 2**20,
            ms=kept.get("predict_ms"),
        ),
        parts=(Part(models, recipe, facts.store_size),),
        oof_folder=run.oof(trial),
        origin=Origin(run, trial),
    )


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """What stands before a trial's number in a member's name: nothing for a run alone."""
    if len(runs) == 1:
        return [""]
    names = [run.root.resolve().name for run in runs]
    return [
        f"{name}/" if names.count(name) == 1 else f"{run.root}/"
        for run, name in zip(runs, names, strict=True)
    ]


def _refuse_strangers(
    runs: Sequence[RunFolder], facts: Sequence[RunFacts], folds: "Sequence[Folds]"
) -> None:
    """Raises UserError naming what differs from the first run, of everything that must agree."""
    faults = []
    for run, fact, fold in zip(runs[1:], facts[1:], folds[1:], strict=True):
        differences = {
            "task": (fact.task, facts[0].task),
            "metric": (fact.metric, facts[0].metric),
            "task type": (fact.task_type, facts[0].task_type),
            "targets": (fact.target_names, facts[0].target_names),
            "rows": (fold.ids, folds[0].ids),
            "folds": (fold.digest, folds[0].digest),
        }
        other = [what for what, (here, there) in differences.items() if here != there]
        if run.form.is_file() and runs[0].form.is_file():
            tests = [SubmissionForm.load(r.form).test_ids for r in (run, runs[0])]
            other += ["test rows"] if tests[0] != tests[1] else []
        if other:
            faults.append(
                f"{run.root} has other {', '.join(other)} than {runs[0].root}; only runs that "
                "agree in all of them can be joined: search with the same data, --groups, "
                "--folds and --seed"
            )
    if faults:
        raise UserError(faults)


def read_targets(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A run's target values, on the disk. Raises UserError when they are damaged or not (T, N)."""
    try:
        true_TN = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not readable ({error}); restore it") from None
    if true_TN.shape != shape:
        raise UserError(
            f"{path} has shape {true_TN.shape}; folds.parquet and run.json ask for {shape}: "
            "they are of different runs, restore them"
        )
    return true_TN
