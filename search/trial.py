"""The Ray trainable: one recipe through its folds, in a warm worker.

A worker imports torch and opens the image store once; later trials reuse it (`reset_config`). One
`step` trains until there is something to decide: a rung, a fold's end, or some seconds of news.
"""

import json
import time
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from spaces.errors import UserError
from spaces.recipe import Recipe
from spaces.seeds import derive

NEWS_SECONDS = 5.0  # at the first epoch's end after this long a step reports, decision or not
CHECKPOINT_SECONDS = 20.0  # between epoch checkpoints
STORE_SHARE = 0.4  # of a worker's free GPU memory that the image store may take


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every worker of a run needs to know; plain data, sent once to each."""

    run: str  # the run's folder
    store: str  # the image store's folder
    task: str  # name or path of the task
    metric: Mapping[str, Any]  # FittedMetric.to_dict()
    seed: int
    threads: int
    gpus: float  # share of a GPU that the worker has
    weights_dir: str | None


class Worker:
    """Trains folds for the run; holds what is shared between trials. Needs no Ray."""

    def __init__(self, context: Context) -> None:
        import numpy as np
        import torch

        from search.data.batches import to_device
        from search.data.cache import load_store
        from search.data.folds import read_folds
        from search.metrics import FittedMetric
        from search.run_folder import RunFolder
        from spaces.registry import load_task

        torch.set_num_threads(context.threads)
        self.context = context
        self.run = RunFolder(Path(context.run))
        self.part = load_task(context.task).part
        self.metric = FittedMetric.from_dict(context.metric)
        self.fold_N = read_folds(self.run.folds).fold
        self.targets_TN = np.load(self.run.targets, mmap_mode="r")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        images_NHWC: Any = load_store(Path(context.store)).images_NHWC
        rows = len(self.fold_N)
        if self.device == "cuda":
            # Trials that share a GPU share its memory: what is free now may not be free later.
            budget = torch.cuda.mem_get_info()[0] * STORE_SHARE * min(1, context.gpus)
            images_NHWC = to_device(images_NHWC, self.device, int(budget))
        self.images_NHWC, self.test_images_NHWC = images_NHWC[:rows], images_NHWC[rows:]

    def reports(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Run a trial's remaining folds; yields a report whenever there is something to decide.

        The last report has an "end" when the trial cannot go on; errors become named end states.
        """
        from search.model.memory import OutOfMemory
        from search.train.fold import Diverged

        head = {"trial": config["trial"], "attempt": config["attempt"]}
        try:
            for fold in config["folds"]:
                for report in self._fold(config, fold):
                    yield {**head, **report}
        except Diverged as error:
            yield {**head, "points": [], "end": {"state": "diverged", "reason": str(error)}}
        except OutOfMemory as error:
            yield {**head, "points": [], "end": {"state": "out of memory", "reason": str(error)}}
        except UserError as error:  # a recipe that cannot be built, say
            yield {**head, "points": [], "end": {"state": "failed", "reason": str(error)}}
        except Exception:
            reason = traceback.format_exc()
            yield {**head, "points": [], "end": {"state": "failed", "reason": reason}}

    def _fold(self, config: dict[str, Any], fold: int) -> Generator[dict[str, Any]]:
        import numpy as np

        from search.oof import write_fold
        from search.train.fold import FoldJob, FoldTraining, save_fold

        number, attempt = config["trial"], config["attempt"]
        recipe = Recipe.from_dict(config["recipe"], self.part)
        valid_V = np.flatnonzero(self.fold_N == fold)
        work = self.run.work(number, attempt)
        training = FoldTraining(
            FoldJob(
                recipe=recipe,
                images_NHWC=self.images_NHWC,
                targets_TN=self.targets_TN,
                train_rows=np.flatnonzero(self.fold_N != fold),
                valid_rows=valid_V,
                test_images_NHWC=self.test_images_NHWC if len(self.test_images_NHWC) else None,
                seed=derive(self.context.seed, number, fold, recipe.seed),
                device=self.device,
                weights_dir=Path(self.context.weights_dir) if self.context.weights_dir else None,
            )
        )
        checkpoint = work / f"epoch-{fold}.safetensors"
        past: list[dict[str, Any]] = []  # this fold's points, reported or not
        for earlier in range(attempt - 1, 0, -1):
            left = self.run.work(number, earlier) / checkpoint.name
            if left.exists():
                past = json.loads(training.restore(left))
                break
        # A point that a dead driver may not have journaled is reported again.
        news = list(past)
        rungs = set(config["rung_epochs"]) if fold == config["first_fold"] else set()
        reported = saved = time.monotonic()
        true_TV = np.asarray(self.targets_TN[:, valid_V])
        while not training.done:
            result = training.epoch()
            assert result.pred_TV is not None
            score = self.metric.score(result.pred_TV, true_TV)
            point = {
                "fold": fold,
                "epoch": result.epoch,
                "loss": result.loss,
                "score": score.value,
                "parts": score.parts,
                "seconds": result.seconds,
                "images_per_second": result.images_per_second,
                "micro_batch": result.micro_batch,
                "peak_memory": result.peak_memory_bytes,
            }
            past.append(point)
            news.append(point)
            now = time.monotonic()
            if training.done:
                break
            if now - saved > CHECKPOINT_SECONDS:
                training.save(checkpoint, json.dumps(past))
                saved = now
            if result.epoch in rungs or now - reported > NEWS_SECONDS:
                yield {"points": news}
                news, reported = [], time.monotonic()
        trained = time.monotonic()
        finished = training.finish()
        save_fold(work / f"fold-{fold}.safetensors", finished, recipe)
        write_fold(work, fold, finished.pred_TV, finished.test_pred_TS)
        score = self.metric.score(finished.pred_TV, true_TV)
        yield {
            "points": news,
            "fold": {
                "fold": fold,
                "score": score.value,
                "parts": score.parts,
                "params": finished.params,
                "predict_ms": finished.predict_ms,
                "seconds": time.monotonic() - trained,  # of what came after the last epoch
            },
        }


class TrialTrainable(tune.Trainable):
    """A worker behind Ray Tune's class interface, reused from trial to trial."""

    def setup(self, config: dict[str, Any], context: Context | None = None) -> None:
        assert context is not None
        self._worker = Worker(context)
        self._reports = self._worker.reports(config)

    def step(self) -> dict[str, Any]:
        # As text: Tune flattens nested dictionaries on their way to the scheduler.
        return {"report": json.dumps(next(self._reports))}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        import gc

        import torch

        self._reports.close()
        self._reports = self._worker.reports(new_config)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True

    def cleanup(self) -> None:
        self._reports.close()
