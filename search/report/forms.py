"""How numbers are written in the report."""

import math
import shlex


def score(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    return f"{value:+.4f}"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def short(value: float) -> str:
    """Three digits, as people write them: 0.008, 12.5, 1e-05."""
    return f"{value:.3g}"


def whole(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")  # a narrow space between thousands


def size(value: float) -> str:
    """Of bytes."""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def seconds(value: float) -> str:
    """ "7.1 s", "12 min 5 s", "3 h 20 min"."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def value(found: object) -> str:
    """A recipe's value."""
    if isinstance(found, bool) or not isinstance(found, float):
        return str(found)
    return short(found) if math.isfinite(found) else str(found)


def some(names: list[str], shown: int = 8) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def plural(number: int, noun: str) -> str:
    """ "1 fold", "3 folds"."""
    return f"{whole(number)} {noun}{'' if number == 1 else 's'}"


def group(name: str) -> str:
    """A group; those that were found in the images are called "group 1" already."""
    return name if name.startswith("group ") else f"group {name}"


def member(name: str) -> str:
    """A member of the ensemble: most are trials and named by their number."""
    return f"trial {int(name)}" if name.isdigit() else name


def command(module: str, *words: str) -> str:
    """A command line as it is typed."""
    return f"python -m {module} {shlex.join(words)}"
