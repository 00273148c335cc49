"""A run for other tools: TensorBoard and Optuna read back what the journal says; a feed that fails
never stops the search."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from search import export
from search.export import feed
from search.export.feed import Feed, feeds, need
from search.export.optuna import ranges_of, steps_of, url_of, write_study
from search.export.record import Facts, Scalars, settings
from search.export.tensorboard import TensorBoard
from search.journal import Event, read_events
from search.run_folder import RunFolder
from search.trials import FAILED, FINISHED, PRUNED, RUNNING, STOPPED, Trial, Trials
from spaces.errors import UserError
from tests.watched import folder
from tests.workers import plan_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole run. Not to be changed by a test."""
    return folder(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def events(run: RunFolder) -> list[Event]:
    return read_events(run.journal)[0]


def trials_of(events: Sequence[Event]) -> dict[int, Trial]:
    trials = Trials.of(events)
    return trials.all


# --- what is told


def test_series_are_the_curves_and_the_scores(events: list[Event]) -> None:
    scalars, found = Scalars(), {}
    for event in events:
        for scalar in scalars.of(event):
            key = event.trial, scalar.series, scalar.step
            assert key not in found or scalar.series == "score"
            found[key] = scalar.value
    for number, trial in trials_of(events).items():
        for (fold, epoch), point in trial.curve.items():
            for name in ("score", "loss", "images_per_second"):
                assert found.pop((number, f"{name}/fold_{fold}", epoch)) == point[name]
        done = list(trial.folds.values())
        for count in range(1, len(done) + 1):
            mean = fmean(fold["score"] for fold in done[:count])
            assert found.pop((number, "score", count)) == pytest.approx(mean)
        if trial.state == FINISHED:
            assert found.pop((number, "pooled", len(done))) == trial.end["pooled"]
    assert not found


def test_epochs_told_again_are_told_once(events: list[Event]) -> None:
    scalars = Scalars()
    event = next(event for event in events if event.kind == "epochs")
    assert len(scalars.of(event)) == 3 * len(event.data["points"])
    assert scalars.of(event) == []


def test_settings_are_what_was_drawn_without_families() -> None:
    recipe = {"image_size": 64, "epochs": 12, "seed": 3, "lr": 0.1, "augment": {"hue": 0.1}}
    params = {"lr@cnn": 0.1, "image_size": 32, "augment.hue": None, "sides": [1, 2]}
    ask = Event(seq=0, time=0, kind="ask", trial=0, data={"params": params, "recipe": recipe})
    assert settings(ask) == {"image_size": 32, "epochs": 12, "seed": 3, "lr": 0.1,
                             "augment.hue": None, "sides": "[1, 2]"}  # fmt: skip


# --- TensorBoard


def read_back(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def check_board(path: Path, events: Sequence[Event]) -> None:
    """TensorBoard itself reads every trial's curves, settings and end."""
    asked = {event.trial: event for event in events if event.kind == "ask"}
    assert {p.name for p in path.iterdir() if p.is_dir()} == {f"trial-{n:04d}" for n in asked}
    for number, trial in trials_of(events).items():
        found = read_back(path / f"trial-{number:04d}")
        for fold in {fold for fold, _ in trial.curve}:
            told = {s.step: s.value for s in found.Scalars(f"score/fold_{fold}")}
            wanted = {e: p["score"] for (f, e), p in trial.curve.items() if f == fold}
            assert told == pytest.approx(wanted, rel=1e-6)
        if trial.folds:
            assert found.Scalars("score")[-1].value == pytest.approx(trial.score(), rel=1e-6)
        tags = found.summary_metadata
        content = tags["_hparams_/session_start_info"].plugin_data.content
        begin = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert begin.hparams["quality"].number_value == trial.params["quality"]
        assert begin.start_time_secs == asked[number].time
        assert ("_hparams_/session_end_info" in tags) == (trial.state != RUNNING)


def test_tensorboard_reads_every_trial(run: RunFolder, events: list[Event], tmp_path: Path) -> None:
    with closing(TensorBoard(tmp_path / "board", Facts.read(run))) as board:
        board.write(events)
    check_board(tmp_path / "board", events)


def test_tensorboard_is_the_same_bit_by_bit_and_again(
    run: RunFolder, events: list[Event], tmp_path: Path
) -> None:
    for _ in range(2):
        with closing(TensorBoard(tmp_path / "board", Facts.read(run))) as board:
            for start in range(0, len(events), 7):
                board.write(events[start : start + 7])
        check_board(tmp_path / "board", events)
    files = list((tmp_path / "board").glob("*/*"))
    assert len(files) == len({path.parent for path in files}), "one file for each trial"


def test_tensorboard_can_be_looked_at_while_it_is_written(
    run: RunFolder, events: list[Event], tmp_path: Path
) -> None:
    part = events[: len(events) // 2]
    with closing(TensorBoard(tmp_path / "board", Facts.read(run))) as board:
        board.write(part)
        check_board(tmp_path / "board", part)


def test_tensorboard_takes_no_folder_of_others(
    run: RunFolder, events: list[Event], tmp_path: Path
) -> None:
    facts = Facts.read(run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("other", "file"):
        with (
            pytest.raises(UserError, match="holds something else"),
            closing(TensorBoard(tmp_path / name, facts)) as board,
        ):
            board.write(events)
    with closing(TensorBoard(tmp_path / "board", facts)) as board:
        board.write(events)
    later = [replace(event, time=event.time + 1e6) for event in events]
    with (
        pytest.raises(UserError, match="shows another run, made run"),
        closing(TensorBoard(tmp_path / "board", facts)) as board,
    ):
        board.write(later)
    check_board(tmp_path / "board", events)


# --- Optuna


@pytest.mark.parametrize("name", ["study.db", "study.sqlite3", "study.log"])
def test_optuna_reads_every_trial(
    run: RunFolder, events: list[Event], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    for _ in range(2):  # the second time in place of the first
        write_study(events, Facts.read(run), path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    storage = study_of(path)
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    wanted, times = trials_of(events), {(e.trial, e.kind): e.time for e in events}
    assert [trial.number for trial in study.trials] == sorted(wanted)
    for trial in study.trials:
        ours = wanted[trial.number]
        states = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}
        assert trial.state == states[ours.state]
        assert trial.params == ours.params and trial.user_attrs["reason"] == ours.reason
        assert trial.intermediate_values == pytest.approx(steps_of(ours, [1, 2, 0]))
        assert trial.datetime_start.timestamp() == pytest.approx(times[trial.number, "ask"])
        assert trial.datetime_complete.timestamp() == pytest.approx(times[trial.number, "end"])
        if ours.state == FINISHED:
            assert trial.value == pytest.approx(ours.score())
    best = max(wanted.values(), key=lambda t: t.score() if t.state == FINISHED else -1)
    assert study.best_trial.number == best.number


def study_of(path: Path) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if url_of(path).startswith("sqlite"):
        return RDBStorage(url_of(path))
    return JournalStorage(JournalFileBackend(url_of(path)))


def test_every_end_has_a_state_of_optunas(
    run: RunFolder, events: list[Event], tmp_path: Path
) -> None:
    """What runs on runs there as well; what went wrong failed."""
    ended = [event for event in events if event.kind == "end"][:4]
    others = [event for event in events if event not in ended]
    states = {PRUNED: TrialState.PRUNED, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL}
    told = [
        replace(event, data={"state": state, "reason": "because"})
        for event, state in zip(ended[:3], states, strict=True)
    ]
    lost = {event.trial for event in others if event.kind == "end"}
    part = [event for event in others if event.trial not in lost] + told
    write_study(part, Facts.read(run), tmp_path / "study.log")
    study = optuna.load_study(study_name=None, storage=study_of(tmp_path / "study.log"))
    by_time = sorted(event.trial for event in ended)
    found = dict(zip(by_time, (trial.state for trial in study.trials), strict=True))
    wanted = {event.trial: states[event.data["state"]] for event in told}
    assert found == {**wanted, ended[3].trial: TrialState.RUNNING}


def test_a_finished_trial_without_a_score_failed(run: RunFolder, tmp_path: Path) -> None:
    ask = {"params": {"lr": 0.1}, "recipe": {"backbone": "x", "epochs": 3, "seed": 0}}
    end = {"state": FINISHED, "reason": "", "score": math.nan, "fold_scores": [math.nan]}
    events = [
        Event(seq=0, time=1.0, kind="ask", trial=0, data=ask),
        Event(seq=1, time=2.0, kind="end", trial=0, data=end),
    ]
    write_study(events, Facts.read(run), tmp_path / "study.log")
    study = optuna.load_study(study_name=None, storage=study_of(tmp_path / "study.log"))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]


def test_steps_are_what_trials_are_compared_by() -> None:
    trial = Trial(number=0, params={}, recipe={"epochs": 4})
    trial.curve = {(2, e): {"score": 0.1 * e} for e in range(1, 5)}
    trial.curve |= {(0, 1): {"score": 9.0}, (2, 3): {"score": math.nan}}
    trial.folds = {2: {"score": 0.4}, 1: {"score": 0.8}}
    assert steps_of(trial, [2, 0, 1]) == pytest.approx({1: 0.1, 2: 0.2, 4: 0.4})
    trial.folds[0] = {"score": 0.6}
    assert steps_of(trial, [2, 0, 1]) == pytest.approx({1: 0.1, 2: 0.2, 4: 0.4, 8: 0.5, 12: 0.6})


def test_ranges_are_those_that_were_tried() -> None:
    tried = [
        {"lr": 1e-4, "drop": 0.0, "size": 128, "head": "mlp", "flip": True, "pca": None},
        {"lr": 1e-2, "drop": 0.4, "size": 16, "head": "linear", "pca": 8},
        {"lr": 1e-3, "drop": 0.2, "size": 128, "head": "mlp", "flip": True, "pca": 64},
    ]
    found = ranges_of(tried)
    log, linear = found["lr"], found["drop"]
    assert (log.low, log.high, log.log) == (1e-4, 1e-2, True)
    assert (linear.low, linear.high, linear.log) == (0.0, 0.4, False)
    assert found["size"].choices == (16, 128) and found["head"].choices == ("linear", "mlp")
    assert set(found["pca"].choices) == {None, 8, 64} and found["flip"].choices == (True,)


def test_a_file_that_is_something_else_is_not_overwritten(
    run: RunFolder, events: list[Event], tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    optuna.create_study(storage=url_of(path), study_name="my own")
    before = path.read_bytes()
    with pytest.raises(UserError, match="no study of a run"):
        write_study(events, Facts.read(run), path)
    assert path.read_bytes() == before
    other = [replace(event, time=event.time + 1) for event in events]
    for name in ("other.db", "other.log"):
        write_study(other, Facts.read(run), tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match="study of another run"):
            write_study(events, Facts.read(run), tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(UserError, match="no study of a run"):
        write_study(events, Facts.read(run), tmp_path)


# --- the command


def test_the_command_writes_what_is_asked_for(
    run: RunFolder, events: list[Event], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, study = tmp_path / "board", tmp_path / "study.db"
    arguments = [str(run.root), "--tensorboard", str(board), "--optuna", str(study)]
    assert export.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {board}" in said and f"sqlite:///{study}" in said
    check_board(board, events)
    assert len(optuna.load_study(study_name=None, storage=f"sqlite:///{study}").trials) == 12


def test_a_run_under_way_is_exported_and_its_journal_only_read(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", plan=plan_of(workers=3, trials=14), steps=150)
    before = run.journal.read_bytes() + b'{"torn'
    run.journal.write_bytes(before)
    assert export.main([str(run.root), "--optuna", str(tmp_path / "study.log")]) == 0
    study = optuna.load_study(study_name=None, storage=study_of(tmp_path / "study.log"))
    assert {trial.state for trial in study.trials} >= {TrialState.RUNNING, TrialState.COMPLETE}
    assert run.journal.read_bytes() == before


def test_what_cannot_be_written_is_told(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to write"):
        export.main([str(run.root)])
    (tmp_path / "file").write_text("x")
    for option in ("--tensorboard", "--optuna"):
        with pytest.raises(UserError, match="it cannot be written"):
            export.main([str(run.root), option, str(tmp_path / "file" / "below")])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "find_spec", lambda name: None)
    need(mlflow=False, tensorboard=False)
    with pytest.raises(UserError) as caught:
        need(mlflow=True, tensorboard=True)
    assert ["pip install" in fault for fault in caught.value.faults] == [True, True]


# --- while the run is under way


class Fake:
    """An exporter that fails when it is told to."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.left: list[int] = []
        self.fail = False
        self.closed = False
        self.called = threading.Event()

    def write(self, events: Sequence[Event]) -> None:
        self.left += [event.seq for event in events]
        self.called.set()
        if self.fail:
            raise ConnectionError("nobody there\nand more")
        self.got, self.left = self.got + self.left, []

    def close(self) -> None:
        self.closed = True


def fed(fake: Fake, said: list[str], make: Callable[[], Fake] | None = None) -> Feed:
    return Feed("the tool", make or (lambda: fake), said.append, "the command")


@contextmanager
def showing(one: Feed) -> Iterator[Feed]:
    """A session's feed, from its first lease to its end."""
    one.start()
    yield one
    feed.close_all([one])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVERY", 0.005)
    monkeypatch.setattr(feed, "PATIENCE", 5.0)


def wait_for_a_call(fake: Fake) -> None:
    fake.called.clear()
    assert fake.called.wait(10)


@pytest.mark.usefixtures("quick")
def test_a_feed_hands_on_every_event_once_and_in_order(events: list[Event]) -> None:
    fake, said = Fake(), []
    with showing(fed(fake, said)) as feed:
        for event in events:
            feed.hear(event)
    assert fake.got == [event.seq for event in events] and fake.closed and not said


@pytest.mark.usefixtures("quick")
def test_a_tool_that_is_away_is_told_once_and_made_up_for(events: list[Event]) -> None:
    fake, said = Fake(), []
    fake.fail = True
    with showing(fed(fake, said)) as feed:
        for event in events[:5]:
            feed.hear(event)
        for _ in range(3):
            wait_for_a_call(fake)
        fake.fail = False
        for event in events[5:9]:
            feed.hear(event)
    assert fake.got == list(range(9))
    assert said == ["warning: the tool is left behind, the search goes on: nobody there"]


@pytest.mark.usefixtures("quick")
def test_what_is_lost_in_the_end_is_told_with_the_command_that_makes_up_for_it(
    events: list[Event],
) -> None:
    fake, said = Fake(), []
    fake.fail = True
    with showing(fed(fake, said)) as feed:
        feed.hear(events[0])
    assert said[-1] == "warning: the tool has not got all of the run; later: the command"


def test_a_tool_that_hangs_does_not_hold_the_run(
    events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "EVERY", 0.005)
    monkeypatch.setattr(feed, "PATIENCE", 0.05)
    release, said = threading.Event(), []

    def hang() -> Fake:
        release.wait(60)
        return Fake()

    with showing(fed(Fake(), said, hang)) as shown:
        for event in events:
            shown.hear(event)
    assert "has not got all of the run" in said[-1]
    release.set()


@pytest.mark.usefixtures("quick")
def test_a_tool_that_cannot_be_closed_has_not_got_all(events: list[Event]) -> None:
    class Full(Fake):
        def close(self) -> None:
            raise OSError("the disk is full")

    said: list[str] = []
    with showing(fed(Full(), said)) as feed:
        feed.hear(events[0])
    assert "the disk is full" in said[0] and "has not got all of the run" in said[-1]


@pytest.mark.usefixtures("quick")
def test_the_live_flags_feed_the_same_code(run: RunFolder, events: list[Event]) -> None:
    said: list[str] = []
    assert feeds(run, None, False, said.append) == []
    (board,) = feeds(run, None, True, said.append)
    with showing(board):
        for event in events:
            board.hear(event)
    check_board(run.root / "tensorboard", events)
    assert not said
