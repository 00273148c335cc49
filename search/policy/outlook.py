"""What is left to do on open trials, who may do it, and what it takes. Pure."""

import math
from collections.abc import Sequence

from search.plan import Plan
from search.policy.costs import Costs
from search.policy.rungs import Rung, Rungs
from search.trials import Trial, Trials


class Outlook:
    """Reads the state of a run; changes nothing."""

    def __init__(
        self, trials: Trials, rungs: Rungs, costs: Costs, plan: Plan, fold_order: Sequence[int]
    ) -> None:
        self._trials, self._rungs, self._costs = trials, rungs, costs
        self._plan, self._order = plan, tuple(fold_order)
        self.workers = plan.workers  # on a cluster as many as there are now

    # -- folds ---------------------------------------------------------------------------------

    def scores_in_order(self, trial: Trial) -> list[float]:
        """Scores of the folds done, in the order in which folds are visited, up to the first that
        is not done: folds that others trained ahead do not count before their turn."""
        scores: list[float] = []
        for fold in self._order:
            if fold not in trial.folds:
                break
            scores.append(trial.folds[fold]["score"])
        return scores

    def free_folds(self, trial: Trial) -> list[int]:
        """Folds that nobody has done or is doing, in order."""
        held = trial.held()
        return [fold for fold in self._order if fold not in trial.folds and fold not in held]

    def _next_rung(self, trial: Trial) -> Rung | None:
        """The first rung that the trial has not passed; None: it passed them all."""
        passed = self._rungs.passed
        return next((r for r in self.rungs_of(trial) if not passed(trial.number, r)), None)

    def rungs_of(self, trial: Trial) -> list[Rung]:
        """Those that a trial comes to: one with fewer epochs than the others has fewer."""
        return [rung for rung in self._plan.rungs if rung.epoch < trial.epochs]

    def wanted_folds(self, trial: Trial) -> list[int]:
        """Folds that the trial trains before anything is decided about it again."""
        rung = self._next_rung(trial)
        if rung is None:
            return list(self._order)
        return list(self._order[: max(1, rung.folds)])

    def shareable(self, trial: Trial, folds: Sequence[int]) -> list[int]:
        """Those of `folds` that another worker may take: not done, and not the one that a worker
        is at; the last ones first."""
        at_work = {held[0] for held in trial.leases.values() if held}
        return [f for f in reversed(folds) if f not in trial.folds and f not in at_work]

    # -- time ----------------------------------------------------------------------------------

    def fold_seconds(self, trial: Trial) -> float:
        """Expected seconds of one fold, where the trial is or on any machine; 0 before anything was
        measured."""
        machine = trial.machine if trial.leases else None
        return trial.epochs * (self._costs.epoch(trial.model, trial.image_size, machine) or 0.0)

    def work_left(self, trial: Trial) -> float:
        """Seconds of one worker until all folds are done."""
        epochs = sum(
            trial.epochs - trial.newest.get(fold, 0)
            for fold in self._order
            if fold not in trial.folds
        )
        return self.fold_seconds(trial) * epochs / trial.epochs

    def wall_left(self, trial: Trial) -> float:
        """Seconds until all folds are done when every worker helps, once the first is done."""
        first = self._order[0]
        left = sum(fold not in trial.folds for fold in self._order if fold != first)
        seconds = self.fold_seconds(trial) * math.ceil(left / self.workers)
        if first not in trial.folds:
            share = 1 - trial.newest.get(first, 0) / trial.epochs
            seconds += self.fold_seconds(trial) * share
        return min(self.work_left(trial), seconds)

    def fits(self, trial: Trial, left: float) -> bool:
        """Whether a trial can be whole in `left` seconds, beside what is running."""
        if math.isinf(left):
            return True
        busy = sum(self.work_left(other) for other in self._trials.running() if other is not trial)
        room = left * self.workers - busy
        return self.wall_left(trial) <= left and self.work_left(trial) <= room

    def new_trial_seconds(self, backbone: str, size: int) -> float:
        """Seconds in which a new trial can be whole: its first fold by one worker, the others by
        all; 0 before anything was measured."""
        rounds = 1 + math.ceil((len(self._order) - 1) / self.workers)
        return rounds * self._plan.epochs * (self._costs.epoch(backbone, size) or 0.0)

    def reserve(self, left: float) -> float:
        """Seconds that all workers need to finish the members which are still missing, the most
        advanced of the trials that can be whole in `left` seconds first."""
        missing = self._plan.members - len(self._trials.members())
        work = sorted(
            self.work_left(trial) for trial in self._trials.open() if self.wall_left(trial) <= left
        )
        return sum(work[: max(0, missing)]) / self.workers
