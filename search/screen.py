"""What a terminal shows of a run that is under way."""

import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from search.results import results_frame
from search.run_folder import RunFolder, read_json
from search.table import bytes_text, columns_of, fitted
from search.terminal import duration
from search.trials import DIVERGED, FAILED, FINISHED, PRUNED, RUNNING, STOPPED, TOO_BIG, Trials
from search.watch import SILENCE, WAITING, Lease, Watch
from spaces.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

TOP = 5  # trials
AROUND = 15  # lines of the screen beside the workers'
ORDER = (RUNNING, WAITING, FINISHED, PRUNED, STOPPED, DIVERGED, FAILED, TOO_BIG)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A moment of a run. Its clocks go on, so that it may be drawn again before there is news."""

    title: str
    at: float  # time.monotonic() of the moment
    elapsed: float  # seconds
    left: float | None  # seconds; None: not known
    limit: bool  # `left` is a limit, and may be less
    silent: float  # seconds since the newest event
    trials: str
    best: str
    ensemble: str
    leases: Sequence[Lease]
    folds: int
    top: Sequence[Mapping[Hashable, Any]]  # rows of the leaderboard, the best first
    names: Sequence[str]  # its columns

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.text import Text

        yield Text(self.title, style="bold", no_wrap=True, overflow="crop")
        yield self._clock()
        for what, words in (
            ("trials", self.trials),
            ("best so far", self.best),
            ("ensemble so far", self.ensemble),
        ):
            yield Text(f"{what:<16}{words}", no_wrap=True, overflow="crop")
        if self.leases:
            room = max(1, console.height - AROUND)
            shown = self.leases if len(self.leases) <= room else self.leases[: room - 1]
            yield ""
            yield self._workers(shown)
            if len(shown) < len(self.leases):
                yield f"and {len(self.leases) - len(shown)} workers more"
        if self.top:
            yield ""
            columns = [column for column in columns_of(self.names) if column.name != "rank"]
            yield fitted(columns, self.top, options.max_width)

    def _clock(self) -> "Table":
        """Elapsed and left, beside a bar where both are known."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        passed = time.monotonic() - self.at
        elapsed = self.elapsed + passed
        words = f"{duration(elapsed)} elapsed, "
        if self.left is None:
            words += "? left"
        else:
            left = max(0.0, self.left - passed)
            words += f"{'at most' if self.limit else 'about'} {duration(left)} left"
        if self.silent + passed > SILENCE:
            words += f", last news {duration(self.silent + passed)} ago"
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True)
        cells: list[RenderableType] = [Text(words)]
        if self.left is not None:
            grid.add_column(ratio=1)
            cells.append(ProgressBar(total=self.elapsed + self.left, completed=elapsed))
        grid.add_row(*cells)
        return grid

    def _workers(self, leases: Sequence[Lease]) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        # Where a worker is tells something only when there are several places.
        hosts = len({lease.host for lease in leases if lease.host}) > 1
        titles = ["trial", "model", "px", "fold", "epoch", "images/s", "memory"]
        for title in [*titles, "host"] if hosts else titles:
            left = title in ("model", "host")
            table.add_column(
                title, justify="left" if left else "right", no_wrap=True, overflow="crop",
                max_width=28 if left else None,
            )  # fmt: skip
        for lease in leases:
            trial, rate = lease.trial, lease.images_per_second
            cells = [
                f"{trial.number:04d}", trial.model, str(trial.image_size),
                f"{lease.fold}/{self.folds}", f"{lease.epoch}/{trial.epochs}",
                "" if rate is None else f"{rate:,.0f}",
                bytes_text(lease.memory) if lease.memory else "",
            ]  # fmt: skip
            table.add_row(*map(Text, [*cells, lease.host] if hosts else cells))
        return table


class Painter:
    """Makes screens of a run from its folder and a watch on it."""

    def __init__(self, run: RunFolder) -> None:
        about = read_json(run.run)
        self._run = run
        self._title = f"{about['task']}  {run.root}"
        self._baselines = {b["name"]: fmean(b["fold_scores"]) for b in about.get("baselines", ())}
        self._ensemble: tuple[int, str] = (0, "")  # of which file's time, and what it says

    def screen(self, watch: Watch, now: float) -> Screen:
        """At `now`, seconds since 1970 by the journal's clock."""
        if watch.over(now):
            now = watch.last  # its clocks have stopped
        best = [trial for trial in watch.best(TOP) if not math.isnan(trial.score())]
        part = Trials()
        part.all = {trial.number: trial for trial in best}
        top = results_frame(part, (), watch.fold_order)
        return Screen(
            title=self._title,
            at=time.monotonic(),
            elapsed=watch.elapsed(now),
            left=watch.left(now),
            limit=watch.plan.hours is not None,
            silent=max(0.0, now - watch.last),
            trials=_counts(watch),
            best=self._best(watch),
            ensemble=self._nested(),
            leases=watch.leases(),
            folds=len(watch.fold_order),
            top=top.to_dict("records"),
            names=list(top.columns),
        )

    def _best(self, watch: Watch) -> str:
        best = watch.trials.best()
        words = "none is finished yet"
        if best is not None:
            words = f"{best.score():.4f}  trial {best.number:04d}, {best.model}"
        if self._baselines:
            name = max(self._baselines, key=lambda name: self._baselines[name])
            words += f"  ({name} {self._baselines[name]:.4f})"
        return words

    def _nested(self) -> str:
        """The nested score of the ensemble as it was built last."""
        path = self._run.ensemble / "ensemble.json"
        try:
            time_ns = path.stat().st_mtime_ns
            if self._ensemble[0] != time_ns:
                self._ensemble = time_ns, _nested_words(read_json(path))
        except (OSError, UserError):  # none yet, or just being replaced
            pass
        return self._ensemble[1] or "none is built yet"


def _counts(watch: Watch) -> str:
    counts = watch.counts()
    total = watch.plan.trials
    begun = f"{len(watch.trials.all)} of {total}" if total else str(len(watch.trials.all))
    states = [f"{counts[state]} {state}" for state in ORDER if counts[state]]
    return f"{begun} begun: {', '.join(states)}" if states else f"{begun} begun"


def _nested_words(report: Mapping[str, Any]) -> str:
    """From ensemble.json."""
    for row in report.get("scores", ()):
        if row["name"] == "ensemble, nested":
            members = len(report["members"])
            who = f"{members} member{'s' if members > 1 else ''}"
            return f"{row['score']:.4f} ± {row['standard_error']:.4f} nested, {who}"
    return ""
