"""Progress in the terminal: a line per finished trial, and a heartbeat with an ETA between them."""

import time
from collections.abc import Callable

from search.director import Director
from search.journal import Event
from search.terminal import duration, say
from search.trials import FINISHED, Trial

HEARTBEAT = 30.0  # seconds without a line before the next news is worth one
HEARTBEAT_SHARE = 0.02  # of the time since the start, so that a long night stays readable


class TrialLines:
    """Listens to the journal and prints calm lines, wrapped at 80 columns."""

    def __init__(self, director: Director, say: Callable[[str], None] = say) -> None:
        self._director, self._say = director, say
        self._started = self._last = time.monotonic()
        self._told: set[int] = set()  # trials that wait, of which there was a line
        self._ended_before = self._done()

    def hear(self, event: Event) -> None:
        trial = self._director.trials.all.get(event.trial)
        if trial is None:
            return
        if event.kind == "end" and event.trial not in self._told:
            self._line(self._of(trial, trial.state))
        elif event.kind == "pause" and self._director.rungs.waits_at(event.trial):
            # Most that wait are never taken up again: this is their line.
            self._told.add(event.trial)
            self._line(self._of(trial, "waits"))
        elif event.kind == "attempt":
            self._told.discard(event.trial)
        elif event.kind == "lost":
            self._line(f"trial {trial.number:>3} lost its worker, goes back into the queue")
        elif event.kind == "epochs" and self._silent():
            self._line(self._beat())

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

    def _done(self) -> int:
        """Trials that need nothing more, as far as is known."""
        return self._director.trials.ended() + len(self._director.rungs.waiting())

    def _count(self) -> str:
        total = self._director.plan.trials
        return f"{self._done()}/{total}" if total is not None else f"{self._done()}"

    def _beat(self) -> str:
        trials = self._director.trials
        best = trials.best()
        lead = f"best {best.score():.4f} (trial {best.number})" if best else "no trial finished yet"
        running = ", ".join(
            f"{t.number}: fold {len(t.folds) + 1}/{len(self._director.fold_order)}"
            for t in trials.running()[:3]
        )
        return f"{self._count()} done, {lead}; running {running}; {self._eta()}"

    def _eta(self) -> str:
        left = self._director.clock.left()
        total = self._director.plan.trials
        ended = self._done() - self._ended_before
        if total is not None:
            if ended < 2:
                return "ETA unknown yet"
            per_trial = (time.monotonic() - self._started) / ended
            left = min(left, per_trial * (total - self._ended_before - ended))
        return f"ETA {duration(left)}"

    def _silent(self) -> bool:
        now = time.monotonic()
        return now - self._last > max(HEARTBEAT, HEARTBEAT_SHARE * (now - self._started))

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        self._say(f"{time.strftime('%H:%M:%S')} {text}")
