"""Retention: whose checkpoints are deleted when they take more room than they may. Pure."""

from collections.abc import Mapping, Sequence, Set


def to_delete(
    sizes: Mapping[int, int], ranking: Sequence[int], protected: Set[int], keep_bytes: int
) -> list[int]:
    """Trials to delete, the worst first, until what is left takes at most `keep_bytes` or nothing
    may be deleted any more.

    `sizes` has the bytes of every trial that has checkpoints, `ranking` the finished trials, best
    first. What is not in the ranking is unfinished: it counts, but stays. By rank over the whole
    run and not by age or size, since the ensemble gains least from the worst.
    """
    left = sum(sizes.values())
    doomed = []
    for trial in reversed(ranking):
        if left <= keep_bytes:
            break
        if trial not in protected and sizes.get(trial, 0) > 0:
            doomed.append(trial)
            left -= sizes[trial]
    return doomed
