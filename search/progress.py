"""Progress where nobody watches a terminal: a line per ended trial, and a heartbeat with the time
left between them."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from search.journal import Event
from search.terminal import duration, say
from search.trials import FINISHED, Trial
from search.watch import SILENCE, Watch

HEARTBEAT = 30.0  # seconds without a line before the next news is worth one
HEARTBEAT_SHARE = 0.02  # of the time since the start, so that a long night stays readable


class TrialLines:
    """Listens to the journal, after the watch, and prints calm lines, wrapped at 80 columns."""

    def __init__(
        self, watch: Watch, say: Callable[[str], None] = say, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock`: seconds since 1970, as the journal has them."""
        self._watch, self._say, self._clock = watch, say, clock
        self._started = self._last = time.monotonic()
        self._told: set[int] = set()  # trials that wait, of which there was a line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        pass

    def hear(self, event: Event) -> None:
        trial = self._watch.trials.all.get(event.trial)
        if trial is None:
            return
        if event.kind == "end" and event.trial not in self._told:
            self._line(self._of(trial, trial.state))
        elif event.kind == "pause" and event.trial in self._watch.waiting:
            # Most that wait are never taken up again: this is their line.
            self._told.add(event.trial)
            self._line(self._of(trial, "waits"))
        elif event.kind == "attempt":
            self._told.discard(event.trial)
        elif event.kind == "lost":
            self._line(f"trial {trial.number:>3} lost its worker, goes back into the queue")
        elif event.kind == "epochs" and self.silent(HEARTBEAT):
            self.beat()

    def beat(self) -> None:
        """Print how far the run is."""
        watch = self._watch
        best = watch.trials.best()
        lead = f"best {best.score():.4f} (trial {best.number})" if best else "no trial finished yet"
        leases = [
            f"{lease.trial.number}: fold {lease.fold}/{len(watch.fold_order)}"
            for lease in watch.leases()[:3]
        ]
        running = f"running {', '.join(leases)}" if leases else "nothing running"
        quiet = self._clock() - watch.last
        silence = f"; last news {duration(quiet)} ago" if quiet > SILENCE else ""
        self._line(f"{self._count()} done, {lead}; {running}; {self._eta()}{silence}")

    def _of(self, trial: Trial, state: str) -> str:
        score = f"{trial.score():.4f}" if trial.state == FINISHED else self._last_score(trial)
        return (
            f"trial {trial.number:>3} {state:<9.9} {score} {trial.backbone:<18.18} "
            f"{trial.image_size:>3} px {trial.seconds:>4.0f} s  {self._count()}"
        )

    @staticmethod
    def _last_score(trial: Trial) -> str:
        points = list(trial.curve.values())
        return f"{points[-1]['score']:.4f}" if points else "   -  "

    def _count(self) -> str:
        total, done = self._watch.plan.trials, self._watch.done()
        return f"{done}/{total}" if total is not None else f"{done}"

    def _eta(self) -> str:
        left = self._watch.left(self._clock())
        return "ETA ?" if left is None else f"ETA {duration(left)}"

    def silent(self, seconds: float) -> bool:
        """Whether there was no line for so long, and for a share of the time since the start."""
        now = time.monotonic()
        return now - self._last > max(seconds, HEARTBEAT_SHARE * (now - self._started))

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        self._say(f"{time.strftime('%H:%M:%S')} {text}")
