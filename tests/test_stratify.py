"""Folds with labels: each fold has its share, groups stay whole, and what cannot be is told."""

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from search.data import stratify as module
from search.data.fold_labels import label_warnings
from search.data.folds import check_folds, label_counts, label_faults, make_folds

seeds = st.integers(0, 2**32 - 1)


def ids_of(count):
    return [f"row{i}" for i in range(count)]


def counts_of(fold_N, labels_TN):
    """(T, K) rows of each label in each fold."""
    folds = fold_N.max() + 1
    return np.stack([np.bincount(fold_N[label_N == 1], minlength=folds) for label_N in labels_TN])


def one_hot(class_N, classes):
    return np.float32(class_N == np.arange(classes)[:, None])


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(12, 150), k=st.integers(2, 6), share=st.floats(0.02, 0.98), seed=seeds)
def test_two_classes_are_spread_as_scikit_learn_does(rows, k, share, seed):
    rng = np.random.default_rng(seed)
    label_N = (rng.random(rows) < share).astype(int)
    label_N[:k], label_N[k : 2 * k] = 0, 1
    fold_N = make_folds(ids_of(rows), None, k, seed, np.float32(label_N)[None])
    other_N = np.empty(rows, dtype=int)
    splits = StratifiedKFold(k, shuffle=True, random_state=0).split(label_N, label_N)
    for fold, (_, inside) in enumerate(splits):
        other_N[inside] = fold
    assert np.ptp(np.bincount(fold_N)) <= 1
    for label in (0, 1):
        ours = np.sort(np.bincount(fold_N[label_N == label], minlength=k))
        theirs = np.sort(np.bincount(other_N[label_N == label], minlength=k))
        assert ours.tolist() == theirs.tolist()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(30, 200), k=st.integers(2, 6), classes=st.integers(2, 9), seed=seeds)
def test_many_classes_are_each_spread_to_within_one(rows, k, classes, seed):
    rng = np.random.default_rng(seed)
    class_N = rng.choice(classes, rows, p=rng.dirichlet(np.ones(classes)))
    labels_TN = one_hot(class_N, classes)
    fold_N = make_folds(ids_of(rows), None, k, seed, labels_TN)
    assert np.ptp(np.bincount(fold_N, minlength=k)) <= 1
    assert np.ptp(counts_of(fold_N, labels_TN), axis=1).max() <= 1


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(60, 250), k=st.integers(2, 6), labels=st.integers(2, 22), seed=seeds)
def test_a_label_with_a_positive_for_each_fold_is_in_each(rows, k, labels, seed):
    rng = np.random.default_rng(seed)
    labels_TN = np.float32(rng.random((labels, rows)) < rng.uniform(0.01, 0.5, (labels, 1)))
    fold_N = make_folds(ids_of(rows), None, k, seed, labels_TN)
    assert np.ptp(np.bincount(fold_N, minlength=k)) <= 1
    counts_TK = counts_of(fold_N, labels_TN)
    enough_T = counts_TK.sum(axis=1) >= k
    assert (counts_TK[enough_T] > 0).all()
    # At random a label of 100 positives in 5 folds differs by 10 between the folds.
    assert np.ptp(counts_TK, axis=1).max() <= 4


def test_labels_that_come_with_others_are_spread_too():
    """A presence that is so wherever one of its places is: they are rarer and are dealt first."""
    rng = np.random.default_rng(0)
    places_TN = rng.random((21, 1127)) < rng.uniform(0.002, 0.08, (21, 1))
    labels_TN = np.float32(np.vstack([places_TN.any(axis=0), places_TN]))
    fold_N = make_folds(ids_of(1127), None, 5, 0, labels_TN)
    counts_TK = counts_of(fold_N, labels_TN)
    assert np.ptp(counts_TK, axis=1).max() <= 2
    random_TK = counts_of(make_folds(ids_of(1127), None, 5, 0), labels_TN)
    assert np.ptp(random_TK, axis=1).mean() > 4 * np.ptp(counts_TK, axis=1).mean()


grouped = st.tuples(st.integers(2, 5), st.integers(6, 40), st.integers(1, 12), seeds)


def group_data(groups, largest, seed, labels=1):
    """Groups of many sizes, in which labels are rare or common."""
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(groups), rng.integers(1, largest + 1, groups))
    share_GT = rng.beta(0.5, 1.5, (groups, labels))
    labels_TN = np.float32(rng.random((len(group_N), labels)) < share_GT[group_N]).T
    return [f"g{g}" for g in group_N], labels_TN


@settings(deadline=None, max_examples=60)
@given(grouped, st.integers(1, 6))
@example((5, 6, 2, 0), 3)
def test_groups_stay_whole_and_every_fold_has_rows_and_none_too_many(case, labels):
    k, count, largest, seed = case
    groups, labels_TN = group_data(count, largest, seed, labels)
    fold_N = make_folds(ids_of(len(groups)), groups, k, seed, labels_TN)
    check_folds(fold_N, groups, min_rows=1)
    rows_K = np.bincount(fold_N, minlength=k)
    assert rows_K.min() > 0
    assert rows_K.max() <= len(groups) / k + 2 * largest


def test_groups_are_spread_better_than_scikit_learn_spreads_them():
    ours, theirs = [], []
    for seed in range(40):
        groups, labels_TN = group_data(30, 20, seed)
        fold_N = make_folds(ids_of(len(groups)), groups, 5, seed, labels_TN)
        other_N = np.empty(len(groups), dtype=int)
        splits = StratifiedGroupKFold(5).split(labels_TN[0], labels_TN[0], groups)
        for fold, (_, inside) in enumerate(splits):
            other_N[inside] = fold
        both_TN = np.vstack([labels_TN, 1 - labels_TN])
        for found, split_N in ((ours, fold_N), (theirs, other_N)):
            counts_TK = counts_of(split_N, both_TN)
            found.append((counts_TK.std(axis=1) / counts_TK.mean(axis=1)).mean())
    assert np.mean(ours) < np.mean(theirs)


def test_with_a_fold_per_group_labels_change_nothing():
    groups, labels_TN = group_data(7, 9, 0)
    ids = ids_of(len(groups))
    expected = make_folds(ids, groups, 7, 0)
    assert np.array_equal(make_folds(ids, groups, 7, 0, labels_TN), expected)


@settings(deadline=None, max_examples=40)
@given(st.booleans(), st.integers(1, 4), seeds, st.data())
def test_the_same_seed_gives_each_id_the_same_fold_in_any_row_order(some, labels, seed, data):
    groups, labels_TN = group_data(12, 4, seed, labels)
    groups = groups if some else None
    ids = ids_of(labels_TN.shape[1])
    order = data.draw(st.permutations(range(len(ids))))
    fold_N = make_folds(ids, groups, 3, seed, labels_TN)
    moved = [groups[i] for i in order] if some else None
    again = make_folds([ids[i] for i in order], moved, 3, seed, labels_TN[:, order])
    assert np.array_equal(again, fold_N[order])


def test_another_seed_gives_other_folds():
    groups, labels_TN = group_data(20, 5, 0, 3)
    ids = ids_of(len(groups))
    for given_groups in (None, groups):
        folds = [make_folds(ids, given_groups, 4, seed, labels_TN) for seed in (0, 1)]
        assert not np.array_equal(*folds)


def test_without_labels_folds_are_what_they_were():
    """Of the version that knew no labels."""
    ids, groups = ids_of(12), list("aabbbcddeeef")
    assert make_folds(ids, None, 3, 7).tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 2, 2, 2, 2]
    assert make_folds(ids, groups, 3, 7).tolist() == [2, 2, 1, 1, 1, 1, 2, 2, 0, 0, 0, 0]


def test_twenty_thousand_rows_are_dealt_in_seconds_and_evenly_without_exchanges(monkeypatch):
    rng = np.random.default_rng(0)
    labels_TN = np.float32(rng.random((19, 20_000)) < 0.08)
    monkeypatch.setattr(module, "_KINDS", 0)
    started = time.process_time()
    fold_N = make_folds(ids_of(20_000), None, 5, 0, labels_TN)
    assert time.process_time() - started < 10
    counts_TK = counts_of(fold_N, labels_TN)
    assert (np.ptp(counts_TK, axis=1) / counts_TK.mean(axis=1)).max() < 0.05


# --- what is told of the labels of folds -----------------------------------------------------


def test_a_fold_without_a_class_is_a_fault_and_says_its_counts():
    fold_N = np.repeat([0, 1, 2], 10)
    target_N = np.float32(np.arange(30) % 2)
    assert label_faults(fold_N, target_N[None], ("malignant",), "binary") == []
    target_N[fold_N == 1] = 0
    target_N[fold_N == 2] = 1
    first, second = label_faults(fold_N, target_N[None], ("malignant",), "binary")
    assert first.startswith("fold 1 has 0 rows with malignant and 10 without; it needs both")
    assert second.startswith("fold 2 has 10 rows with malignant and 0 without")
    assert "ask for fewer folds or other groups" in second
    labels_TN = np.stack([target_N, 1 - target_N])
    one, two = label_faults(fold_N, labels_TN, ("A", "B"), "multiclass")
    assert one.startswith("fold 1 has 10 rows of B and 0 of the other classes")
    assert two.startswith("fold 2 has 10 rows of A and 0 of the other classes")
    for task_type in ("multilabel", "regression"):
        assert label_faults(fold_N, labels_TN, ("A", "B"), task_type) == []


def test_classes_in_one_fold_alone_and_labels_that_folds_lack_are_warned_of():
    fold_N = np.arange(30) % 3
    class_N = np.arange(30) % 2
    class_N[fold_N == 1] *= 2  # class 2 lies in fold 1 alone, and class 1 no longer there
    labels_TN = one_hot(class_N, 3)
    names = ("A", "B", "C")
    (told,) = label_warnings(fold_N, labels_TN, names, "multiclass")
    assert "in one fold alone" in told
    assert "C [0, 5, 0] (1)" in told
    (told,) = label_warnings(fold_N, labels_TN, names, "multilabel")
    assert "B [5, 0, 5], C [0, 5, 0] (2)" in told
    for task_type in ("binary", "regression"):
        assert label_warnings(fold_N, labels_TN[:1], names[:1], task_type) == []
    assert label_warnings(np.arange(30) // 4 % 3, labels_TN[:1], names[:1], "multilabel") == []


def test_counts_of_labels_are_plain_numbers_by_name():
    fold_N = np.array([0, 0, 1, 2])
    labels_TN = np.float32([[1, 1, 0, 1], [0, 0, 0, 0]])
    assert label_counts(fold_N, labels_TN, ("a", "b")) == {"a": [2, 0, 1], "b": [0, 0, 0]}
    assert all(type(n) is int for n in label_counts(fold_N, labels_TN, ("a", "b"))["a"])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_stratified_folds_have_no_fault(k):
    label_N = np.float32(np.arange(40) < k)[None]
    fold_N = make_folds(ids_of(40), None, k, 1, label_N)
    assert label_faults(fold_N, label_N, ("x",), "binary") == []
