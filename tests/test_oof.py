"""The OOF store is whole, aligned and finite, or refused.

Shapes: T outputs, N rows, K folds.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from search.data.folds import write_folds
from search.oof import (
    assemble,
    finished_folds,
    is_complete,
    read_oof,
    read_test,
    write_fold,
    write_oof,
)
from spaces.errors import UserError

NAMES = ("A", "B", "C")
FOLD_N = np.array([0, 1, 2, 1, 0, 2, 2])
PRED_TN = np.arange(21, dtype=np.float32).reshape(3, 7)


def make_folds(path, fold_N=FOLD_N, ids=None):
    ids = ids or [f"row{i}" for i in range(len(fold_N))]
    return write_folds(path / "folds.parquet", ids, None, np.asarray(fold_N))


@pytest.fixture
def folds(tmp_path):
    return make_folds(tmp_path)


def write_parts(folder, folds, test=True):
    for k in range(3):
        test_TN = np.full((3, 2), float(k)) if test else None
        write_fold(folder, k, PRED_TN[:, folds.fold == k], test_TN)


def put(folder, folds, pred_TN=PRED_TN, names=NAMES):
    write_oof(folder, pred_TN, folds=folds, target_names=names, recipe_digest="d", extra={})


def test_what_was_written_is_read_in_the_order_of_the_folds_file(tmp_path, folds):
    folder = tmp_path / "oof" / "0003"
    write_oof(
        folder, PRED_TN, folds=folds, target_names=NAMES, recipe_digest="abc", extra={"trial": 3}
    )
    pred_TN, meta = read_oof(folder, folds, NAMES)
    assert isinstance(pred_TN, np.memmap)
    assert pred_TN.dtype == np.float32
    assert np.array_equal(pred_TN, PRED_TN)
    assert (meta["recipe"], meta["trial"]) == ("abc", 3)


def test_parts_become_a_whole_and_disappear(tmp_path, folds):
    folder = tmp_path / "0001"
    write_parts(folder, folds)
    assert finished_folds(folder) == [0, 1, 2]
    assert not is_complete(folder)
    pred_TN = assemble(folder, folds=folds, target_names=NAMES, recipe_digest="d", extra={})
    assert np.array_equal(pred_TN, PRED_TN)
    assert is_complete(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["meta.json", "pred.npy", "test.npy"]
    assert np.array_equal(read_test(folder, 3, 2), np.full((3, 2), 1.0))


def test_assembling_again_after_a_crash_before_the_parts_were_deleted(tmp_path, folds):
    folder = tmp_path / "0001"
    write_parts(folder, folds)
    put(folder, folds)
    assemble(folder, folds=folds, target_names=NAMES, recipe_digest="d", extra={})
    assert finished_folds(folder) == []
    assert np.array_equal(read_oof(folder, folds, NAMES)[0], PRED_TN)


def test_without_test_rows_there_are_no_test_predictions(tmp_path, folds):
    write_parts(tmp_path / "0001", folds, test=False)
    assemble(tmp_path / "0001", folds=folds, target_names=NAMES, recipe_digest="d", extra={})
    assert read_test(tmp_path / "0001", 3, 2) is None


def test_a_missing_fold_and_a_fold_with_other_rows_are_named(tmp_path, folds):
    folder = tmp_path / "0001"
    write_fold(folder, 0, PRED_TN[:, :2])
    write_fold(folder, 2, PRED_TN[:, :2])
    with pytest.raises(UserError, match="no predictions for fold 1"):
        assemble(folder, folds=folds, target_names=NAMES, recipe_digest="d", extra={})
    write_fold(folder, 1, PRED_TN[:, :2])
    with pytest.raises(UserError, match=r"fold-2\.npy has shape \(3, 2\)"):
        assemble(folder, folds=folds, target_names=NAMES, recipe_digest="d", extra={})
    assert not is_complete(folder)
    assert finished_folds(folder) == [0, 1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_written(tmp_path, folds, value):
    bad_TN = PRED_TN.copy()
    bad_TN[2, 4] = value
    with pytest.raises(UserError, match="NaN or infinite"):
        put(tmp_path / "0001", folds, bad_TN)
    with pytest.raises(ValueError, match="validation"):
        write_fold(tmp_path / "0001", 0, bad_TN)
    with pytest.raises(ValueError, match="test"):
        write_fold(tmp_path / "0001", 0, PRED_TN, bad_TN)
    assert not (tmp_path / "0001").exists()


def test_nan_that_came_into_a_file_later_is_refused_with_the_members_name(tmp_path, folds):
    folder = tmp_path / "0007"
    put(folder, folds)
    values = np.load(folder / "pred.npy")
    values[1, 1] = np.nan
    np.save(folder / "pred.npy", values)
    with pytest.raises(UserError, match="member 0007 has predictions that are NaN"):
        read_oof(folder, folds, NAMES)


def test_members_of_other_rows_folds_or_targets_are_refused(tmp_path, folds):
    folder = tmp_path / "0007"
    put(folder, folds)
    other_fold = make_folds(tmp_path, [0, 1, 2, 1, 0, 2, 1])
    with pytest.raises(UserError, match="other folds"):
        read_oof(folder, other_fold, NAMES)
    other_ids = make_folds(tmp_path, ids=[f"row{i}" for i in reversed(range(7))])
    with pytest.raises(UserError) as caught:
        read_oof(folder, other_ids, NAMES[::-1])
    assert [f.split(" than")[0] for f in caught.value.faults] == [
        "member 0007 was made for other ids",
        "member 0007 was made for other folds",
        "member 0007 was made for other targets",
    ]


def test_incomplete_torn_and_misshapen_members_are_refused(tmp_path, folds):
    with pytest.raises(UserError, match="member 0001 is incomplete"):
        read_oof(tmp_path / "0001", folds, NAMES)
    folder = tmp_path / "0002"
    put(folder, folds)
    whole = (folder / "pred.npy").read_bytes()
    (folder / "pred.npy").write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"member 0002 has no readable pred\.npy"):
        read_oof(folder, folds, NAMES)
    np.save(folder / "pred.npy", PRED_TN[:, :5])
    with pytest.raises(UserError, match=r"shape \(3, 5\)"):
        read_oof(folder, folds, NAMES)
    with pytest.raises(UserError, match=r"shape \(3, 5\)"):
        put(folder, folds, PRED_TN[:, :5])


def test_meta_is_written_last(tmp_path, folds, monkeypatch):
    folder = tmp_path / "0001"

    def killed(*_):
        assert (folder / "pred.npy").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr("search.oof.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        put(folder, folds)
    assert not is_complete(folder)


def test_extra_cannot_replace_what_makes_the_file_checkable(tmp_path, folds):
    with pytest.raises(ValueError, match="folds"):
        write_oof(
            tmp_path,
            PRED_TN,
            folds=folds,
            target_names=NAMES,
            recipe_digest="d",
            extra={"folds": "mine"},
        )


def test_any_folds_object_with_the_digests_will_do(tmp_path, folds):
    plain = SimpleNamespace(
        ids=folds.ids, fold=folds.fold, digest=folds.digest, ids_digest=folds.ids_digest
    )
    put(tmp_path / "0001", plain)
    assert np.array_equal(read_oof(tmp_path / "0001", folds, NAMES)[0], PRED_TN)
