"""The Ray trainable: one recipe through its folds, in a warm worker.

A worker imports torch and opens the image store once; later trials reuse it (`reset_config`). One
`step` trains until there is something to decide: a rung, a fold's end, or some seconds of news.
"""

import gc
import json
import logging
import time
import traceback
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.util import get_node_ip_address

from search import trials as states
from search.exchange import Exchange, Keeps, Unreachable
from search.policy.failures import disk_full
from search.policy.packing import store_budget
from spaces.errors import UserError
from spaces.recipe import Recipe
from spaces.seeds import derive

if TYPE_CHECKING:
    from search.train.job import FoldJob, Training
    from search.train.parallel import Rank

log = logging.getLogger(__name__)
NEWS_SECONDS = 5.0  # at the first epoch's end after this long a step reports, decision or not
CHECKPOINT_SECONDS = 20.0  # between epoch checkpoints,
CHECKPOINT_SHARE = 0.05  # and longer where writing and sending one takes more than this of the time


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every worker of a run needs to know, sent once to each. Paths are the driver's."""

    run: str  # the run's folder
    mark: str = ""  # the word in it by which a host knows that it sees this folder
    keeper: Keeps | None = None  # hands files to hosts that do not; None: all see it
    store: str  # the image store's folder
    cleaned: Mapping[str, bool]  # what was done to its images
    cache: str  # the cache folder, for features of frozen networks
    task: str  # name or path of the task
    task_options: Mapping[str, Any]  # what made it, where it was made of options
    target_names: tuple[str, ...]
    initial: Mapping[str, Mapping[str, str]]  # backbone -> fold -> checkpoint to start from
    metric: Mapping[str, Any]  # FittedMetric.to_dict()
    seed: int
    threads: int
    gpus: float  # share of a GPU that the worker has
    weights_dir: str | None  # the same on every host
    compile: bool = False  # training steps, by torch.compile

    def given(self) -> tuple[str, list[str]]:
        """The run's folder, and what else of the driver's host workers may read."""
        starts = (path for files in self.initial.values() for path in files.values())
        return self.run, [self.store, *starts]


class Worker:
    """Trains folds for the run; holds what is shared between trials. Needs no Ray."""

    def __init__(self, context: Context, host: str = "") -> None:
        """`host` names this machine in the journal. Raises UserError where this host lacks what a
        worker needs."""
        import numpy as np
        import torch
        from threadpoolctl import threadpool_limits

        from search.data.batches import to_device
        from search.data.folds import read_folds
        from search.data.host_store import host_store
        from search.machine import machine_name
        from search.metrics import FittedMetric
        from search.train.allocator import keep_freed_memory
        from spaces.registry import load_task

        keep_freed_memory()
        torch.set_num_threads(context.threads)
        threadpool_limits(context.threads)  # of numpy's, which may have been imported before
        self.context = context
        self.files = Exchange(context.run, context.mark, context.keeper)
        self.run = self.files.run
        for path in (self.run.folds, self.run.targets):
            self.files.fetch(path)
        self.task = load_task(_task_file(context.task, self.files), context.task_options)
        if context.weights_dir and not Path(context.weights_dir).is_dir():
            raise UserError(
                f"the folder of weights {context.weights_dir} is not on {host or 'this host'}; put "
                "it on every host (file_mounts in cluster.yaml), or on storage that all see"
            )
        self.metric = FittedMetric.from_dict(context.metric)
        folds = read_folds(self.run.folds)
        self.fold_N, self.groups_N = folds.fold, folds.group_N
        self.targets_TN = np.load(self.run.targets, mmap_mode="r")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # What a report begins with. Hosts of one kind need the same time for an epoch.
        self._where = {"host": host, "machine": machine_name(self.device)}
        store = host_store(Path(context.store), context.cleaned, self.files.receive)
        images_NHWC: Any = store.images_NHWC
        if self.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            budget = store_budget(total, free, context.gpus)
            images_NHWC = to_device(images_NHWC, self.device, budget)
        images = len(self.fold_N) * self.task.layout.view_count
        self.images_NHWC, self.test_images_NHWC = images_NHWC[:images], images_NHWC[images:]

    def reports(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Run the folds that a trial's lease names; yields a report whenever there is something to
        decide.

        The last report has an "end" when the trial cannot go on, or "full" when nothing is wrong
        with it but the disk is full; errors become named end states. Raises Unreachable when
        the driver's host is.
        """
        head = {"trial": config["trial"], "attempt": config["attempt"], **self._where, "points": []}
        fits = config.get("micro_batch")
        try:
            for fold in config["folds"]:
                for report in self._fold(config, fold, fits):
                    yield {**head, **report}
                    halved = [p for p in report["points"] if p["micro_batch"] < p["batch"]]
                    fits = halved[-1]["micro_batch"] if halved else fits
            return
        except Unreachable:  # there is nobody to report to
            raise
        except Exception as error:
            last = _last_words(error)
        # Outside the except clause: the traceback holds the failed attempt's tensors.
        yield {**head, **last}

    def _fold(
        self, config: dict[str, Any], fold: int, fits: int | None
    ) -> Generator[dict[str, Any]]:
        import numpy as np

        from search.oof import write_fold
        from search.train.fold import save_fold

        work = self.run.work(config["trial"], config["attempt"])
        checkpoint = self.run.epoch(config["trial"], config["attempt"], fold)
        training = self._training(config, fold, fits)
        past = self._restore(training, config, fold)  # points, reported or not
        # A point that a dead driver may not have journaled is reported again.
        news = list(past)
        rungs = set(config["rung_epochs"]) if fold == config["first_fold"] else set()
        reported = saved = time.monotonic()
        pause = CHECKPOINT_SECONDS
        true_TV = np.asarray(self.targets_TN[:, training.job.valid_rows])
        if training.state.epoch in rungs:  # a dead driver may not have judged the trial there
            yield {"points": news}
            news = []
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
                "batch": result.batch,
                "micro_batch": result.micro_batch,
                "peak_memory": result.peak_memory_bytes,
            }
            past.append(point)
            news.append(point)
            now = time.monotonic()
            if training.done:
                break
            # At a rung first of all: there the trial may be paused, and taken up by another worker.
            at_rung = result.epoch in rungs
            if at_rung or now - saved > pause:
                training.save(checkpoint, json.dumps(past))
                self.files.send(checkpoint)
                saved = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (saved - now) / CHECKPOINT_SHARE)
            if at_rung or now - reported > NEWS_SECONDS:
                yield {"points": news}
                news, reported = [], time.monotonic()
        trained = time.monotonic()
        finished = training.finish()
        save_fold(work / f"fold-{fold}.safetensors", finished, training.job.recipe)
        write_fold(work, fold, finished.pred_TV, finished.test_pred_TS)
        self.files.send(*sorted(work.glob(f"fold-{fold}.*")))
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

    def _training(self, config: dict[str, Any], fold: int, fits: int | None) -> "Training":
        return self.train(self.job(config, fold, fits))

    def train(self, job: "FoldJob", rank: "Rank | None" = None) -> "Training":
        """The job on its way; `rank`: this process's place among those that train it together."""
        from search.train.fold import make_training

        return make_training(
            job,
            score=lambda pred_TN, true_TN: self.metric.score(pred_TN, true_TN).value,
            groups_N=self.groups_N,
            rank=rank,
        )

    def job(self, config: dict[str, Any], fold: int, fits: int | None) -> "FoldJob":
        """What a fold of a lease asks for; `fits`: the micro-batch that is known to fit."""
        import numpy as np

        from search.train.job import FoldJob

        recipe = Recipe.from_dict(config["recipe"], self.task.part)
        context, mirror = self.context, self.task.mirror
        initial = context.initial.get(recipe.backbone, {}).get(str(fold))
        return FoldJob(
            recipe=recipe,
            images_NHWC=self.images_NHWC,
            targets_TN=self.targets_TN,
            train_rows=np.flatnonzero(self.fold_N != fold),
            valid_rows=np.flatnonzero(self.fold_N == fold),
            test_images_NHWC=self.test_images_NHWC if len(self.test_images_NHWC) else None,
            seed=derive(context.seed, config["trial"], fold, recipe.seed),
            device=self.device,
            weights_dir=Path(context.weights_dir) if context.weights_dir else None,
            micro_batch=fits,
            task_type=self.task.task_type,
            views=self.task.layout.view_count,
            mirror_views=mirror.views if mirror else None,
            mirror_targets=mirror.places(context.target_names) if mirror else None,
            cache=Path(context.cache),
            store_key=Path(context.store).name,
            initial=self.files.outside(Path(initial)) if initial else None,
            compile=context.compile,
        )

    def _restore(
        self, training: "Training", config: dict[str, Any], fold: int
    ) -> list[dict[str, Any]]:
        """Go on from the newest whole checkpoint that an earlier attempt left of this fold, if any;
        the points of the epochs in it."""
        for earlier in range(config["attempt"] - 1, 0, -1):
            left = self.run.epoch(config["trial"], earlier, fold)
            if self.files.fetch(left):
                try:
                    return list(json.loads(training.restore(left)))
                except UserError as error:
                    log.warning("not restored: %s", error)
                finally:
                    self.files.forget(left)
        return []


def _task_file(name: str, files: Exchange) -> str:
    """The task as this host can load it: by its name, from the user's own file where that is the
    same here, so that what lies beside it is found, else from the run's copy."""
    copy = files.run.task
    if not name.endswith(".py") or not files.fetch(copy):
        return name
    own = Path(name)
    return name if own.is_file() and own.read_bytes() == copy.read_bytes() else str(copy)


def _last_words(error: Exception) -> dict[str, Any]:
    """What a worker reports of an error that broke off its lease."""
    from search.model.memory import out_of_memory
    from search.train.fold import Diverged

    if full := disk_full(error):
        return {"full": f"disk full: {full}"}
    if isinstance(error, Diverged):
        state, reason = states.DIVERGED, str(error)
    elif out_of_memory(error):
        state, reason = states.TOO_BIG, str(error)
    elif isinstance(error, UserError):  # a recipe that cannot be built, say
        state, reason = states.FAILED, str(error)
    else:
        state, reason = states.FAILED, "".join(traceback.format_exception(error))
    return {"end": {"state": state, "reason": reason}}


class TrialTrainable(tune.Trainable):
    """A worker behind Ray Tune's class interface, reused from trial to trial."""

    def setup(self, config: dict[str, Any], context: Context | None = None) -> None:
        import search.train.fold  # noqa: F401 (with torch and timm, before what is frozen)

        assert context is not None
        self._worker = self._worker_of(context)
        self._reports = self._worker.reports(json.loads(config["lease"]))
        # Modules live as long as the worker: looking through them between two trials took .2 s.
        gc.collect()
        gc.freeze()

    def _worker_of(self, context: Context) -> Worker:
        return Worker(context, host=get_node_ip_address())

    def step(self) -> dict[str, Any]:
        # As text: Tune flattens nested dictionaries on their way to the scheduler.
        return {"report": json.dumps(next(self._reports))}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        import torch

        self._reports.close()
        self._reports = self._worker.reports(json.loads(new_config["lease"]))
        gc.collect()
        if torch.cuda.is_available() and self._worker.context.gpus < 1:
            torch.cuda.empty_cache()  # others on this GPU cannot free it
        return True

    def cleanup(self) -> None:
        self._reports.close()
        self._worker.files.close()
