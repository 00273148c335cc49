"""What a person sees at the end of a run: leaderboard, ensemble, scores, next steps."""

from typing import TYPE_CHECKING

from search.setup import Setup

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from ensemble.build import BuildResult

TOP = 10


def tell(setup: Setup, frame: "pd.DataFrame", built: "BuildResult | None") -> None:
    from rich.console import Console

    from search.leaderboard import show

    console = Console()
    console.print()
    show(frame, TOP, console)
    if built is None:
        console.print("\nno trial finished all folds: there is no ensemble yet")
    else:
        from ensemble.show import show as show_ensemble

        console.print()
        show_ensemble(built.choice)
        for what, path in (("bundle", built.bundle.root), ("submission", built.submission)):
            if path is not None:
                console.print(f"{what}: {path}", soft_wrap=True)
        _tell_truth(setup, built, console)
    run = setup.run.root
    console.print(f"\nrun folder: {run}", soft_wrap=True)
    console.print(f"leaderboard: python -m search.leaderboard {run}", soft_wrap=True)
    if built is not None:
        console.print(f"compare: python -m ensemble.build {run}", soft_wrap=True)
        data = "DIR" if built.submission is None else setup.data
        console.print(
            f"predict: python -m ensemble.predict {setup.run.ensemble} --data {data} "
            "--out submission.csv",
            soft_wrap=True,
        )


def _tell_truth(setup: Setup, built: "BuildResult", console: "Console") -> None:
    """A generated sample knows its test values: the three scores next to each other."""
    from ensemble.members import score_submission

    truth = setup.data / setup.task.truth
    if built.submission is None or not truth.is_file():
        return
    assert built.choice.pool.facts is not None
    true = score_submission(built.submission, truth, built.choice.pool.facts).value
    nested = built.choice.nested
    console.print(
        f"\nensemble: OOF {built.choice.score:.4f} (optimistic), "
        f"nested {nested.mean:.4f} ± {nested.se:.4f}, true test {true:.4f}"
    )
