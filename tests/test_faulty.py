"""Every fault of a sample's faulty copies is caught and named, and a sound sample raises none."""

import functools

import numpy as np
import pytest

from search.data.check import inspect
from spaces.errors import UserError
from spaces.registry import load_task
from tests.faulty import FAULTS, FORMS, Copy, faults_of
from tests.test_samples import SMALL, write_small

CASES = [(task, name) for task in FORMS for name in faults_of(task)]
REFUSED = {
    "corrupt", "empty", "missing", "missing_view", "missing_channel", "mislabelled", "single_class",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small sample of each task, of rows enough for two folds, when first asked for."""
    root = tmp_path_factory.mktemp("small")

    @functools.cache
    def sample(task):
        with pytest.MonkeyPatch.context() as patch:
            if task == "aneurysm":
                patients = {"train": (18, 10), "test": (4, 3)}
                patch.setitem(SMALL, task, {**SMALL[task], "PATIENTS": patients})
            return write_small(task, root / task)

    return sample


@pytest.fixture(scope="module")
def faulty(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("faulty")

    @functools.cache
    def fault(task, name):
        return FAULTS[name](small(task), task, root / f"{task}-{name}")

    return fault


@pytest.fixture(scope="module")
def looked(faulty):
    """What a look at a faulty copy gives: its report, or None; its faults, or its warnings."""

    @functools.cache
    def result(task, name):
        try:
            report = look(task, faulty(task, name).folder)
        except UserError as error:
            return None, tuple(error.faults)
        return report, report.warnings

    return result


def look(task, folder, **options):
    return inspect(load_task(task), folder, groups="none", folds=2, **options)


def images_of(files, channels):
    """The first file of each image: by it an image is named."""
    return set(files[:: channels or 1])


@pytest.mark.parametrize("task", FORMS)
def test_a_sound_sample_raises_no_alarm(task, small):
    report = look(task, small(task))
    assert report.images.unreadable == {}
    assert report.images.duplicates == report.crossing == ()
    assert report.alike.train == report.alike.crossing == report.alike.conflicts == ()
    assert report.images.borders == {}
    assert report.images.captions == {}
    text = "\n".join(report.warnings)
    for word in ("border", "caption", "duplicate", "sizes", "single row", "; not "):
        assert word not in text


@pytest.mark.parametrize(("task", "name"), CASES)
def test_a_fault_is_caught_by_name(task, name, faulty, looked):
    fault, (report, told) = faulty(task, name), looked(task, name)
    if name in REFUSED and (task, name) != ("csv", "mislabelled"):
        assert report is None
        assert len(told) == 1  # one sentence for one fault
    else:
        assert report is not None, told
    named = [FORMS[task].train] if name == "single_class" else [*fault.files, *fault.ids]
    text = "\n".join(told)
    assert any(name in text for name in named)
    for word in fault.words:
        assert word in text


@pytest.mark.parametrize("task", FORMS)
def test_every_border_and_caption_is_found_and_no_other(task, faulty, looked):
    channels = len(FORMS[task].channels)
    for name, kind in (("bordered", "borders"), ("captioned", "captions")):
        report, _ = looked(task, name)
        assert set(getattr(report.images, kind)) == images_of(faulty(task, name).files, channels)
    assert report.images.borders == {}


@pytest.mark.parametrize("task", FORMS)
@pytest.mark.parametrize("name", ["duplicate", "near_duplicate", "conflicting"])
def test_copies_lie_in_one_fold(task, name, faulty, looked):
    fault, (report, _) = faulty(task, name), looked(task, name)
    first, second = (report.table.ids.index(id_) for id_ in fault.ids)
    assert report.alike.train == ((first, second),)
    assert report.fold_N[first] == report.fold_N[second]
    assert report.alike.conflicts == (report.alike.train if name == "conflicting" else ())
    assert len(np.unique(report.fold_N)) == 2
    told = report.to_dict()["near_duplicates"]
    assert told["train"] == [list(fault.ids)]


@pytest.mark.parametrize("task", FORMS)
def test_a_test_row_that_shows_a_train_row_is_named(task, faulty, looked):
    fault, (report, _) = faulty(task, "leaking"), looked(task, "leaking")
    told = report.to_dict()
    assert told["near_duplicates"]["train_and_test"] == [list(fault.ids)]
    crossing = {file for pair in told["duplicates"]["train_and_test"] for file in pair}
    assert set(fault.files) <= crossing
    assert report.alike.train == ()


@pytest.mark.parametrize("task", FORMS)
def test_a_row_with_a_bad_file_is_left_out_whole(task, faulty):
    fault = faulty(task, "corrupt")
    report = look(task, fault.folder, skip_bad=True)
    table, (bad,) = report.table, fault.ids
    assert bad not in table.ids
    assert not any(f"/{bad}" in path for path in table.paths)
    assert len(table.files) == len(table.ids) * table.views
    assert len(report.thumbs_IHW3) == len(table.files) + len(table.test_files)
    (row,) = report.to_dict()["quarantined"]
    assert row["id"] == bad
    assert list(row["files"]) == list(fault.files)
    assert row["reason"]
    assert any("left out" in warning and bad in warning for warning in report.warnings)


def test_a_presence_that_never_varies_is_refused_before_a_run(small, tmp_path):
    """Locations vary, so that the metric alone can tell."""
    from search.prepare import _baselines

    copy = Copy(small("aneurysm"), "aneurysm", tmp_path / "copy")
    for row in range(len(copy.ids)):
        copy.label(row, ["1", *copy.labels(row)[1:]])
    copy.fault([], [], [])
    task, report = load_task("aneurysm"), look("aneurysm", copy.folder)
    train_NHWC = np.zeros((len(report.table.files), 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="first target lacks a positive or a negative"):
        _baselines(task, report, train_NHWC, print)


def test_a_stated_class_of_a_single_row_is_no_misspelling(small, tmp_path):
    """Rare classes are usual where the layout lists all classes."""
    copy = Copy(small("protein_atlas"), "protein_atlas", tmp_path / "copy")
    copy.label(0, ["3"])
    copy.fault([], [], [])
    report = look("protein_atlas", copy.folder)
    assert report.table.targets_TN[3].sum() == 1
    assert "single row" not in "\n".join(report.warnings)
