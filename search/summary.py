"""What a person sees at the end of a run: leaderboard, ensemble, scores, next steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search.setup import Setup

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from ensemble.build import BuildResult

TOP = 10


def tell(
    setup: Setup,
    frame: "pd.DataFrame",
    built: "BuildResult | None",
    changed: Sequence[dict[str, Any]],
) -> None:
    """`changed`: what each single change of an ablation did."""
    from rich.console import Console

    from search import ablation
    from search.leaderboard import show, show_memory

    console = Console()
    console.print()
    show(frame, TOP, console)
    show_memory(setup.run, console)
    if changed:
        ablation.write(setup.run.ablation, changed)
        ablation.show(changed, console)
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
            f"--out {setup.task.layout.submission.file}",
            soft_wrap=True,
        )


def _tell_truth(setup: Setup, built: "BuildResult", console: "Console") -> None:
    """A generated sample knows its test values: the three scores next to each other."""
    from ensemble.members import score_truth
    from ensemble.submission import SubmissionForm

    truth, choice = setup.data / setup.task.truth, built.choice
    if built.test_TN is None or not truth.is_file():
        return
    assert choice.pool.facts is not None
    ids = SubmissionForm.load(setup.run.form).test_ids
    thresholds_T = choice.blend.post.thresholds_T
    true = score_truth(built.test_TN, ids, truth, choice.pool.facts, thresholds_T).value
    nested = choice.nested
    console.print(
        f"\nensemble: OOF {choice.score:.4f} (optimistic), "
        f"nested {nested.mean:.4f} ± {nested.se:.4f}, true test {true:.4f}"
    )
