"""Members of a run: finished trials with aligned out-of-fold predictions.

Shapes: M members, T outputs, N rows, K folds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.submission import read_sample, read_values
from search.data.folds import read_folds
from search.metrics import FittedMetric, Score, fold_scores, mean_score
from search.oof import read_oof
from search.run_folder import RunFolder, read_json
from spaces.errors import UserError
from spaces.task import CsvLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """What run.json tells the ensemble."""

    task: str
    metric: FittedMetric
    target_names: tuple[str, ...]
    layout: CsvLayout
    store_size: int  # pixels that images were decoded to; a model resizes to its own size

    @classmethod
    def read(cls, run: RunFolder) -> "RunFacts":
        """Raises UserError when run.json lacks what it needs."""
        data = read_json(run.run)
        needed = ("task", "metric", "target_names", "layout", "plan")
        missing = [name for name in needed if name not in data]
        if missing:
            raise UserError(f"{run.run} has no {', '.join(missing)}; it is damaged: restore it")
        return cls(
            task=str(data["task"]),
            metric=FittedMetric.from_dict(data["metric"]),
            target_names=tuple(data["target_names"]),
            layout=CsvLayout(**data["layout"]),
            store_size=int(data["plan"]["store_size"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A finished trial that may join an ensemble."""

    trial: int
    pred_TN: NDArray[np.float32]  # memory-mapped
    scores: tuple[Score, ...]  # (K,) of each fold
    meta: dict[str, Any]  # of the OOF store
    recipe: dict[str, Any]

    @property
    def score(self) -> float:
        """The trial's score: the unweighted mean over folds."""
        return mean_score(self.scores).value


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """A run's members, best first (equal scores: the lower trial number first)."""

    facts: RunFacts
    members: tuple[Member, ...]
    true_TN: NDArray[np.float32]
    fold_N: NDArray[np.int64]


def load_members(run: RunFolder) -> Pool:
    """All members of a run. Raises UserError with all faults when there is none, or when one is
    misaligned, incomplete or not finite."""
    facts = RunFacts.read(run)
    folds = read_folds(run.folds)
    fold_N = np.asarray(folds.fold, dtype=np.int64)
    true_TN = _targets(run.targets, (len(facts.target_names), len(fold_N)))
    members: list[Member] = []
    faults: list[str] = []
    for trial in run.members():
        try:
            pred_TN, meta = read_oof(run.oof(trial), folds, facts.target_names)
            recipe = _recipe(run.checkpoints(trial) / "recipe.json")
        except UserError as error:
            faults += error.faults
            continue
        scores = tuple(fold_scores(facts.metric, pred_TN, true_TN, fold_N))
        members.append(
            Member(trial=trial, pred_TN=pred_TN, scores=scores, meta=meta, recipe=recipe)
        )
    if faults:
        raise UserError(faults)
    if not members:
        raise UserError(
            f"{run.root} has no member: no trial has finished all its folds; "
            "resume the run with --resume, or give it more time"
        )
    members.sort(key=lambda member: (-member.score, member.trial))
    return Pool(facts=facts, members=tuple(members), true_TN=true_TN, fold_N=fold_N)


def score_submission(submission: Path, truth: Path, facts: RunFacts) -> Score:
    """Score of a submission against a CSV with the true values (a generated sample keeps one),
    by the run's metric. Rows are those of the truth."""
    _, ids = read_sample(truth)
    names = facts.target_names
    pred_TN, true_TN = (read_values(path, ids, names) for path in (submission, truth))
    return facts.metric.score(pred_TN, true_TN)


def _recipe(path: Path) -> dict[str, Any]:
    recipe = read_json(path).get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(f"{path} holds no recipe; restore it")
    return recipe


def _targets(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
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
