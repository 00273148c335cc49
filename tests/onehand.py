"""Whole searches in this process: one worker, no Ray. What is decided and trained is the same."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from search.director import Director
from search.plan import Plan, Resources
from search.run import main
from search.trial import Context, Worker
from tests.modelruns import one_thread


def study(
    director: Director, plan: Plan, context: Context, resources: Resources, address: str | None,
    shown: AbstractContextManager[None],
) -> None:  # fmt: skip
    """In the place of search.study.run_study."""
    worker = Worker(context)
    with shown:
        while (config := director.next_config()) is not None:
            for report in worker.reports(config):
                if not director.on_result(json.loads(json.dumps(report))):
                    break


@contextmanager
def alone(core: int = 1) -> Iterator[None]:
    """Within it `search.run.main` trains here, as on a machine of one core."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr("search.compose.run_study", study)
        patch.setattr("search.prepare.start_ray", lambda *given: None)
        patch.setattr("search.prepare._resources", lambda address: Resources(
            cpus=core, gpus=0, memory_bytes=8 * 10**9,
        ))  # fmt: skip
        yield


def search(*arguments: Any) -> None:
    """`python -m search.run` with these arguments."""
    with alone():
        assert main([str(argument) for argument in arguments]) == 0
