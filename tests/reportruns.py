"""Runs for the report, made without training: journals as a director would have written them.

Shapes: T outputs, N rows, K folds.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ensemble.choose import choose
from ensemble.members import load_members
from ensemble.submission import SubmissionForm
from search.data.cache import open_store
from search.data.cleaning import NOTHING
from search.data.folds import write_folds
from search.journal import FORMAT
from search.metrics import metric_of
from search.oof import save_rows, write_oof
from search.run_folder import RunFolder, write_json
from search.trials import FINISHED, PRUNED, RUNNING
from spaces.layout import Layout
from spaces.recipe import Augment, Recipe
from tests.workers import plan_of

METRICS = {
    "regression": "pearson", "binary": "khd", "multilabel": "auroc", "multiclass": "log_loss",
}  # fmt: skip
RUNGS = [{"folds": 0, "epoch": 2}, {"folds": 1, "epoch": 0}]
TESTS, SIZE, START = 6, 16, 1.8e9
BACKBONES = ("test_resnet", "test_efficientnet", "test_vit")


class MadeRun:
    """A run's folder that gets what a test asks for; nothing is there that was not added."""

    def __init__(
        self,
        root: Path,
        task_type: str = "regression",
        *,
        rows: int = 48,
        outputs: int = 3,
        folds: int = 3,
        ids: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        **about: Any,
    ) -> None:
        self.run, self.task_type, self.k = RunFolder(root / "run"), task_type, folds
        self.rng = np.random.default_rng(0)
        self.ids = list(ids) if ids else [f"R{i:03d}" for i in range(rows)]
        outputs = 1 if task_type == "binary" else outputs
        self.names = list(names) if names else [f"T{t}" for t in range(outputs)]
        self.fold_N = np.arange(len(self.ids)) % folds
        self.folds = write_folds(self.run.folds, self.ids, groups, self.fold_N)
        self.true_TN = self._truth()
        np.save(self.run.targets, self.true_TN)
        metric = metric_of(METRICS[task_type], {}, task_type).fit(self.true_TN)
        self.about: dict[str, Any] = {
            "task": "made", "task_type": task_type, "metric": metric.to_dict(),
            "target_names": self.names, "fold_order": list(range(folds)), "seed": 0,
            "layout": dataclasses.asdict(Layout()), "clean": NOTHING, "data": "data",
            "command": ["python", "-m", "search.run", "made"], "groups_asked": "none",
            "plan": {**plan_of(workers=2, trials=4).to_dict(), "store_size": SIZE, "rungs": RUNGS,
                     "keep": [0.33, 0.5], "reasons": ["epochs 4: few"]},
            "baselines": [{"name": "mean_profile", "fold_scores": [0.1] * folds,
                           "fold_parts": [{}] * folds, "pooled": 0.1, "seconds": 0.1}],
            "resources": {"cpus": 2, "gpus": 0, "memory_bytes": 2**33},
            **about,
        }  # fmt: skip
        write_json(self.run.run, self.about)
        self._lines: list[dict[str, Any]] = []
        self._now = START
        self.trials = 0
        self.event("session", task_digest="x")

    def _truth(self) -> np.ndarray:
        shape = (len(self.names), len(self.ids))
        self.signal_TN = self.rng.normal(size=shape)
        if self.task_type == "regression":
            return np.float32(3 + self.signal_TN)
        noisy_TN = self.signal_TN + 0.5 * self.rng.normal(size=shape)
        if self.task_type == "multiclass":
            return np.float32(np.arange(shape[0])[:, None] == noisy_TN.argmax(axis=0))
        return np.float32(noisy_TN > 0)

    def event(self, kind: str, trial: int = -1, attempt: int = -1, **data: Any) -> None:
        self._now += 1
        self._lines.append({
            "format": FORMAT, "seq": len(self._lines), "time": self._now, "kind": kind,
            "trial": trial, "attempt": attempt, "data": data,
        })  # fmt: skip

    def write_journal(self) -> RunFolder:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self.run.journal.write_text(text)
        return self.run

    def add(
        self, state: str = FINISHED, score: float = 0.5, *, epochs: int = 4, reason: str = "",
        oof: bool = True, **recipe: Any,
    ) -> int:  # fmt: skip
        """A trial that ended so, or is still running; its number."""
        number, self.trials = self.trials, self.trials + 1
        given = {
            "backbone": BACKBONES[number % 3], "image_size": SIZE, "epochs": epochs,
            "lr": float(10 ** self.rng.uniform(-4, -2)), "drop": float(self.rng.uniform(0, 0.5)),
            "augment": {"flip": True, "rot90": True, "brightness": 0.1}, "tta": 1,
        } | recipe  # fmt: skip
        # Not checked by Recipe where a test wants another backbone's name.
        made = Recipe(**{**given, "augment": Augment(**given["augment"])})
        self.event("ask", number, params={}, recipe=made.to_dict(), source="first")
        self.event("attempt", number, 1, folds=list(range(self.k)))
        whole = state == FINISHED
        for fold in range(self.k if whole else 1):
            last = epochs if whole else 2
            self.event("epochs", number, 1, points=[
                {"fold": fold, "epoch": e, "loss": 1 / e, "score": score - 0.1 / e, "parts": {},
                 "seconds": 1.0, "batch": 8, "micro_batch": 8, "peak_memory": 10**8}
                for e in range(1, last + 1)
            ])  # fmt: skip
            if fold == 0:
                self._at_rung(number, "0+2", score, whole)
            if whole:
                self.event(
                    "fold", number, 1, fold=fold, score=score, parts={}, params=1000 + number,
                    predict_ms=1.0 + number, seconds=0.5,
                )  # fmt: skip
                if fold == 0:
                    self._at_rung(number, "1+0", score, True)
        if whole:
            self._finish(number, made, score, oof)
        elif state != RUNNING:
            self.event("end", number, 1, state=state, reason=reason or f"because it was {state}")
        return number

    def _at_rung(self, trial: int, rung: str, score: float, passes: bool) -> None:
        self.event("rung", trial, rung=rung, value=score, noise=0.01)
        self.event("decision", trial, 1, rung=rung, verdict="goes on" if passes else "cut",
                   cut=0.4, peers=4, reason=f"at {rung}: {score}")  # fmt: skip

    def _finish(self, number: int, recipe: Recipe, score: float, oof: bool) -> None:
        if oof:
            noise_TN = self.rng.normal(size=self.true_TN.shape)
            pred_TN = self.predictions(self.signal_TN + noise_TN)
            write_json(self.run.checkpoints(number) / "recipe.json", {"recipe": recipe.to_dict()})
            write_oof(self.run.oof(number), pred_TN, folds=self.folds, target_names=self.names,
                      recipe_digest=recipe.digest, extra={})  # fmt: skip
            test_TN = self.predictions(self.rng.normal(size=(len(self.names), TESTS)))
            save_rows(self.run.oof(number) / "test.npy", test_TN)
        scores = [score + 0.01 * fold for fold in range(self.k)]
        self.event("end", number, 1, state=FINISHED, reason="all folds done", pooled=score,
                   fold_scores=scores, fold_parts=[{}] * self.k)  # fmt: skip

    def predictions(self, raw_TN: np.ndarray) -> np.ndarray:
        if self.task_type == "regression":
            return np.float32(3 + raw_TN)
        if self.task_type == "multiclass":
            return np.float32(np.exp(raw_TN) / np.exp(raw_TN).sum(axis=0))
        return np.float32(1 / (1 + np.exp(-raw_TN)))

    def add_images(self, root: Path, views: int = 1, files_each: int = 1) -> None:
        """Tiles of noise, train rows first, and the store of them; of several files an image has
        as many channels."""
        root.mkdir(parents=True)
        files = []
        for i in range(views * (len(self.ids) + TESTS)):
            files.append(tuple(f"{i}_{c}.png" for c in range(files_each)))
            for name in files[-1]:
                shape = (SIZE, SIZE, 3) if files_each == 1 else (SIZE, SIZE)
                pixels = self.rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / name)
        store = open_store(root, files, SIZE, root / "cache")
        self.about["store"] = str(store.folder)
        write_json(self.run.run, self.about)
        tests = tuple(f"S{i}" for i in range(TESTS))
        SubmissionForm(target_names=tuple(self.names), test_ids=tests, ids=tests,
                       columns=("ID", *self.names)).save(self.run.form)  # fmt: skip

    def add_data(self, **more: Any) -> None:
        """data.json as the check of the data leaves it."""
        labels = {} if self.task_type == "regression" else dict.fromkeys(self.names, [1] * self.k)
        write_json(self.run.data, {
            "root": "data", "rows": {"train": len(self.ids), "test": TESTS}, "views": 1,
            "targets": {"count": len(self.names), "constant": [], "lowest": 0.0, "highest": 1.0},
            "images": {"count": len(self.ids), "sizes": {"16x16": 9}, "modes": {"RGB": 9},
                       "formats": {"PNG": 9}, "borders": [], "captions": []},
            "duplicates": {"files": [], "train_and_test": []},
            "near_duplicates": {"counts": {"train": 0, "train_and_test": 0, "conflicting": 0}},
            "told_apart": {"train_or_test": {"auc": 0.6, "meaning": "test images look alike"}},
            "quarantined": [], "groups": None, "clusters": [],
            "fold_sizes": np.bincount(self.fold_N).tolist(), "labels_per_fold": labels,
            "warnings": [], "pictures": [], **more,
        })  # fmt: skip

    def add_ensemble(self) -> None:
        """ensemble.json as ensemble.build writes it."""
        report = choose(load_members(self.run)).report
        write_json(self.run.ensemble / "ensemble.json", {**report, "notes": []})


def full_run(root: Path, task_type: str = "regression", **how: Any) -> MadeRun:
    """A run with everything: trials of several ends, images, data report, ensemble."""
    made = MadeRun(root, task_type, **how)
    made.add_images(root / "images")
    made.add_data()
    for score in (0.5, 0.7, 0.6):
        made.add(score=score)
    made.add(PRUNED, 0.2)
    made.add_ensemble()
    made.write_journal()
    return made
