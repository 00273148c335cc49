"""Folds: which rows are validated together. Made once per run, saved, then only read.

Shapes: N rows, K folds. `fold_N` holds the fold of each row, 0 to K - 1.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from search.data.columns import (
    as_text,
    need_columns,
    padded,
    read_frame,
    read_header,
    repeated,
    some,
)
from search.data.fold_labels import label_counts as label_counts
from search.data.fold_labels import label_faults as label_faults
from search.data.fold_labels import label_warnings as label_warnings
from search.data.stratify import stratify
from search.data.table import Table
from search.run_folder import FORMAT, write_file
from spaces.errors import UserError, near

DEFAULT_FOLDS = 5
MIN_ROWS = 8  # of one fold: a correlation over fewer rows says next to nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """Rows in the order that every other file of the run follows."""

    ids: tuple[str, ...]  # N
    group: tuple[str, ...] | None  # N; None when rows were not grouped
    fold: np.ndarray  # int64 (N,)

    @property
    def group_N(self) -> np.ndarray | None:
        """A code per row; None when rows were not grouped."""
        return (
            None if self.group is None else np.unique(np.array(self.group), return_inverse=True)[1]
        )

    @property
    def k(self) -> int:
        return int(self.fold.max()) + 1

    @property
    def digest(self) -> str:
        """Names ids, groups and folds together."""
        return _digest([self.ids, self.group, self.fold.tolist()])

    @property
    def ids_digest(self) -> str:
        """Names the ids in their order."""
        return _digest(self.ids)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_folds(
    ids: Sequence[str],
    groups: Sequence[str] | None,
    k: int | None,
    seed: int,
    labels_TN: np.ndarray | None = None,
) -> np.ndarray:
    """The fold of each row, int64 (N,). The same ids, groups, labels and seed give each id the same
    fold, in whatever order the rows stand.

    Without groups: shuffled rows, sizes differ by at most one; k defaults to 5. With groups: k
    defaults to min(5, groups); k = groups is leave-one-group-out in sorted group order; fewer
    folds take the largest group left to the smallest fold. With `labels_TN`, of 0 and 1, rows and
    groups are spread so that each fold has its share of each label; of a single label also of the
    rows without it. Raises UserError.
    """
    units = len(ids) if groups is None else len(set(groups))
    noun = "rows" if groups is None else "groups"
    if k is None:
        k = min(DEFAULT_FOLDS, units)
    if units < 2:
        raise UserError(f"{units} {noun} cannot be split into folds; at least 2 are needed")
    if not 2 <= k <= units:
        raise UserError(f"{k} folds were asked of {units} {noun}; choose 2 to {units} folds")
    rng = np.random.default_rng(seed)
    if groups is None:
        order = np.argsort(np.array(ids, dtype=str), kind="stable")[rng.permutation(len(ids))]
        fold_N = np.empty(len(ids), dtype=np.int64)
        if labels_TN is None:
            fold_N[order] = np.arange(len(ids)) % k
        else:
            fold_N[order] = stratify(_classes(labels_TN)[order], np.ones_like(order), k)
        return fold_N
    names, group_N, sizes = np.unique(
        np.array(groups, dtype=str), return_inverse=True, return_counts=True
    )
    if k == len(names):
        return group_N.astype(np.int64)
    fold_of = np.empty(len(names), dtype=np.int64)
    # Shuffled before the stable sort, so that the seed decides among groups of one size.
    shuffled = rng.permutation(len(names))
    if labels_TN is not None:
        labels_NL = _classes(labels_TN)
        counts_GL = np.zeros((len(names), labels_NL.shape[1]), dtype=np.int64)
        np.add.at(counts_GL, group_N, labels_NL)
        fold_of[shuffled] = stratify(counts_GL[shuffled], sizes[shuffled], k)
        return fold_of[group_N]
    rows_K = np.zeros(k, dtype=np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = rows_K.argmin()
        rows_K[fold_of[group]] += sizes[group]
    return fold_of[group_N]


def _classes(labels_TN: np.ndarray) -> np.ndarray:
    """(N, L) labels as 0 and 1; of a single label also its absence."""
    labels_NL = (labels_TN.T == 1).astype(np.int64)
    return labels_NL if len(labels_TN) > 1 else np.hstack([labels_NL, 1 - labels_NL])


def check_folds(fold_N: np.ndarray, groups: Sequence[str] | None, min_rows: int = MIN_ROWS) -> None:
    """Raise UserError unless folds are 0 to K - 1, each with at least `min_rows` rows, and no group
    lies in two of them."""
    if fold_N.ndim != 1 or len(fold_N) == 0 or not np.issubdtype(fold_N.dtype, np.integer):
        raise UserError(f"folds must be integers, one per row; got {fold_N.dtype} {fold_N.shape}")
    if fold_N.min() < 0:
        raise UserError(f"fold {fold_N.min()} is impossible; folds are numbered from 0")
    faults = []
    rows_K = np.bincount(fold_N)
    if len(rows_K) < 2:
        faults.append("all rows are in one fold; at least 2 folds are needed")
    if few := [f"fold {k}: {rows}" for k, rows in enumerate(rows_K) if rows < min_rows]:
        faults.append(
            f"folds need at least {min_rows} rows each, but rows are {some(few)}; "
            "ask for fewer folds or give more rows"
        )
    if groups is not None:
        folds_of: dict[str, set[int]] = {}
        for group, fold in zip(groups, fold_N.tolist(), strict=True):
            folds_of.setdefault(group, set()).add(fold)
        if torn := sorted(group for group, folds in folds_of.items() if len(folds) > 1):
            faults.append(f"groups lie in two folds: {some(torn)}; a group belongs to one fold")
    if faults:
        raise UserError(faults)


def not_targets(spec: str | None) -> tuple[str, ...]:
    """The column of the train CSV that the `--groups` value `spec` names, for `read_table`."""
    return () if spec in (None, "auto", "none") or ".csv" in str(spec) else (str(spec),)


def read_groups(spec: str, table: Table, known: Collection[str] = ()) -> tuple[str, ...]:
    """The group of each row of `table`: `spec` is COLUMN, FILE.csv or FILE.csv:COLUMN.

    A file may also name test rows and the ids `known` (quarantined rows), which are passed over.
    Raises UserError for a file or column that is not there, ids that are no rows, and rows without
    a group.
    """
    if spec in table.columns:
        groups, source = table.columns[spec], f"column {spec!r}"
    elif ".csv" in spec:
        groups, source = _groups_of_file(spec, table, known), spec
    else:
        raise UserError(
            f"--groups {spec!r} is no column of the train CSV ({near(spec, table.columns)}); "
            "give a column, FILE.csv, FILE.csv:COLUMN, auto or none"
        )
    if empty := [n for n, g in zip(table.ids, groups, strict=True) if not g.strip()]:
        raise UserError(f"{source} gives no group to ids {some(empty)}; fill them in")
    return groups


def _groups_of_file(spec: str, table: Table, known: Collection[str]) -> tuple[str, ...]:
    name, _, column = spec.rpartition(".csv")
    path, column = Path(name + ".csv").expanduser(), column.removeprefix(":")
    id_column = table.submission_columns[0]
    header = read_header(path)
    need_columns(path, header, [id_column, *([column] if column else [])])
    if not column:
        others = [name for name in header if name != id_column]
        if len(others) != 1:
            raise UserError(
                f"{path} has {len(others)} columns beside {id_column!r}: {some(others)}; "
                f"choose the group with --groups {path}:COLUMN"
            )
        column = others[0]
    frame = read_frame(path, [id_column, column], only=[id_column, column])
    ids = padded(as_text(frame[id_column]), table.id_width)
    group_of = dict(zip(ids, as_text(frame[column]), strict=True))
    rows = {*table.ids, *table.test_ids, *known}
    faults = []
    if twice := repeated(ids):
        faults.append(f"{path} has duplicate ids: {some(twice)}; each id must occur once")
    if unknown := [name for name in group_of if name not in rows]:
        faults.append(
            f"{path} names ids that are no rows of the data: {some(unknown)}; remove them"
        )
    if lost := [name for name in table.ids if name not in group_of]:
        faults.append(f"{path} lacks ids of train rows: {some(lost)}; add them")
    if faults:
        raise UserError(faults)
    return tuple(group_of[name] for name in table.ids)


def write_folds(
    path: Path, ids: Sequence[str], groups: Sequence[str] | None, fold_N: np.ndarray
) -> Folds:
    """Write the folds as parquet (id, group, fold) and return them as `read_folds` would."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("id", pa.string()), ("group", pa.string()), ("fold", pa.int64())],
        metadata={"format": str(FORMAT)},
    )
    group = [None] * len(ids) if groups is None else list(groups)
    table = pa.table({"id": list(ids), "group": group, "fold": fold_N}, schema=schema)
    write_file(path, lambda temporary: pq.write_table(table, temporary))
    return read_folds(path)


def read_folds(path: Path) -> Folds:
    """Read what `write_folds` wrote. Raises UserError when it is absent, no such file, or has a
    group in two folds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a folder that search.run wrote") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not readable as parquet ({error}); restore it") from None
    got = (table.schema.metadata or {}).get(b"format", b"none").decode()
    if got != str(FORMAT):
        raise UserError(f"{path} has format {got}; this version reads format {FORMAT}")
    if table.column_names != ["id", "group", "fold"]:
        raise UserError(f"{path} has columns {table.column_names}; they must be id, group, fold")
    ids, group, fold = (table.column(name).to_pylist() for name in table.column_names)
    grouped = not all(name is None for name in group)
    if any(None in column for column in (ids, fold, *([group] if grouped else []))):
        raise UserError(f"{path} has empty values; restore it")
    if twice := repeated(ids):
        raise UserError(f"{path} has duplicate ids: {some(twice)}; restore it")
    folds = Folds(
        ids=tuple(ids), group=tuple(group) if grouped else None, fold=np.array(fold, dtype=np.int64)
    )
    check_folds(folds.fold, folds.group, min_rows=1)
    return folds
