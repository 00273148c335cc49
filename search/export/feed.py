"""A run shown to other tools while it is under way."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from search.export.record import Facts
from search.journal import Event
from search.run_folder import RunFolder
from spaces.errors import UserError

EVERY = 5.0  # seconds between two looks for news
PATIENCE = 20.0  # seconds that the end of a run waits for what is not written yet


class Exporter(Protocol):
    """Writes a run's events somewhere."""

    def write(self, events: Sequence[Event]) -> None:
        """These events follow those of the last call. May raise anything: then the next call, with
        newer events or none, writes these as well."""

    def close(self) -> None: ...


class Feed:
    """Hands events on in a thread of its own: what they are written to, a disk or a server, may be
    slow or away, and the search goes on."""

    def __init__(
        self, name: str, make: Callable[[], Exporter], tell: Callable[[str], None], again: str
    ) -> None:
        """`make` is called in the thread. `again`: the command that makes up for what is lost."""
        self._name, self._make, self._tell, self._again = name, make, tell, again
        self._news: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._whole = True  # all that was heard is written
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Ask it to end, soon."""
        self._closing.set()

    def join(self, seconds: float) -> None:
        """Wait for its end, at most so long; tell when it has not got all."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        if self._thread.is_alive() or not self._whole:
            self._tell(f"warning: {self._name} has not got all of the run; later: {self._again}")

    def hear(self, event: Event) -> None:
        self._news.put(event)

    def _loop(self) -> None:
        exporter: Exporter | None = None
        last = False
        while not last:
            last = self._closing.wait(EVERY)
            try:
                exporter = exporter or self._make()
                exporter.write(self._heard())
                if last:
                    exporter.close()
            except Exception as error:
                if self._whole:
                    first = str(error).splitlines()[0] if str(error) else repr(error)
                    self._tell(f"warning: {self._name} is left behind, the search goes on: {first}")
                self._whole = False
            else:
                self._whole = True

    def _heard(self) -> list[Event]:
        events: list[Event] = []
        while not self._news.empty():
            events.append(self._news.get())
        return events


def close_all(feeds: Sequence[Feed], at_once: bool = False) -> None:
    """End them, within PATIENCE for all together, or at once."""
    for feed in feeds:
        feed.close()
    until = time.monotonic() + (0.0 if at_once else PATIENCE)
    for feed in feeds:
        feed.join(max(0.0, until - time.monotonic()))


def need(*, mlflow: bool, tensorboard: bool) -> None:
    """Raises UserError when a package is not installed that is asked for."""
    wanted = (
        (mlflow, "mlflow", "--mlflow needs MLflow's client: pip install 'rungfold[mlflow]'"),
        (tensorboard, "tensorboardX",
         "--tensorboard needs tensorboardX: pip install 'rungfold[search]'"),
    )  # fmt: skip
    if faults := [fault for asked, name, fault in wanted if asked and find_spec(name) is None]:
        raise UserError(faults)


def feeds(
    run: RunFolder, mlflow: str | None, tensorboard: bool, tell: Callable[[str], None]
) -> list[Feed]:
    """What --mlflow URI and --tensorboard ask for."""
    found = []
    if tensorboard:
        folder = run.tensorboard

        def board() -> Any:
            from search.export.tensorboard import TensorBoard

            return TensorBoard(folder, Facts.read(run))

        again = f"python -m search.export {run.root} --tensorboard {folder}"
        found.append(Feed("TensorBoard", board, tell, again))
    if mlflow is not None:

        def log() -> Any:
            from search.export.mlflow import MLflow

            return MLflow(mlflow, Facts.read(run))

        again = f"python -m search.export {run.root} --mlflow {mlflow}"
        found.append(Feed("MLflow", log, tell, again))
    return found
