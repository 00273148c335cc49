"""MLflow reads back what the journal says, from a store of its own kind."""

import math
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from search import export
from search.export.mlflow import REASON, SEQ, STATE, TRIAL, MLflow
from search.export.record import Facts
from search.journal import Event, read_events
from search.run_folder import RunFolder
from search.trials import FINISHED, RUNNING, Trial, Trials
from spaces.errors import UserError
from tests.watched import folder

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run. Not to be changed by a test."""
    return folder(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def events(run: RunFolder) -> list[Event]:
    return read_events(run.journal)[0]


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def logged(uri: str, name: str) -> dict[int, Any]:
    """Trial -> MLflow's run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {int(run.data.tags[TRIAL]): run for run in runs}
    assert len(found) == len(runs), "a trial is there twice"
    return found


def history(uri: str, run: Any, key: str) -> dict[int, float]:
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    assert len({point.step for point in points}) == len(points), "a step is there twice"
    return {point.step: point.value for point in points}


def check(uri: str, run: RunFolder, events: Sequence[Event]) -> None:
    trials = Trials.of(events)
    found = logged(uri, Facts.read(run).name)
    assert set(found) == set(trials.all)
    for number, trial in trials.all.items():
        check_trial(uri, found[number], trial)
        seq = max(event.seq for event in events if event.trial == number)
        assert found[number].data.tags[SEQ] == str(seq)


def check_trial(uri: str, there: Any, trial: Trial) -> None:
    statuses = {FINISHED: "FINISHED", RUNNING: "RUNNING"}
    assert there.info.status == statuses.get(trial.state, "KILLED")
    assert there.info.run_name == f"trial {trial.number:04d}"
    assert float(there.data.params["quality"]) == trial.params["quality"]
    assert there.data.params["epochs"] == str(trial.epochs)
    for fold in {fold for fold, _ in trial.curve}:
        wanted = {e: p["score"] for (f, e), p in trial.curve.items() if f == fold}
        assert history(uri, there, f"score/fold_{fold}") == pytest.approx(wanted)
    if trial.folds:
        assert there.data.metrics["score"] == pytest.approx(trial.score())
    if trial.state != RUNNING:
        assert there.data.tags[STATE] == trial.state
        assert there.data.tags[REASON] == trial.reason


def test_every_trial_is_a_run(run: RunFolder, events: list[Event], uri: str) -> None:
    assert export.main([str(run.root), "--mlflow", uri]) == 0
    check(uri, run, events)


def test_what_is_there_is_not_logged_twice(run: RunFolder, events: list[Event], uri: str) -> None:
    half = len(events) // 2
    with closing(MLflow(uri, Facts.read(run))) as log:
        for start in range(0, half, 9):
            log.write(events[start : min(start + 9, half)])
    check(uri, run, events[:half])
    for _ in range(2):  # by another process, which reads the journal from the start
        with closing(MLflow(uri, Facts.read(run))) as log:
            log.write(events)
        check(uri, run, events)


def test_two_runs_of_one_name_are_told_apart(
    run: RunFolder, events: list[Event], uri: str, tmp_path: Path
) -> None:
    other = folder(tmp_path / "again" / "run", seed=1)
    for each in (run, other):
        assert export.main([str(each.root), "--mlflow", uri]) == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(Facts.read(run).name)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], max_results=1000)) == 24


def test_a_failure_between_two_requests_is_made_up_for(
    run: RunFolder, events: list[Event], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log = MLflow(uri, Facts.read(run))
    wholly, calls = MlflowClient.set_tag, 0

    def refuse(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 2:
            raise MlflowException("busy")
        wholly(*args, **options)

    monkeypatch.setattr(MlflowClient, "set_tag", refuse)
    for start in range(0, len(events), 11):
        try:
            log.write(events[start : start + 11])
        except UserError as error:
            assert "busy" in str(error)
    while True:
        try:
            log.write([])
            break
        except UserError:
            continue
    assert calls > len({event.trial for event in events})
    check(uri, run, events)


def test_what_was_done_although_it_was_refused_is_found_again(
    run: RunFolder, events: list[Event], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers too late has made the run all the same."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log, wholly, calls = MLflow(uri, Facts.read(run)), MlflowClient.create_run, 0

    def late(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        made = wholly(*args, **options)
        if calls % 3 == 1:
            raise MlflowException("")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", late)
    for news in (events, *[[]] * 20):
        with suppress(UserError):
            log.write(news)
    check(uri, run, events)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(Facts.read(run).name)
    assert experiment is not None and calls == len(
        client.search_runs([experiment.experiment_id], max_results=1000)
    )


@pytest.mark.timeout(60)
def test_a_server_that_is_away_is_told_within_seconds(run: RunFolder) -> None:
    with pytest.raises(UserError, match=re.escape("http://127.0.0.1:9")):
        export.main([str(run.root), "--mlflow", "http://127.0.0.1:9"])


def test_names_and_values_that_mlflow_refuses_are_mended(run: RunFolder, uri: str) -> None:
    params = {"läng(e)": "x", "a b/c.d-e": True}
    recipe = {"backbone": "x", "epochs": 2, "seed": 0}
    point = {"fold": 0, "epoch": 1, "score": math.nan, "loss": math.inf, "images_per_second": 1.0}
    told = [
        Event(seq=0, time=1.0, kind="ask", trial=0, data={"params": params, "recipe": recipe}),
        Event(seq=1, time=2.0, kind="epochs", trial=0, data={"points": [point]}),
        Event(seq=2, time=3.0, kind="end", trial=0,
              data={"state": "failed", "reason": "x" * 100_000}),
    ]  # fmt: skip
    facts = Facts.read(run)
    with closing(MLflow(uri, facts)) as log:
        log.write(told)
    there = logged(uri, facts.name)[0]
    assert there.info.status == "FAILED" and there.data.params["a b/c.d-e"] == "True"
    assert set(there.data.tags[REASON]) == {"x"}
