"""Runs on a simulated clock, for those who look on: a journal, and a run.json beside it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.journal import Event
from search.plan import Plan
from search.run_folder import RunFolder, write_json
from tests.workers import Simulation, plan_of

BASELINES = [{"name": "colour_ridge", "fold_scores": [0.25, 0.5, 0.75], "fold_parts": [{}] * 3,
              "pooled": 0.5, "seconds": 1.0}]  # fmt: skip


class Enough(Exception):
    """The search is left as it is."""


def simulate(
    root: Path,
    plan: Plan | None = None,
    *,
    steps: int | None = None,
    listener: Callable[[Event], None] = lambda event: None,
    between: Callable[[Simulation], None] = lambda simulation: None,
    **how: Any,
) -> Simulation:
    """A search to its end, or for so many `steps` of its workers. The listener hears every event
    at its simulated time; `between` is called before each step."""
    plan = plan or plan_of(workers=2, trials=12)
    simulation = Simulation(root=root, plan=plan, **how)
    simulation.journal.listen(lambda event: listener(replace(event, time=simulation.now)))
    write_json(simulation.run.run, {
        "task": "made", "task_type": "regression", "plan": plan.to_dict(),
        "fold_order": simulation.order, "baselines": BASELINES, "target_names": ["A", "B"],
    })  # fmt: skip
    done = 0

    def step() -> None:
        nonlocal done
        if done == steps:
            raise Enough
        done += 1
        between(simulation)

    with suppress(Enough):
        simulation.go(step)
    simulation.journal.close()
    return simulation


def folder(root: Path, **how: Any) -> RunFolder:
    """The folder of a run of `simulate`."""
    root.mkdir(parents=True, exist_ok=True)
    return simulate(root, **how).run
