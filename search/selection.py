"""Which rows and columns of the leaderboard are shown, and in which order.

A column is one of the leaderboard's, a field of the recipe ("lr", "augment.flip") or a title of the
terminal table ("time").
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from search.run_folder import FORMAT
from search.table import columns_of, known, model, plain_text
from spaces.errors import UserError, near

if TYPE_CHECKING:
    import pandas as pd

FILTER = re.compile(r"([^=<>]+)(<=|>=|<|>|=)(.*)", re.DOTALL)
COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def add_options(parser: argparse.ArgumentParser, shown: int) -> None:
    """What `selection_of` reads; `shown` rows are usual in a table."""
    group = parser.add_argument_group("rows and columns")
    add = group.add_argument
    add("--top", type=int, metavar="N",
        help=f"rows to show (default: {shown}, and all of them with --json and --csv)")  # fmt: skip
    add("--sort", default="", metavar="COLUMN", help="order; -COLUMN: the highest first")
    add("--filter", action="append", default=[], metavar="COLUMN=PATTERN",
        help="rows to keep; also COLUMN>NUMBER and COLUMN<NUMBER; may be repeated")  # fmt: skip
    add("--columns", default="", metavar="A,B,C", help="what to show; recipes' fields as well")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--csv", action="store_true", help="print CSV instead of a table")


def joined(argv: Sequence[str]) -> list[str]:
    """A command line with "--sort -score" as "--sort=-score": argparse would take the second word
    for an option."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sort" and word.startswith("-"):
            words[-1] = f"--sort={word}"
        else:
            words.append(word)
    return words


def selection_of(args: argparse.Namespace, others: Sequence[str]) -> "Selection":
    """What a command line selects. `others`: its options that ask for something else than a table.

    Raises UserError with all faults: an impossible value, options that do not go together.
    """
    faults: list[str] = []
    if args.top is not None and args.top < 1:
        faults.append(f"--top is {args.top}; it must be 1 or more")
    if args.json and args.csv:
        faults.append("--json and --csv are both given; leave one out")
    filters: list[Filter] = []
    for text in args.filter:
        try:
            filters.append(Filter.parse(text))
        except UserError as error:
            faults += error.faults
    names = ("top", "sort", "filter", "columns", "json", "csv")
    given = [f"--{name}" for name in names if getattr(args, name)]
    if others and given:
        faults.append(f"{others[0]} shows no table of trials; leave out {', '.join(given)}")
    if faults:
        raise UserError(faults)
    return Selection(
        form="json" if args.json else "csv" if args.csv else "table",
        top=args.top,
        sort=args.sort,
        filters=tuple(filters),
        columns=tuple(name.strip() for name in args.columns.split(",") if name.strip()),
    )


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A condition on one column."""

    column: str
    sign: str  # "=", or one of COMPARE
    value: str  # a pattern with * and ? for "=", else a number

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """From "backbone=resnet*" or "score>0.7". Raises UserError for anything else."""
        match = FILTER.fullmatch(text)
        if match is None:
            raise UserError(
                f"--filter {text!r} has no =, < or >; give COLUMN=PATTERN or COLUMN>NUMBER"
            )
        column, sign, value = (part.strip() for part in match.groups())
        if sign != "=" and _number(value) is None:
            raise UserError(f"--filter {text!r}: {value!r} is no number, and {sign} compares those")
        return cls(column=column, sign=sign, value=value)

    def passes(self, cell: Any) -> bool:
        """Whether a cell fulfils the condition. What is not known is like an empty text, and
        neither smaller nor greater than anything."""
        asked, got = _number(self.value), _number(cell)
        if self.sign != "=":
            assert asked is not None
            return got is not None and COMPARE[self.sign](got, asked)
        if asked is not None and got is not None:
            return got == asked
        return fnmatchcase(plain_text(cell).lower(), self.value.lower())


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a person asked for; nothing: a table of rows in order of merit."""

    form: str = "table"  # or "json", "csv"
    top: int | None = None  # rows; None: as many as is usual
    sort: str = ""  # a column; "-column": the highest first
    filters: tuple[Filter, ...] = ()
    columns: tuple[str, ...] = ()

    def apply(self, ranked: "pd.DataFrame") -> "pd.DataFrame":
        """The rows that pass, in the order asked for; rows that are equal there, and those without
        a value, which come last, stay in order of merit. `columns` and what else was named are
        columns of it, the leaderboard's own among them.

        Raises UserError for columns that do not exist.
        """
        asked = [("--sort", self.sort.removeprefix("-"))] if self.sort else []
        asked += [("--filter", f.column) for f in self.filters]
        asked += [("--columns", name) for name in self.columns]
        frame = _with_columns(ranked, asked)
        titles = _titles(frame)
        for f in self.filters:
            frame = frame[[f.passes(cell) for cell in frame[titles.get(f.column, f.column)]]]
        if self.sort:
            name = self.sort.removeprefix("-")
            cells = frame[titles.get(name, name)].tolist()
            frame = frame.iloc[_order(cells, descending=self.sort.startswith("-"))]
        return frame.reset_index(drop=True)

    def names(self, frame: "pd.DataFrame") -> list[str]:
        """The columns asked for, as `frame` calls them."""
        titles = _titles(frame)
        return [titles.get(name, name) for name in self.columns]


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields in one level, nested ones as "augment.flip"."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            fields |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            fields[name] = value
    return fields


def as_json(ordered: "pd.DataFrame", names: Sequence[str] = ()) -> str:
    """Rows as JSON, with these columns or all; what is not known is null, recipes are objects."""
    rows = []
    for row in ordered.to_dict("records"):
        plain: dict[str, Any] = {
            str(name): value if known(value) else None for name, value in row.items()
        }
        if plain.get("recipe"):
            plain["recipe"] = json.loads(plain["recipe"])
        rows.append({name: plain[name] for name in names} if names else plain)
    return json.dumps({"format": FORMAT, "rows": rows}, indent=1, default=_plain)


def as_csv(ordered: "pd.DataFrame", names: Sequence[str] = ()) -> str:
    """Rows as CSV, with these columns or all; what is not known is empty."""
    return (ordered[list(names)] if names else ordered).to_csv(index=False).rstrip("\n")


def _titles(frame: "pd.DataFrame") -> dict[str, str]:
    """What the terminal table calls a column -> its name."""
    names = list(frame.columns)
    return {c.title: c.name for c in columns_of(names) if c.title not in names}


def _with_columns(ranked: "pd.DataFrame", asked: Sequence[tuple[str, str]]) -> "pd.DataFrame":
    """`ranked` with the columns that were asked for, (option, name) each, and that it does not have
    yet. Raises UserError for names that neither it nor any recipe has."""
    frame = ranked
    if any(name == "model" for _, name in asked):
        frame = ranked.assign(model=[model(row) for row in ranked.to_dict("records")])
    titles = _titles(frame)
    missing = [(o, n) for o, n in asked if n not in frame.columns and n not in titles]
    if not missing:
        return frame
    recipes = [flat(json.loads(text)) if known(text) else {} for text in frame["recipe"]]
    fields = dict.fromkeys(name for recipe in recipes for name in recipe)
    if frame.empty:  # nobody can say what its recipes would have
        fields = dict.fromkeys(name for _, name in missing)
    everything = [*frame.columns, *titles, *fields]
    faults = [
        f"{option} names {name!r}, which no row has; {near(name, everything)}"
        for option, name in missing
        if name not in fields
    ]
    if faults:
        raise UserError(faults)
    added: dict[str, Any] = {n: [recipe.get(n) for recipe in recipes] for _, n in missing}
    return frame.assign(**added)


def _order(cells: Sequence[Any], descending: bool) -> list[int]:
    """Positions in the order of the cells' values: numbers before words, the unknown last."""
    there = [i for i, cell in enumerate(cells) if known(cell)]
    rest = [i for i, cell in enumerate(cells) if not known(cell)]

    def value(i: int) -> tuple[bool, float, str]:
        number = _number(cells[i])
        return number is None, number or 0.0, "" if number is not None else str(cells[i])

    return [*sorted(there, key=value, reverse=descending), *rest]


def _number(value: Any) -> float | None:
    """A number, or a text that is one; None for all else, and for what is not known."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own."""
    return value.item()
