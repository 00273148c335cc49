"""A run in a notebook: `from search import Run; run = Run("runs/gene_expr")`.

Everything is read from the run's files when it is asked for, so a run that is under way may be
looked at again and again. Shapes: T outputs, N rows.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from search.journal import read_events
from search.run_folder import RunFolder, read_json
from search.trials import Trials

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure


class Run:
    """A run's folder. Raises UserError when it is none, or is of another format version."""

    def __init__(self, path: Path | str) -> None:
        self.folder = RunFolder.open(Path(path).expanduser())
        self.facts = read_json(self.folder.run)  # what was asked, the plan, versions

    def __repr__(self) -> str:
        return f"Run({str(self.folder.root)!r})"

    def leaderboard(self) -> "pd.DataFrame":
        """A row per trial and baseline in order of merit, with the columns of leaderboard.csv and
        `note`."""
        from search.leaderboard import rank
        from search.notes import read_notes
        from search.results import frame_of

        ranked, notes = rank(frame_of(self.folder)), read_notes(self.folder)
        return ranked.assign(note=[notes.get(trial, "") for trial in ranked["trial"]])

    def oof(self, trial: int) -> "pd.DataFrame":
        """(N, T) out-of-fold predictions of a finished trial, by (id, fold): probabilities, or the
        targets' own units. Raises UserError when the trial has not finished all folds."""
        import pandas as pd

        from search.data.folds import read_folds
        from search.oof import read_oof

        folds, names = read_folds(self.folder.folds), self.facts["target_names"]
        pred_TN, _ = read_oof(self.folder.oof(trial), folds, names)
        rows = pd.MultiIndex.from_arrays([folds.ids, folds.fold], names=["id", "fold"])
        return pd.DataFrame(pred_TN.T, index=rows, columns=list(names))

    def curves(self) -> "pd.DataFrame":
        """A row per trial, fold and epoch that was reported, with score, loss, seconds, images per
        second and peak memory (bytes)."""
        import pandas as pd

        columns = ["trial", "fold", "epoch", "score", "loss", "seconds", "images_per_second",
                   "peak_memory"]  # fmt: skip
        points = [
            {"trial": trial.number, **point}
            for trial in Trials.of(read_events(self.folder.journal)[0]).all.values()
            for point in trial.curve.values()
        ]
        return pd.DataFrame(points, columns=columns).sort_values(columns[:3], ignore_index=True)

    def figure(self, name: str) -> "Figure":
        """A picture of the report: "curves", "rungs", ... Raises UserError for a name that the run
        has no picture of; it lists those that it has."""
        from search.report.figures import figure

        return figure(self.folder, name)

    def note(self, trial: int, text: str) -> None:
        """Keep a note on a trial; an empty text removes it. Raises UserError when the run has no
        such trial."""
        from search.notes import write_note

        write_note(self.folder, trial, text)
