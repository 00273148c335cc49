"""Other tools' views of a run, from its journal: python -m search.export RUN --optuna FILE.

They can be made at any time, of a run that is under way as of an old one, and made again: what is
there already is brought up to date.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import DONE, UserError

if TYPE_CHECKING:
    from search.export.record import Facts
    from search.journal import Event


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.export", description="Show a run to TensorBoard, MLflow or Optuna."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder that search.run wrote")
    add("--tensorboard", metavar="DIR", help="write event files, a folder for each trial")
    add("--mlflow", metavar="URI", help="log to a server or sqlite:///FILE, a run for each trial")
    add("--optuna", metavar="FILE", help="write a study: SQLite (.db, .sqlite) or a journal file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not (args.tensorboard or args.mlflow or args.optuna):
        raise UserError("nothing to write; give --tensorboard DIR, --mlflow URI or --optuna FILE")

    from search.export.feed import need
    from search.export.record import Facts
    from search.journal import read_events
    from search.run_folder import RunFolder

    need(mlflow=bool(args.mlflow), tensorboard=bool(args.tensorboard))
    run = RunFolder.open(Path(args.run))
    facts = Facts.read(run)
    events, _ = read_events(run.journal)
    try:
        _write(args, facts, events)
    except OSError as error:
        raise UserError(f"it cannot be written: {error}; give another place") from None
    return DONE


def _write(args: argparse.Namespace, facts: "Facts", events: "Sequence[Event]") -> None:
    trials = sum(event.kind == "ask" for event in events)
    if args.tensorboard:
        from search.export.tensorboard import TensorBoard

        with closing(TensorBoard(Path(args.tensorboard), facts)) as board:
            board.write(events)
        print(f"{trials} trials; look at them: tensorboard --logdir {args.tensorboard}")
    if args.mlflow:
        from search.export.mlflow import MLflow

        with closing(MLflow(args.mlflow, facts)) as log:
            log.write(events)
        print(f"{trials} trials; they are in the experiment {facts.name} at {args.mlflow}")
    if args.optuna:
        from search.export.optuna import url_of, write_study

        path = Path(args.optuna)
        write_study(events, facts, path)
        print(f"{trials} trials; look at them: optuna-dashboard {url_of(path)}")
