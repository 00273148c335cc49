"""python -m search.run TASK: search, leaderboard, ensemble, submission. The top floor."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.options import add_task_options, gpu_share
from spaces.errors import DONE, INTERRUPTED, UserError, run_main

if TYPE_CHECKING:
    from search.setup import Setup

STARTED = time.monotonic()  # --hours counts from here
WITH_RESUME = ("--extend", "--force", "--ablate")
SHOWING = ("--quiet", "--tensorboard", "--mlflow")
ALLOWED = ("--resume", "--refit", *SHOWING, *WITH_RESUME)  # with --resume; all else is the run's


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m search.run",
        description="Search models for an image task; leaderboard, ensemble, submission.",
    )  # fmt: skip
    add = p.add_argument
    add("task", nargs="?", metavar="TASK", help="a known task, or a path to your own task file")
    add("--data", metavar="DIR|URL", help="the data folder; without it: the task's own sample")
    add("--out", metavar="DIR|URL",
        help="the run's folder (default: runs/TASK-TIME), or where it is copied to")  # fmt: skip
    add("--trials", type=int, metavar="N", help="how many recipes to try (default: 16)")
    add("--hours", type=float, metavar="H", help="stop after this long, from start to exit")
    add("--epochs", type=int, metavar="E", help="scheduled epochs per fold (default: the plan's)")
    add("--folds", type=int, metavar="K", help="folds (default: 5, or one per group if fewer)")
    add("--groups", default="auto", metavar="COLUMN|FILE.csv[:COLUMN]|auto|none",
        help="rows that belong together stay in one fold (default: auto)")  # fmt: skip
    add("--group-duplicates", action="store_true",
        help="join groups that share near-duplicate images, instead of refusing them")  # fmt: skip
    add("--crop-borders", action="store_true", help="crop borders of one colour")
    add("--mask-captions", action="store_true", help="paint over text burnt into images")
    add("--image-size", type=int, nargs="+", metavar="N", help="sides in pixels to search")
    add("--backbone", nargs="+", metavar="NAME", help="timm models to search")
    add("--gpus-per-trial", type=gpu_share, metavar="G|auto",
        help="share of a GPU, or 2, 3 ... for each trial; auto: what fits")  # fmt: skip
    add("--cpus-per-trial", type=int, metavar="C", help="CPU cores of each trial")
    add("--compile", action="store_true",
        help="torch.compile training: slow to start, pays in long trials on GPUs")  # fmt: skip
    add("--address", metavar="ADDR", help="a Ray cluster (auto: the one this host belongs to)")
    add("--weights", default="auto", metavar="auto|pretrained|random|DIR",
        help="where pretrained weights come from (default: auto)")  # fmt: skip
    add("--init-from", metavar="RUN|FILE", help="start from the weights of your own models")
    add("--cache", metavar="DIR", help="for decoded images (default: the user's cache folder)")
    add("--seed", type=int, default=0, metavar="S", help="every random choice hangs on it")
    add("--skip-bad", action="store_true", help="leave out rows whose image cannot be read")
    add("--keep-gb", type=float, metavar="G",
        help="delete checkpoints of the worst trials beyond G gigabytes")  # fmt: skip
    add("--warm-start", nargs="+", metavar="RUN", help="begin with what earlier runs learned")
    add("--resume", metavar="RUN", help="go on with a run that was interrupted (folder or URL)")
    add("--extend", type=int, metavar="N", help="with --resume: try N more recipes")
    add("--ablate", nargs="*", metavar="NAME",
        help="with --resume: change the best recipe one parameter at a time")  # fmt: skip
    add(
        "--force",
        action="store_true",
        help="with --resume: go on although the task file has changed",
    )
    add("--refit", action="store_true",
        help="train the ensemble's recipes once more, on all rows (no OOF)")  # fmt: skip
    add("--dry-run", action="store_true", help="check the data, print the plan, start nothing")
    add("--quiet", action="store_true", help="print nothing but the result, and warnings")
    add("--tensorboard", action="store_true", help="write event files to OUT/tensorboard")
    add("--mlflow", metavar="URI", help="log trials to a server or sqlite:///FILE")
    add_task_options(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    check_resume(args, given(argv))

    from search.export.feed import need
    from search.prepare import prepare
    from search.quiet import quiet
    from search.setup import reopen

    need(mlflow=args.mlflow is not None, tensorboard=args.tensorboard)
    with quiet(args.quiet and not args.dry_run) as say:
        setup = reopen(args.resume, args.force) if args.resume else prepare(args, say)
    return DONE if setup is None else search(setup, args)


def given(argv: Sequence[str] | None) -> list[str]:
    """The options that the command line names, also those whose value is the default."""
    names, unset = vars(parser().parse_args(argv)), object()
    del names["task"]
    found = parser().parse_args(argv, argparse.Namespace(**dict.fromkeys(names, unset)))
    return [f"--{name.replace('_', '-')}" for name in names if getattr(found, name) is not unset]


def check_resume(args: argparse.Namespace, given: Sequence[str]) -> None:
    """Raises UserError where --resume does not agree with the rest of the command line."""
    if (args.task is None) == (args.resume is None):
        raise UserError("give either a TASK or --resume RUN; `--help` shows both")
    faults = []
    if args.resume is None:
        faults += [f"{name} goes with --resume RUN" for name in given if name in WITH_RESUME]
    elif others := [name for name in given if name not in ALLOWED]:
        faults.append(f"--resume takes the run's own settings; leave out {', '.join(others)}")
    if args.refit and args.hours is not None:
        faults.append(
            "--refit takes as long as it takes, which --hours does not allow: when the run is "
            "over, give --resume RUN --refit"
        )
    if args.extend is not None and args.extend <= 0:
        faults.append(f"--extend is {args.extend}; it must be greater than 0")
    if faults:
        raise UserError(faults)


def search(setup: "Setup", args: argparse.Namespace) -> int:
    """Run trials until the plan, which --extend and --ablate make longer, is fulfilled; tell what
    came of it."""
    from search.compose import Session
    from search.export.feed import feeds
    from search.finish import report
    from search.quiet import quiet
    from search.summary import tell
    from search.terminal import alert

    with quiet(args.quiet):
        shown = feeds(setup.run, args.mlflow, args.tensorboard, alert)
        session = Session(setup, STARTED, args.extend, args.ablate, shown)
    with session:
        with quiet(args.quiet):
            interrupted = session.run_trials()
            built = session.publish()
        tell(setup, session.frame(), built, session.ablations())
        report(setup.run)  # after the result, which nobody should wait for
        if args.refit and built is not None and not interrupted:
            from search.refit import refit

            with quiet(args.quiet):
                folder = refit(setup, built, session.director.trials.all)
            print(f"refitted: {folder}")
    if interrupted:
        print(f"\ninterrupted; go on with: python -m search.run --resume {setup.run.root}")
    return INTERRUPTED if interrupted else DONE


if __name__ == "__main__":
    run_main(main)
