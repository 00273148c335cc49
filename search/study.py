"""The study: Ray Tune runs the trials that the director decides on."""

import dataclasses
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from search.cluster import connect, room, start, start_keeper
from search.director import Director
from search.plan import Plan, Resources
from search.policy.failures import disk_full
from search.terminal import alert
from search.trial import Context
from spaces.errors import RunFailed

MOST_WORKERS = 10_000  # that a cluster may have


def run_study(
    director: Director,
    plan: Plan,
    context: Context,
    resources: Resources,
    address: str | None,
    shown: AbstractContextManager[None],
) -> None:
    """Run trials until the director has no more to start; `shown` is entered when Ray is there:
    it forks, which is not safe while other threads work.

    Raises RunFailed when the disk is full or trials fail alike, and KeyboardInterrupt on the second
    Ctrl-C.
    """
    # The searcher keeps leases to the number of workers, which on a cluster may grow.
    pending = plan.workers if address is None else MOST_WORKERS
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(pending)
    if address is None:
        start(resources, plan.workers, plan.cpus_per_trial)
    with (
        connect(address),
        shown,
        _ctrl_c(director),
        # Ray's own state is not ours to keep: the journal holds the truth.
        tempfile.TemporaryDirectory(prefix="rungfold-ray-", ignore_cleanup_errors=True) as scratch,
    ):
        from ray import tune

        from search.scheduler import DirectorScheduler
        from search.searcher import DirectorSearcher
        from search.trial import TrialTrainable

        if address is not None:
            context = dataclasses.replace(context, keeper=start_keeper(*context.given()))
        workers = room(plan) if address is not None else lambda: plan.workers
        searcher = DirectorSearcher(director, workers)
        worker: type[TrialTrainable] = TrialTrainable
        needs = {"cpu": float(plan.cpus_per_trial), "gpu": plan.gpus_per_trial}
        if plan.gpus_per_trial > 1:
            from search.data_parallel import GroupTrainable

            worker, needs = GroupTrainable, GroupTrainable.NEEDS
        trainable = tune.with_resources(tune.with_parameters(worker, context=context), needs)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=DirectorScheduler(director, searcher),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="tune",
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:  # a full disk, a lost head, a bug: what is journaled is safe
            raise broken_off(error, director.run.root) from error
    check_failures(director)


def broken_off(error: Exception, root: Path) -> RunFailed:
    """What to tell when the search itself broke off, not a trial of it."""
    if full := disk_full(error):
        return RunFailed(f"the disk of {root} is full ({full}); free space and --resume {root}")
    trace = str(error)  # Ray's own error holds the traceback of the first one as text
    if not trace.startswith("Traceback"):
        trace = "".join(traceback.format_exception(error))
    return RunFailed(f"the search broke off; mend this and --resume {root}:\n{trace.rstrip()}")


def check_failures(director: Director) -> None:
    """Raises RunFailed, with the first one's traceback, when trials fail for a reason that others
    would meet as well."""
    if first := director.broken():
        raise RunFailed(
            "trials fail, and others would too, so no more are started; mend this and --resume "
            f"{director.run.root}:\n{first.rstrip()}"
        )


@contextmanager
def _ctrl_c(director: Director) -> Iterator[None]:
    """Ctrl-C once: start nothing more and finish what is cheap. Twice: stop at once."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if director.interrupted:
            raise KeyboardInterrupt
        director.interrupted = True
        alert(
            "Ctrl-C: no new trials; finishing what is cheap, then leaderboard and ensemble. "
            "Once more stops at once (the run can be resumed)."
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
