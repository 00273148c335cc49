"""Arguments of metrics: what each may be."""

from collections.abc import Callable, Mapping
from typing import Any

from spaces.errors import near


def _number(value: object, low: float, high: float) -> bool:
    """Whether it is a number between two limits; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


_GENES = "a whole number of genes, 1 or more"
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "heg_n": (f"it must be {_GENES}", lambda v: type(v) is int and v >= 1),
    "hvg_n": (f"it must be {_GENES}", lambda v: type(v) is int and v >= 1),
    "hvg_stat": ("known: var, cv", lambda v: v in ("var", "cv")),
    "nan": ("known: zero, drop", lambda v: v in ("zero", "drop")),
    "multiclass": ("it must be true or false", lambda v: isinstance(v, bool)),
    "presence_weight": ("it must be a share from 0 to 1", lambda v: _number(v, 0, 1)),
    "min_positives": (
        "it must be a whole number of rows, 1 or more",
        lambda v: type(v) is int and v >= 1,
    ),
    "eps": (
        "it must be a small probability, above 0 and at most 0.1",
        lambda v: _number(v, 0, 0.1) and v > 0,
    ),
    "threshold": (
        "it must be 'fit' or a probability from 0 to 1",
        lambda v: v == "fit" or _number(v, 0, 1),
    ),
}


def argument_faults(name: str, defaults: Mapping[str, Any], args: Mapping[str, Any]) -> list[str]:
    """One sentence for each argument that metric `name` does not have or cannot take."""
    faults = [
        f"metric {name} has no argument {key!r}; "
        + (near(key, defaults) if defaults else "it takes none")
        for key in args
        if key not in defaults
    ]
    for key, value in args.items():
        if key in defaults:
            rule, holds = _RULES[key]
            if not holds(value):
                faults.append(f"{key} is {value!r}; {rule}")
    if args.get("multiclass") is True and "threshold" in defaults:
        threshold = args.get("threshold", defaults["threshold"])
        if threshold != defaults["threshold"]:
            faults.append(
                f"threshold is {threshold!r} and multiclass is true; the class with the highest "
                "prediction is chosen and no threshold is used: leave threshold out"
            )
    return faults
