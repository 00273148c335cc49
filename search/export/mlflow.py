"""A run's trials as runs of an MLflow experiment."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from search.export.record import Facts, Scalar, Scalars, Setting, settings
from search.journal import Event
from search.trials import DIVERGED, FAILED, FINISHED, TOO_BIG
from spaces.errors import UserError

# Tags that tell which trial an MLflow run is, and how far it has got.
BEGAN, TRIAL, SEQ = "rungfold.began", "rungfold.trial", "rungfold.seq"
STATE, REASON = "rungfold.state", "rungfold.reason"
REASON_LENGTH = 500  # characters; MLflow refuses tags of some thousands
BATCH, PARAMS = 1000, 100  # metrics and parameters that one request may hold
ROWS = 1000  # runs of one answer
# A server that is away is known to be after seconds, not minutes; nobody is told of the use, and
# nothing is printed for each trial.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
NOT_IN_NAMES = re.compile(r"[^\w./ -]")


@dataclass(kw_only=True)
class News:
    """What is to be told of a trial."""

    settings: dict[str, Setting] = field(default_factory=dict)
    begun: float = 0.0  # seconds since 1970
    scalars: list[tuple[int, float, Scalar]] = field(default_factory=list)  # seq, time
    end: Event | None = None
    seq: int = -1  # of the newest event


class MLflow:
    """Logs each trial where it stopped before: the newest event's number is kept with the trial."""

    def __init__(self, uri: str, facts: Facts) -> None:
        self._uri, self._facts = uri, facts
        self._scalars = Scalars()
        self._news: dict[int, News] = {}  # trial -> what is not logged yet
        self._began: float | None = None  # time of the run's first event, which names it
        self._client: Any = None
        self._experiment = ""
        self._runs: dict[int, tuple[str, int]] = {}  # trial -> MLflow's id, number of last event

    def write(self, events: Iterable[Event]) -> None:
        """Log these events, which follow those of the last call, and what an earlier call could not
        log. Raises UserError when MLflow refuses or is away."""
        for event in events:
            self._hear(event)
        os.environ.update({k: os.environ.get(k, v) for k, v in ENVIRONMENT.items()})
        from mlflow.exceptions import MlflowException

        try:
            self._connect()
            for trial in list(self._news):
                self._log(trial, self._news[trial])
                del self._news[trial]
        except (MlflowException, OSError) as error:  # requests' errors are OSErrors
            # What it refused it may have done nevertheless: what is there is looked up anew.
            self._client = None
            first = next(iter(str(error).splitlines()), repr(error))
            raise UserError(f"{self._uri} does not take it ({first})") from None

    def close(self) -> None:
        """Nothing is kept open."""

    def _hear(self, event: Event) -> None:
        if self._began is None:
            self._began = event.time
        if event.trial < 0:
            return
        news = self._news.setdefault(event.trial, News())
        news.seq = event.seq
        if event.kind == "ask":
            news.settings, news.begun = settings(event), event.time
        elif event.kind == "end":
            news.end = event
        news.scalars += [(event.seq, event.time, scalar) for scalar in self._scalars.of(event)]

    def _connect(self) -> None:
        """Find or make the experiment, and find the trials that are in it."""
        if self._client is not None or self._began is None:
            return
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._facts.name)
        self._experiment = (
            found.experiment_id if found else client.create_experiment(self._facts.name)
        )
        for run in self._pages(client):
            tags = run.data.tags
            self._runs[int(tags[TRIAL])] = run.info.run_id, int(tags.get(SEQ, -1))
        self._client = client

    def _pages(self, client: Any) -> Iterator[Any]:
        token = None
        while True:
            page = client.search_runs(
                [self._experiment], filter_string=f"tags.`{BEGAN}` = '{self._began}'",
                max_results=ROWS, page_token=token,
            )  # fmt: skip
            yield from page
            token = page.token
            if not token:
                return

    def _log(self, trial: int, news: News) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run, logged = self._run_of(trial, news)
        if news.seq <= logged:
            return
        metrics = [
            Metric(key=scalar.series, value=scalar.value, timestamp=_milli(when), step=scalar.step)
            for seq, when, scalar in news.scalars
            if seq > logged
        ]
        params = [
            Param(NOT_IN_NAMES.sub("_", name), str(value)) for name, value in news.settings.items()
        ]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(run, params=params[start : start + PARAMS])
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + BATCH])
        if news.end is not None:
            state, reason = news.end.data["state"], news.end.data["reason"]
            tags = [RunTag(STATE, state), RunTag(REASON, reason[:REASON_LENGTH])]
            self._client.log_batch(run, tags=tags)
            self._client.set_terminated(run, _status(state), _milli(news.end.time))
        self._client.set_tag(run, SEQ, str(news.seq))  # last: what it says is there
        self._runs[trial] = run, news.seq

    def _run_of(self, trial: int, news: News) -> tuple[str, int]:
        """MLflow's run of a trial, which is made if need be, and what it has."""
        if trial not in self._runs:
            run = self._client.create_run(
                self._experiment, start_time=_milli(news.begun), run_name=f"trial {trial:04d}",
                tags={BEGAN: str(self._began), TRIAL: str(trial)},
            )  # fmt: skip
            self._runs[trial] = run.info.run_id, -1
        return self._runs[trial]


def _milli(seconds: float) -> int:
    return int(seconds * 1000)


def _status(state: str) -> str:
    """MLflow's word for a trial's end: pruned and stopped ones were killed on purpose."""
    if state == FINISHED:
        return "FINISHED"
    return "FAILED" if state in (DIVERGED, FAILED, TOO_BIG) else "KILLED"
