"""A run's trials as an Optuna study, in a file that optuna-dashboard reads."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search.export.record import Facts, Setting
from search.journal import Event
from search.run_folder import write_file
from search.trials import FINISHED, PRUNED, RUNNING, STOPPED, Trial, Trials
from spaces.errors import UserError

SQLITE = (".db", ".sqlite", ".sqlite3")  # else Optuna's journal
MARK = "rungfold.began"  # attribute of the study: when the run began, by which it is known again
WIDE = 10.0  # times the smallest value: positive numbers that span more are on a logarithmic scale


def write_study(events: Iterable[Event], facts: Facts, path: Path) -> None:
    """Write the study of a run, in place of an earlier one.

    Ranges are those that were tried, since the journal holds no others. Raises UserError when the
    file is something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    events = list(events)
    began = events[0].time if events else None
    if path.exists():
        _check_ours(path, began)
    trials, times = Trials(), {}
    for event in events:
        trials.apply(event)
        if event.kind in ("ask", "end"):
            times[event.trial, event.kind] = datetime.fromtimestamp(event.time)
    params = {n: _choices(trial.params) for n, trial in trials.all.items()}
    ranges = ranges_of(list(params.values()))

    def fill(temporary: Path) -> None:
        storage = _storage(temporary)
        study = optuna.create_study(storage=storage, study_name=facts.name, direction="maximize")
        study.set_user_attr(MARK, began)
        for number, trial in trials.all.items():
            study.add_trial(
                _frozen(
                    trial, params[number], ranges, facts.fold_order,
                    times[number, "ask"], times.get((number, "end")),
                )
            )  # fmt: skip
        _close(storage)

    write_file(path, fill)


def _check_ours(path: Path, began: float | None) -> None:
    """Raises UserError when the file is anything but a study of the run that began then."""
    try:
        storage = _storage(path, new=False)
        (study,) = optuna.get_all_study_summaries(storage)
        of = study.user_attrs[MARK]
        _close(storage)
    except Exception:  # whatever a file of another kind makes of it
        raise UserError(f"{path} exists and is no study of a run; give another file") from None
    if of != began:
        raise UserError(f"{path} is the study of another run; give another file")


def _close(storage: BaseStorage) -> None:
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def url_of(path: Path) -> str:
    """The file as optuna-dashboard wants it named."""
    return f"sqlite:///{path}" if path.suffix in SQLITE else str(path)


def ranges_of(params: Sequence[Mapping[str, Setting]]) -> dict[str, BaseDistribution]:
    """A distribution for each parameter, the same for all trials, as Optuna wants it."""
    values: dict[str, list[Any]] = {}
    for drawn in params:
        for name, value in drawn.items():
            values.setdefault(name, []).append(value)
    return {name: _range(tried) for name, tried in values.items()}


def steps_of(trial: Trial, fold_order: Sequence[int]) -> dict[int, float]:
    """What a trial is compared by, after so many epochs: in the first fold the score there, later
    the mean over the folds done."""
    first = fold_order[0]
    points = {e: p["score"] for (fold, e), p in trial.curve.items() if fold == first}
    scores: list[float] = []
    for fold in fold_order:
        if fold not in trial.folds:
            break
        scores.append(trial.folds[fold]["score"])
        points[len(scores) * trial.epochs] = fmean(scores)
    return {step: points[step] for step in sorted(points) if math.isfinite(points[step])}


def _frozen(
    trial: Trial,
    params: dict[str, Setting],
    ranges: Mapping[str, BaseDistribution],
    fold_order: Sequence[int],
    begun: datetime,
    ended: datetime | None,
) -> FrozenTrial:
    state = _state(trial)
    return FrozenTrial(
        number=trial.number, trial_id=trial.number, state=state,
        value=trial.score() if state == TrialState.COMPLETE else None,
        datetime_start=begun, datetime_complete=ended,
        params=params, distributions={name: ranges[name] for name in params},
        user_attrs={
            "state": trial.state, "reason": trial.reason, "source": trial.source,
            "fold_scores": {str(k): v for k, v in trial.fold_scores().items()},
            "seed": trial.recipe["seed"], "seconds": trial.seconds,
            "peak_memory": trial.peak_memory,
        },
        system_attrs={}, intermediate_values=steps_of(trial, fold_order),
    )  # fmt: skip


def _state(trial: Trial) -> TrialState:
    if trial.state == RUNNING:
        return TrialState.RUNNING
    if trial.state == FINISHED and math.isfinite(trial.score()):
        return TrialState.COMPLETE
    return TrialState.PRUNED if trial.state in (PRUNED, STOPPED) else TrialState.FAIL


def _choices(params: Mapping[str, Any]) -> dict[str, Setting]:
    """Parameters as Optuna takes them: lists and the like as text."""
    plain = (bool, int, float, str, type(None))
    return {n: v if isinstance(v, plain) else json.dumps(v) for n, v in params.items()}


def _range(tried: Sequence[Any]) -> BaseDistribution:
    if all(isinstance(value, float) for value in tried):
        low, high = min(tried), max(tried)
        return FloatDistribution(low, high, log=low > 0 and high > WIDE * low)
    different = {(type(value).__name__, value): value for value in tried}
    return CategoricalDistribution([different[key] for key in sorted(different)])


def _storage(path: Path, new: bool = True) -> BaseStorage:
    if path.suffix in SQLITE:
        return RDBStorage(f"sqlite:///{path.resolve()}", skip_table_creation=not new)
    return JournalStorage(JournalFileBackend(str(path)))
