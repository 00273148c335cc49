"""A session of a run: journal, director, sampler, worker context and refresher put together."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from search.ablation import ask_for, rows
from search.data.disk import only_process
from search.data.folds import read_folds
from search.director import Clock, Director
from search.exchange import mark
from search.export.feed import Feed, close_all
from search.finish import Refresher, publish
from search.journal import Journal, seconds_used
from search.live import Guarded, view_of
from search.memory_watch import MemoryWatch, keep_peak
from search.metrics import FittedMetric, Score, fold_scores, trial_score
from search.oof import assemble
from search.plan import Plan, extended
from search.policy.portfolio import portfolio
from search.policy.priors import PriorRun, first_from, identity, observations_from
from search.results import results_frame
from search.run_folder import write_text
from search.sampler import Sampler
from search.setup import Setup
from search.study import run_study
from search.terminal import alert, say
from search.trial import Context
from search.trials import FINISHED, RUNNING, Trial
from search.upload import Uploader
from search.warm_start import load as load_priors
from search.watch import Watch
from spaces.backbones import relative_cost
from spaces.errors import RunFailed
from spaces.recipe import Recipe
from spaces.space import Space

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from ensemble.build import BuildResult


SERIES = 4  # backbone series beyond the task's own first recipes that are tried at once


class Session:
    """One process's work on a run, from opening the journal to closing it.

    Raises UserError when another process works on the run.
    """

    def __init__(
        self,
        setup: Setup,
        started: float,
        extend: int | None = None,
        ablate: Sequence[str] | None = None,
        feeds: Sequence[Feed] = (),
    ) -> None:
        """`started`: time.monotonic() at the start of the process, from which --hours counts.
        `extend`: trials that are added to the run. `ablate`: parameters that are changed one by one
        around the best recipe; none of them: all. `feeds`: other tools that the run is shown to.
        """
        self._lock = only_process(setup.run.lock, setup.run.root)
        self._journal = Journal(setup.run.journal)
        self._uploader: Uploader | None = None
        if setup.run.url.is_file():
            url = setup.run.url.read_text(encoding="utf-8")
            self._uploader = Uploader(setup.run, url, self._journal, alert)
            say(f"the run lies in {setup.run.root} and is copied to {url} as it goes on")
        used = seconds_used(self._journal.events)
        # `after`: seconds since the process began, from which --hours counts.
        after = round(time.monotonic() - started, 3)
        self._journal.append("session", task_digest=setup.task_digest, after=after)
        if ablate is not None:  # first, since it may be refused
            count = ask_for(self._journal, setup.task.space(setup.means), ablate)
            say(f"plan: {count} trials that change the best recipe one by one")
        if extend is not None:
            self._journal.append("extend", trials=extend)
        planned = setup.plan
        sampler = _sampler(setup)  # as the run's own plan has it: an extended run asks as before
        setup = replace(setup, plan=extended(setup.plan, self._journal.events))
        if extend is not None:
            say(f"plan: {extend} more trials, {setup.plan.trials} in all, without a time limit")
        self._setup = setup
        deadline = None
        if setup.plan.hours is not None:
            deadline = started + setup.plan.hours * 3600 - used
        self._folds = read_folds(setup.run.folds)
        self._targets_TN = np.load(setup.run.targets, mmap_mode="r")
        self._metric = FittedMetric.from_dict(setup.metric)
        # Trials that a dead driver left complete are finished here, before anyone else listens.
        self.director = Director(
            setup.run, setup.plan, self._journal, sampler,
            fold_order=list(setup.fold_order), clock=Clock(deadline=deadline),
            finalise=self._finalise, tell=alert,
        )  # fmt: skip
        self._sweep()
        self._refresher = Refresher(setup.run, self.frame, setup.keep_gb)
        self._journal.listen(self._refresher.hear, replay=False)
        watch = Watch(planned, setup.fold_order, self.director.trials)
        self._journal.listen(watch.hear)
        self._view = Guarded(view_of(watch, setup.run, self._journal.now))
        self._journal.listen(self._view.hear, replay=False)
        self._feeds = feeds
        for feed in feeds:
            self._journal.listen(feed.hear)
        if self._uploader:
            self._uploader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._refresher.close()
        close_all(self._feeds, at_once=kind is KeyboardInterrupt)
        fault = None
        if self._uploader:
            fault = self._uploader.close(flush=kind is not KeyboardInterrupt)
        self._journal.close()
        self._lock.release()
        if fault and kind is None:
            raise RunFailed(fault)
        if fault:
            alert(fault)

    def run_trials(self) -> bool:
        """Run what is left to run; whether Ctrl-C cut it short."""
        setup = self._setup
        if setup.task_name.endswith(".py"):
            write_text(setup.run.task, Path(setup.task_name).read_text(encoding="utf-8"))
        context = Context(
            run=str(setup.run.root.resolve()),
            mark=mark(setup.run),
            store=str(setup.store),
            cleaned=setup.clean,
            cache=str(setup.cache.resolve()),
            task=setup.task_name,
            task_options=setup.task_options,
            target_names=setup.target_names,
            initial=setup.initial,
            metric=setup.metric,
            seed=setup.seed,
            threads=setup.plan.cpus_per_trial,
            gpus=setup.plan.gpus_per_trial,
            weights_dir=str(setup.weights_dir) if setup.weights_dir else None,
            compile=setup.plan.compile,
        )
        if self.director.anything_left():
            images = setup.store / "images.npy"
            with MemoryWatch(images, everywhere=setup.address is None) as memory:
                run_study(
                    self.director, setup.plan, context, setup.resources, setup.address,
                    self._shown(),
                )  # fmt: skip
            keep_peak(setup.run, memory.peak)
        for feed in self._feeds:  # where no trial was left to run
            feed.start()
        if not self.director.interrupted:
            self.director.close()
        self._sweep()
        return self.director.interrupted

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Within it the run is shown, here and to other tools."""
        for feed in self._feeds:
            feed.start()
        with self._view:
            yield

    def _sweep(self) -> None:
        """Delete what a dead driver or a late worker left of trials that have ended."""
        ended = [t for t in self.director.trials.all.values() if t.state != RUNNING]
        self._setup.run.sweep(
            members=[t.number for t in ended if t.state == FINISHED],
            others=[t.number for t in ended if t.state != FINISHED],
        )

    def publish(self) -> "BuildResult | None":
        """The final leaderboard, ensemble, bundle and submission."""
        self._refresher.close()
        return publish(self._setup.run, self.frame(), self._setup.keep_gb)

    def frame(self) -> "pd.DataFrame":
        return results_frame(self.director.trials, self._setup.baselines, self._setup.fold_order)

    def ablations(self) -> list[dict[str, Any]]:
        """What each single change did, of all ablations of the run."""
        return rows(self._journal, self.director.trials)

    def _finalise(self, trial: Trial) -> Mapping[str, Any]:
        """Assemble a whole trial's OOF; its scores for the journal."""
        recipe = Recipe.from_dict(trial.recipe, self._setup.task.part)
        pred_TN = assemble(
            self._setup.run.oof(trial.number),
            folds=self._folds,
            target_names=self._setup.target_names,
            recipe_digest=recipe.digest,
            extra=lambda pred_TN: {
                "trial": trial.number, "score": trial_score(self._fold_scores(pred_TN)),
            },
        )  # fmt: skip
        scores = self._fold_scores(pred_TN)
        return {
            "score": trial_score(scores),
            "pooled": self._metric.score(pred_TN, self._targets_TN).value,
            "fold_scores": [s.value for s in scores],
            "fold_parts": [s.parts for s in scores],
        }

    def _fold_scores(self, pred_TN: "NDArray[np.float32]") -> list[Score]:
        """Until all folds are there each is scored alone; then thresholds come from the others."""
        return fold_scores(self._metric, pred_TN, self._targets_TN, self._folds.fold)


def _sampler(setup: Setup) -> Sampler:
    plan, space = setup.plan, setup.task.space(setup.means)
    priors = load_priors(setup.run)
    own = identity(setup.task_name, setup.metric, setup.target_names)
    first = _first_recipes(plan, space, priors, setup.resources.gpu)
    return Sampler(
        space, setup.seed, backbones=plan.backbones, rungs=plan.rungs, folds=len(setup.fold_order),
        epochs=plan.epochs, first=first, priors=observations_from(priors, space, own),
    )  # fmt: skip


def _first_recipes(
    plan: Plan, space: Space, priors: list[PriorRun], gpu: bool
) -> list[dict[str, Any]]:
    """As many as a third of the trials, and at least the task's own and some series; up to half of
    them come from earlier runs."""

    def cost(backbone: str) -> float:
        return relative_cost(backbone, plan.side(backbone), gpu)

    limit = max(len(space.first) + SERIES, (plan.trials or 0) // 3)
    warm = first_from(priors, space, max(1, limit // 2))
    return portfolio(space, plan.backbones, cost, limit, warm)
