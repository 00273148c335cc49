"""How noisy scores are: from epoch to epoch, and from fold to fold. Pure."""

import math
from collections.abc import Sequence


def epoch_noise(scores: Sequence[float], recent: int = 5) -> float:
    """Standard deviation of a score's jitter from epoch to epoch, from the second differences of
    the last `recent` ones, in which a steady rise cancels; NaN with fewer than three scores."""
    last = [s for s in scores[-recent:] if math.isfinite(s)]
    bends = [a - 2 * b + c for a, b, c in zip(last, last[1:], last[2:], strict=False)]
    # The second difference of independent noise has six times its variance.
    return math.sqrt(sum(b * b for b in bends) / len(bends) / 6) if bends else math.nan


def fold_noise(scores: Sequence[Sequence[float]]) -> float:
    """Standard deviation of what a fold's score of one trial says about that fold alone: what is
    left after the trial's mean and the fold's mean (the interaction in a two-way layout).

    `scores`: for each trial its scores on the same folds, at least two; NaN when there are too few.
    """
    trials, folds = len(scores), min(map(len, scores), default=0)
    if trials < 2 or folds < 2:
        return math.nan
    rows = [[float(s) for s in row[:folds]] for row in scores]
    trial_means = [sum(row) / folds for row in rows]
    fold_means = [sum(column) / trials for column in zip(*rows, strict=True)]
    whole = sum(trial_means) / trials
    squares = sum(
        (rows[t][f] - trial_means[t] - fold_means[f] + whole) ** 2
        for t in range(trials)
        for f in range(folds)
    )
    return math.sqrt(squares / ((trials - 1) * (folds - 1)))
