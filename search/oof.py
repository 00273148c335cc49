"""The OOF store: a trial's out-of-fold predictions, aligned with folds.parquet, whole or absent.

A trial's folder holds a part per finished fold while the trial runs (fold-K.npy, and
fold-K.test.npy for the test rows), and once all folds are there pred.npy and, written last,
meta.json; then the parts are gone. test.npy is the mean over the fold models' predictions for the
test rows, so that a submission can be made without inference.

Shapes: T outputs, N rows, V rows of one fold, K folds.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search.run_folder import read_json, write_file, write_json
from spaces.errors import UserError

if TYPE_CHECKING:
    from search.data.folds import Folds

_BLOCK = 256  # outputs checked at a time


def write_fold(
    folder: Path, fold: int, pred_TV: NDArray[Any], test_TN: NDArray[Any] | None = None
) -> None:
    """Keep the predictions of one finished fold: of its own rows, in the order of folds.parquet,
    and of the test rows. Raises ValueError for NaN or infinity."""
    for what, values in (("validation", pred_TV), ("test", test_TN)):
        if values is not None and not _finite(values):
            raise ValueError(f"fold {fold} has {what} predictions that are NaN or infinite")
    # The validation part comes last: it is what says that the fold is done.
    if test_TN is not None:
        save_rows(folder / f"fold-{fold}.test.npy", test_TN)
    save_rows(folder / f"fold-{fold}.npy", pred_TV)


def read_fold(folder: Path, fold: int) -> NDArray[np.float32]:
    """(T, V) predictions of a finished fold of a trial that is not complete yet."""
    return np.load(folder / f"fold-{fold}.npy", allow_pickle=False)


def finished_folds(folder: Path) -> list[int]:
    """Folds with a part in the folder, ascending; none once the trial is complete."""
    names = (re.fullmatch(r"fold-(\d+)\.npy", path.name) for path in folder.glob("fold-*.npy"))
    return sorted(int(match[1]) for match in names if match)


def is_complete(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def assemble(
    folder: Path,
    *,
    folds: "Folds",
    target_names: Sequence[str],
    recipe_digest: str,
    extra: dict[str, Any] | Callable[[NDArray[np.float32]], dict[str, Any]],
) -> NDArray[np.float32]:
    """Join the parts of all folds into pred.npy and meta.json, delete them, return (T, N).

    `extra` is what meta.json holds beside, or gives it from the predictions.
    test.npy is made too when every fold has a test part. Raises UserError, and changes nothing,
    when a fold is absent or has another number of rows.
    """
    if is_complete(folder):  # a crash between meta.json and the deletion of the parts
        pred_TN, _ = read_oof(folder, folds, target_names)
        _delete_parts(folder)
        return pred_TN
    fold_N = np.asarray(folds.fold)
    wanted = [int(k) for k in np.unique(fold_N)]
    present = finished_folds(folder)
    faults = [
        f"{folder} has no predictions for fold {k}; finish that fold first"
        for k in wanted
        if k not in present
    ]
    pred_TN = np.full((len(target_names), len(fold_N)), np.nan, dtype=np.float32)
    for k in wanted if not faults else []:
        part_TV, rows = read_fold(folder, k), np.flatnonzero(fold_N == k)
        if part_TV.shape != (len(target_names), len(rows)):
            faults.append(
                f"{folder}/fold-{k}.npy has shape {part_TV.shape}; "
                f"it must be ({len(target_names)}, {len(rows)}): delete it and train the fold again"
            )
        else:
            pred_TN[:, rows] = part_TV
    if faults:
        raise UserError(faults)
    tests = [folder / f"fold-{k}.test.npy" for k in wanted]
    if all(path.is_file() for path in tests):
        sum_TN = sum(np.load(path, allow_pickle=False).astype(np.float64) for path in tests)
        save_rows(folder / "test.npy", np.asarray(sum_TN / len(tests)))
    write_oof(
        folder,
        pred_TN,
        folds=folds,
        target_names=target_names,
        recipe_digest=recipe_digest,
        extra=extra(pred_TN) if callable(extra) else extra,
    )
    _delete_parts(folder)
    return pred_TN


def write_oof(
    folder: Path,
    pred_TN: NDArray[Any],
    *,
    folds: "Folds",
    target_names: Sequence[str],
    recipe_digest: str,
    extra: dict[str, Any],
) -> None:
    """Write pred.npy (float32, one output after the other) and then meta.json.

    `extra` is kept in meta.json beside what makes the file checkable. Raises UserError for a wrong
    shape, NaN and infinity.
    """
    meta = _identity(folds, target_names)
    clash = sorted(extra.keys() & {*meta, "recipe", "format"})
    if clash:
        raise ValueError(f"extra has the fields {clash}, which the store writes itself")
    shape = (len(target_names), len(folds.ids))
    if pred_TN.shape != shape or not _finite(pred_TN):
        raise UserError(
            f"predictions for {folder} have shape {pred_TN.shape} and "
            f"{'no' if _finite(pred_TN) else 'some'} NaN or infinite values; they must have shape "
            f"{shape} and none: predict every row"
        )
    save_rows(folder / "pred.npy", pred_TN)
    write_json(folder / "meta.json", {**meta, "recipe": recipe_digest, **extra})


def read_oof(
    folder: Path, folds: "Folds", target_names: Sequence[str], mmap: bool = True
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """(T, N) predictions and meta.json, memory-mapped unless `mmap` is off.

    Raises UserError with all faults when the member is incomplete, holds NaN, or was made for
    other rows, folds or targets.
    """
    who = f"member {folder.name}"
    if not is_complete(folder):
        raise UserError(f"{who} is incomplete: {folder} has no meta.json; finish the trial first")
    meta = read_json(folder / "meta.json")
    faults = [
        f"{who} was made for other {what} than this run's; it cannot be mixed with its members"
        for what, value in _identity(folds, target_names).items()
        if meta.get(what) != value
    ]
    try:
        pred_TN = np.load(folder / "pred.npy", mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = f"{who} has no readable pred.npy ({error}); restore it or delete {folder}"
        raise UserError([*faults, reason]) from None
    shape = (len(target_names), len(folds.ids))
    if pred_TN.shape != shape or pred_TN.dtype != np.float32:
        faults.append(
            f"{who} has predictions of shape {pred_TN.shape} and type {pred_TN.dtype}; "
            f"they must be {shape} and float32: restore it or delete {folder}"
        )
    elif not _finite(pred_TN):
        faults.append(f"{who} has predictions that are NaN or infinite; delete {folder}")
    if faults:
        raise UserError(faults)
    return pred_TN, meta


def read_test(folder: Path, outputs: int, rows: int) -> NDArray[np.float32] | None:
    """(T, N) mean predictions for the test rows, None when the trial kept none.

    Raises UserError for another shape and for NaN.
    """
    path = folder / "test.npy"
    if not path.is_file():
        return None
    pred_TN = np.load(path, allow_pickle=False)
    if pred_TN.shape != (outputs, rows) or not _finite(pred_TN):
        raise UserError(
            f"{path} has shape {pred_TN.shape}; it must be ({outputs}, {rows}) without NaN: "
            "delete it and predict with the bundle instead"
        )
    return pred_TN


def _identity(folds: "Folds", target_names: Sequence[str]) -> dict[str, Any]:
    """What must agree for predictions to be mixed: rows, folds, targets."""
    return {"ids": folds.ids_digest, "folds": folds.digest, "targets": list(target_names)}


def _finite(values_TN: NDArray[Any]) -> bool:
    return all(
        bool(np.isfinite(values_TN[start : start + _BLOCK]).all())
        for start in range(0, len(values_TN), _BLOCK)
    )


def save_rows(path: Path, values_TN: NDArray[Any]) -> None:
    """Write an array as float32, whole or not at all."""
    array = np.ascontiguousarray(values_TN, dtype=np.float32)
    write_file(path, lambda temporary: np.save(temporary, array, allow_pickle=False))


def _delete_parts(folder: Path) -> None:
    for path in folder.glob("fold-*.npy"):
        with suppress(FileNotFoundError):
            path.unlink()
