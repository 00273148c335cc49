"""A run's trials as TensorBoard's event files, a folder for each.

tensorboardX writes them, which Ray Tune brings along: the files are those that torch's own writer
makes, which would need TensorBoard itself installed.
"""

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from search.export.record import Facts, Scalars, settings
from search.journal import Event
from search.run_folder import read_json, write_json
from search.trials import DIVERGED, FAILED, TOO_BIG
from spaces.errors import UserError

MARK = "rungfold.json"  # says which run a folder shows
FILES = "trial-*/*.tfevents.*"


class TensorBoard:
    """Writes events to the disk when it is told to; `close` closes all files."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self._folder, self._facts = folder, facts
        self._scalars = Scalars()
        self._ready = False  # the folder is ours, and holds nothing older
        self._news: deque[tuple[Event, list[tuple[int, Any]]]] = deque()  # not written yet
        self._open: dict[int, Any] = {}  # trial -> tensorboardX.RecordWriter

    def close(self) -> None:
        for writer in self._open.values():
            writer.close()
        self._open.clear()

    def write(self, events: Iterable[Event]) -> None:
        """Write these events, which follow those of the last call, and what an earlier call could
        not write.

        Raises UserError when the folder holds something else, and OSError when the disk refuses.
        """
        for event in events:
            self._news.append((event, self._summaries(event)))
        if self._news and not self._ready:
            self._take(self._news[0][0])
        while self._news:
            event, summaries = self._news[0]
            for step, summary in summaries:
                self._record(event, step, summary)
            if event.kind == "end" and event.trial in self._open:
                self._open.pop(event.trial).close()
            self._news.popleft()
        for writer in self._open.values():
            writer.flush()

    def _summaries(self, event: Event) -> list[tuple[int, Any]]:
        """(step, summary) of what an event says."""
        from tensorboardX.proto.summary_pb2 import Summary

        found: list[tuple[int, Any]] = []
        if event.kind == "ask":
            found.append((0, _begin(event)))
        for scalar in self._scalars.of(event):
            value = Summary.Value(tag=scalar.series, simple_value=scalar.value)
            found.append((scalar.step, Summary(value=[value])))
        if event.kind == "end":
            found.append((0, _end(event)))
        return found

    def _record(self, event: Event, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event as Record

        record = Record(wall_time=event.time, step=step, summary=summary)
        self._writer(event).write(record.SerializeToString())

    def _writer(self, event: Event) -> Any:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event as Record

        if event.trial not in self._open:
            folder = self._folder / f"trial-{event.trial:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"events.out.tfevents.{event.time:.0f}.rungfold"
            writer = self._open[event.trial] = RecordWriter(str(path))
            head = Record(wall_time=event.time, file_version="brain.Event:2")
            writer.write(head.SerializeToString())
        return self._open[event.trial]

    def _take(self, first: Event) -> None:
        """Make the folder ours, and delete what an earlier export of the run wrote there."""
        mark = self._folder / MARK
        if mark.is_file():
            shows = read_json(mark)
            if shows.get("began") != first.time:
                raise UserError(
                    f"{self._folder} shows another run, {shows.get('run')}; give another folder"
                )
        elif self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise UserError(
                f"{self._folder} exists and holds something else; it is not overwritten: give "
                "another folder"
            )
        for path in self._folder.glob(FILES):
            path.unlink()
        write_json(mark, {"run": self._facts.name, "began": first.time})
        self._ready = True


def _begin(ask: Event) -> Any:
    """The summary with a trial's settings. No list of all settings goes with it: where there is
    none, TensorBoard makes it from all trials' own."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(start_time_secs=ask.time)
    for name, value in settings(ask).items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        elif value is not None:
            info.hparams[name].string_value = value
    return _plugin("session_start_info", HParamsPluginData(session_start_info=info))


def _end(end: Event) -> Any:
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo

    wrong = end.data["state"] in (DIVERGED, FAILED, TOO_BIG)
    status = Status.Value("STATUS_FAILURE" if wrong else "STATUS_SUCCESS")
    info = SessionEndInfo(status=status, end_time_secs=end.time)
    return _plugin("session_end_info", HParamsPluginData(session_end_info=info))


def _plugin(what: str, content: Any) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    data = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    metadata = SummaryMetadata(plugin_data=data)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{what}", metadata=metadata)])
