"""Tables and a figure of what the arms reached, and when."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from anytime_arms.arms import ARMS, OURS, Result
from anytime_arms.hand_ins import ENSEMBLE, SINGLE

TENTHS = tuple(i / 10 for i in range(1, 11))
ASKED = 1 / 3  # of the peer's time


def standing(result: Result, kind: str, share: float) -> tuple[float, float]:
    """What an arm would hand in after a share of its time: the score that it knows, NaN before
    there is any, and the true one, which is then the mean profile's."""
    past = [p for p in result.points if p.kind == kind and p.seconds <= share * result.minutes * 60]
    return (past[-1].known, past[-1].test) if past else (math.nan, result.mean_profile)


def passing(ours: Result, peer: Result) -> tuple[float, float]:
    """Shares of the time after which our ensemble's true score is at least the peer's final one:
    for the first time, and for good; infinite when never."""
    goal = standing(peer, ENSEMBLE, 1.0)[1]
    points = [p for p in ours.points if p.kind == ENSEMBLE]
    first, good = math.inf, math.inf
    for point in points:
        share = point.seconds / (ours.minutes * 60)
        if point.test >= goal:
            first, good = min(first, share), min(good, share)
        else:
            good = math.inf
    return first, good


def over_time(results: Sequence[Result]) -> str:
    """A block for each data set and seed."""
    lines = []
    for data_set, seed in sorted({(r.data_set, r.seed) for r in results}):
        some = _of(results, data_set, seed)
        lines += [f"{some[0].title}, seed {seed}", _head("arm, what, score")]
        for result in some:
            for kind in (SINGLE, ENSEMBLE):
                known, test = zip(*(standing(result, kind, s) for s in TENTHS), strict=True)
                lines.append(_row(f"{result.arm:9}{kind:9}known", known))
                lines.append(_row(f"{result.arm:9}{kind:9}test", test))
            lines.append(
                f"  {result.arm}: {result.begun} trials begun, {result.finished} whole; "
                f"gone after {result.exit:.0f} s"
            )
        lines.append("")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """Medians over seeds, and when ours passes the others' final scores."""
    lines = []
    for data_set in sorted({r.data_set for r in results}):
        lines += [f"{data_set}: median over seeds of the true test score", _head("arm, what")]
        for arm in ARMS:
            some = [r for r in results if (r.data_set, r.arm) == (data_set, arm)]
            for kind in (SINGLE, ENSEMBLE) if some else ():
                shares = [median(standing(r, kind, s)[1] for r in some) for s in TENTHS]
                lines.append(_row(f"{arm:9}{kind}", shares))
        lines.append("")
    return "\n".join(lines) + "\n" + _passings(results)


def _passings(results: Sequence[Result]) -> str:
    lines = [
        "share of the time after which our hand-in scores what the peer's scored at its end",
        f"  {'data set':10}{'seed':>6}  {'peer':10}{'its end':>10}{'first':>9}{'for good':>10}",
    ]
    verdicts = []
    for data_set in sorted({r.data_set for r in results}):
        for arm in ARMS[1:]:
            found = []
            for seed in sorted({r.seed for r in results if r.data_set == data_set}):
                by_arm = {r.arm: r for r in _of(results, data_set, seed)}
                if not {OURS, arm} <= by_arm.keys():
                    continue
                first, good = passing(by_arm[OURS], by_arm[arm])
                found.append((first, good))
                goal = standing(by_arm[arm], ENSEMBLE, 1.0)[1]
                lines.append(
                    f"  {data_set:10}{seed:>6}  {arm:10}{goal:10.4f}{_share(first):>9}"
                    f"{_share(good):>10}"
                )
            if found:
                first, good = (median(values) for values in zip(*found, strict=True))
                verdicts.append(
                    f"  {data_set:10} {arm:10} median {_share(first)}, for good {_share(good)}; "
                    f"asked: at most {ASKED:.0%}"
                )
    return "\n".join([*lines, *verdicts]) if verdicts else ""


def draw(results: Sequence[Result], path: Path) -> None:
    """True test score of the hand-in against time: each seed thin, the median thick."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = sorted({r.data_set for r in results})
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(6 * len(sets), 4.5), squeeze=False, layout="constrained"
    )
    shares = [i / 300 for i in range(301)]
    for panel, data_set in zip(panels[0], sets, strict=True):
        for number, arm in enumerate(ARMS):
            some = [r for r in results if (r.data_set, r.arm) == (data_set, arm)]
            if not some:
                continue
            minutes = [share * some[0].minutes for share in shares]
            curves = [[standing(r, ENSEMBLE, share)[1] for share in shares] for r in some]
            for curve in curves:
                panel.step(minutes, curve, color=f"C{number}", lw=0.6, alpha=0.6, where="post")
            middle = [median(values) for values in zip(*curves, strict=True)]
            panel.step(minutes, middle, color=f"C{number}", lw=2.2, where="post", label=arm)
        panel.set(title=data_set, xlabel="minutes", ylabel="true test score of the hand-in")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _of(results: Iterable[Result], data_set: str, seed: int) -> list[Result]:
    some = [r for r in results if (r.data_set, r.seed) == (data_set, seed)]
    return sorted(some, key=lambda r: ARMS.index(r.arm))


def _head(what: str) -> str:
    return f"  {what:25}" + "".join(f"{share:7.0%}" for share in TENTHS)


def _row(what: str, values: Iterable[float]) -> str:
    cells = (f"{'-':>7}" if math.isnan(value) else f"{value:7.3f}" for value in values)
    return f"  {what:25}" + "".join(cells)


def _share(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0%}"
