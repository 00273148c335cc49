"""The real search, but every epoch waits first: how long things take does not hang on the cores of
the machine that plays all hosts. Run on the head.

    python slow.py SECONDS TASK ...          as python -m search.run TASK ...
    python slow.py rate DATA OUT HOSTS ...   trials an hour with so many hosts, a line of JSON each
"""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from search.cluster import QUIET
from search.journal import Event, read_events
from search.run import main, parser
from spaces.errors import run_main

SECONDS = 1.0  # that an epoch waits where trials are counted,
TRIALS, FOLDS, EPOCHS = (
    18,
    2,
    1,
)  # all whole, so each takes as long; each epoch is a fold, told at once


def slow_down(seconds: float) -> None:
    """Let every epoch of this process' searches wait, in whatever worker."""
    os.environ.update(QUIET)  # before Ray is imported
    import search.trial

    class Slow(search.trial.TrialTrainable):
        def setup(self, config: dict[str, Any], context: Any = None) -> None:
            from search.train.fold import FoldTraining

            epoch = FoldTraining.epoch

            def wait_first(training: FoldTraining) -> Any:
                time.sleep(seconds)
                return epoch(training)

            FoldTraining.epoch = wait_first
            super().setup(config, context)

    search.trial.TrialTrainable = Slow


def rates(data: str, out: str, *hosts: int) -> None:
    slow_down(SECONDS)
    import search.study
    from search.cluster import cluster_resources, connect
    from search.compose import Session
    from search.prepare import prepare

    with connect("auto"):
        while len(cluster_resources().hosts) < max(hosts):
            time.sleep(0.2)
    for count in hosts:
        search.study.room = lambda plan, count=count: lambda: count
        setup = prepare(parser().parse_args([
            "gene_expr", "--data", data, "--out", f"{out}/{count}", "--address", "auto",
            "--trials", str(TRIALS), "--folds", str(FOLDS), "--epochs", str(EPOCHS),
            "--groups", "none", "--image-size", "32", "--backbone", "test_resnet",
            "--weights", "random",
        ]), lambda text: None)  # fmt: skip
        whole = replace(setup.plan, members=TRIALS, keep=tuple(1.0 for _ in setup.plan.keep))
        with Session(replace(setup, plan=whole), time.monotonic()) as session:
            session.run_trials()
        print(json.dumps(rate(read_events(setup.run.journal)[0])), flush=True)


def rate(events: Iterable[Event]) -> dict[str, float]:
    """The hosts that trained, and their trials an hour: of each from its first epoch to the end."""
    told: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.kind == "epochs":
            told[event.data["host"]].append(event.time)
    end = max(times[-1] for times in told.values())
    epochs = sum((len(times) - 1) / (end - times[0]) for times in told.values())  # a second
    return {"hosts": len(told), "per_hour": 3600 * epochs / (FOLDS * EPOCHS)}


if __name__ == "__main__":
    first, *rest = sys.argv[1:]
    if first == "rate":
        rates(*rest[:2], *map(int, rest[2:]))
    else:
        slow_down(float(first))
        sys.argv[1:] = rest
        run_main(main)
