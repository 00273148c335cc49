"""What is handed in: every form, with decisions by the thresholds, in the sample's order.

Shapes: T outputs, N rows.
"""

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ensemble import predict as prediction
from ensemble.build import build
from ensemble.bundle import Bundle
from ensemble.explain import output_text
from ensemble.submission import SubmissionForm, form_of, read_sample, read_truth
from search.metrics import best_thresholds, get_metric
from search.model.infer import FoldModel
from search.oof import save_rows
from search.run_folder import read_json, write_json
from spaces.errors import UserError
from spaces.layout import Layout, Submission
from tests.modelruns import NAMES, ROWS, TESTS, ModelRun, noisy, one_thread
from tests.test_masks import decoded

IDS = ("r3", "r1", "r2")  # of the predictions
ORDER = ("r1", "r2", "r3")  # of the sample
PRED_TN = np.array([[0.3, 0.9, 0.2], [0.6, 0.05, 0.2], [0.1, 0.05, 0.6]], np.float32)  # as IDS


def form(**fields: Any) -> SubmissionForm:
    usual: dict[str, Any] = {
        "target_names": ("a", "b", "c"), "test_ids": IDS, "ids": ORDER,
        "columns": ("ID", "c", "a", "b"), "task_type": "multilabel",
    }  # fmt: skip
    return SubmissionForm(**{**usual, **fields})


def written(tmp_path: Path, made: SubmissionForm, **options: Any) -> list[str]:
    made.write(tmp_path / "out", PRED_TN, **options)
    return (tmp_path / "out").read_bytes().decode().removesuffix("\n").split("\n")


def test_a_table_has_the_samples_rows_and_columns(tmp_path: Path) -> None:
    assert written(tmp_path, form(task_type="regression")) == [
        "ID,c,a,b", "r1,0.05,0.9,0.05", "r2,0.6,0.2,0.2", "r3,0.1,0.3,0.6",
    ]  # fmt: skip


def test_a_table_of_decisions(tmp_path: Path) -> None:
    made = form(submission=Submission(decided="all"))
    assert written(tmp_path, made) == ["ID,c,a,b", "r1,0,1,0", "r2,1,0,0", "r3,0,0,1"]
    thresholds_T = np.array([0.3, 0.7, 0.05])  # what reaches it is positive
    assert written(tmp_path, made, thresholds_T=thresholds_T)[1:] == [
        "r1,1,1,0", "r2,1,0,0", "r3,1,1,0",
    ]  # fmt: skip


def test_rest_decides_all_but_the_first_target_wherever_its_column_stands(tmp_path: Path) -> None:
    made = form(submission=Submission(decided="rest"))
    assert written(tmp_path, made) == ["ID,c,a,b", "r1,0,0.9,0", "r2,1,0.2,0", "r3,0,0.3,1"]


def test_classes_in_columns_of_their_own_are_decided_by_the_highest(tmp_path: Path) -> None:
    made = form(submission=Submission(decided="all"), task_type="multiclass")
    high_T = np.full(3, 0.95)
    assert written(tmp_path, made, thresholds_T=high_T)[1:] == ["r1,0,1,0", "r2,1,0,0", "r3,0,0,1"]


def test_a_class_is_written_by_its_name(tmp_path: Path) -> None:
    made = form(submission=Submission(decided="all"), label_column="grade", task_type="multiclass")
    assert written(tmp_path, made) == ["ID,grade", "r1,a", "r2,c", "r3,b"]


def test_several_labels_of_a_row_are_joined(tmp_path: Path) -> None:
    made = form(
        target_names=("8", "5", "0"), columns=("ID", "8", "5", "0"), label_column="Label",
        submission=Submission(decided="all"),
    )  # fmt: skip
    assert written(tmp_path, made) == ["ID,Label", "r1,8", "r2,0", "r3,5"]
    low_T = np.array([0.2, 0.2, 0.05])
    assert written(tmp_path, made, thresholds_T=low_T)[1:] == ["r1,8|0", "r2,8|5|0", "r3,8|5|0"]
    # The likeliest at least: a row has a label.
    assert written(tmp_path, made, thresholds_T=np.ones(3))[1:] == ["r1,8", "r2,0", "r3,5"]


def test_label_columns_without_decisions_are_tables_of_probabilities(tmp_path: Path) -> None:
    made = form(label_column="grade", task_type="multiclass")
    assert written(tmp_path, made)[:2] == ["ID,c,a,b", "r1,0.05,0.9,0.05"]


def test_what_was_written_as_labels_is_read_as_truth(tmp_path: Path) -> None:
    names = ("8", "5", "0")
    made = form(
        target_names=names, columns=("ID", *names), label_column="Label",
        submission=Submission(decided="all"),
    )  # fmt: skip
    thresholds_T = np.array([0.2, 0.2, 0.5])
    made.write(tmp_path / "out.csv", PRED_TN, thresholds_T)
    ids, true_TN = read_truth(tmp_path / "out.csv", names, "Label")
    assert ids == ORDER
    called_TN = PRED_TN[:, [1, 2, 0]] >= thresholds_T[:, None]
    np.testing.assert_array_equal(true_TN, called_TN)
    with pytest.raises(UserError, match="no target's"):
        read_truth(tmp_path / "out.csv", ("8", "5"), "Label")


def test_lines_have_no_head(tmp_path: Path) -> None:
    made = form(
        target_names=("label",), columns=("key", "label"), task_type="binary",
        submission=Submission(form="lines", decided="all"),
    )  # fmt: skip
    made.write(tmp_path / "out", PRED_TN[:1], np.array([0.3]))
    assert (tmp_path / "out").read_text() == "r1 1\nr2 0\nr3 1\n"


def test_cells_have_every_class_with_confidence_and_mask(tmp_path: Path) -> None:
    sizes = ((20, 10), (64, 48), (33, 65))  # of IDS
    made = form(
        target_names=("0", "1", "18"), columns=("ID", "0", "1", "18"), label_column="Label",
        submission=Submission(form="cells"), sizes=sizes,
    )  # fmt: skip
    made.write(tmp_path / "out.csv", PRED_TN)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["ID", "ImageWidth", "ImageHeight", "PredictionString"]
    assert [row["ID"] for row in rows] == list(ORDER)
    for row in rows:
        place = IDS.index(row["ID"])
        width, height = sizes[place]
        assert (int(row["ImageWidth"]), int(row["ImageHeight"])) == (width, height)
        words = row["PredictionString"].split(" ")
        assert words[::3] == ["0", "1", "18"]
        np.testing.assert_allclose(np.array(words[1::3], float), PRED_TN[:, place], atol=1e-6)
        assert all(decoded(mask) == [0, width * height] for mask in words[2::3])


def test_the_sizes_of_images_are_looked_up_only_for_masks() -> None:
    given: dict[str, Any] = {
        "target_names": ("a",), "test_ids": ("x", "y"), "ids": ("y", "x"), "columns": ("ID", "a"),
    }  # fmt: skip
    plain = form_of(Layout(), "binary", **given, sizes=lambda: pytest.fail("looked"))
    assert plain.sizes == ()
    cells = Layout(submission=Submission(form="cells"))
    assert form_of(cells, "binary", **given, sizes=lambda: [(1, 2), (3, 4)]).sizes == (
        (1, 2), (3, 4),
    )  # fmt: skip


FORMS: dict[str, dict[str, Any]] = {
    "table": {},
    "rest": {"submission": Submission(decided="rest")},
    "labels": {"submission": Submission(decided="all"), "label_column": "Label"},
    "lines": {"submission": Submission(form="lines", decided="all")},
    "cells": {"submission": Submission(form="cells"), "sizes": ((4, 5), (6, 7), (8, 9))},
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_kept_form_is_read_back_and_pieces_write_the_same(tmp_path: Path, kind: str) -> None:
    made = form(**FORMS[kind])
    made.save(tmp_path / "form.json")
    again = SubmissionForm.load(tmp_path / "form.json")
    assert again == made
    thresholds_T = np.array([0.25, 0.5, 0.5])
    made.write(tmp_path / "whole", PRED_TN, thresholds_T)
    ordered_TN = PRED_TN[:, [IDS.index(name) for name in ORDER]]
    pieces = (ordered_TN[:, a:b] for a, b in ((0, 1), (1, 1), (1, 3)))
    again.write_pieces(tmp_path / "pieces", pieces, thresholds_T)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


WORDS = {
    "table": "one column per target: probabilities",
    "rest": "probabilities, decisions after the first",
    "labels": "a CSV with ID and Label",
    "lines": "lines of ID and decision, separated by a blank",
    "cells": "confidences of every class for one mask of the whole image",
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_bundle_says_in_words_what_it_writes(kind: str) -> None:
    fields = {name: value for name, value in FORMS[kind].items() if name != "sizes"}
    assert WORDS[kind] in output_text(Layout(**fields), "multilabel")


def test_a_damaged_form_says_what_is_missing(tmp_path: Path) -> None:
    form().save(tmp_path / "form.json")
    kept = read_json(tmp_path / "form.json")
    write_json(tmp_path / "form.json", {k: v for k, v in kept.items() if k != "sizes"})
    with pytest.raises(UserError, match=r"form\.json has no sizes"):
        SubmissionForm.load(tmp_path / "form.json")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_file_is_left_where_a_prediction_is_no_number(tmp_path: Path, value: float) -> None:
    bad_TN = PRED_TN.copy()
    bad_TN[1, 2] = value
    with pytest.raises(ValueError, match="NaN"):
        form().write(tmp_path / "out", bad_TN)
    with pytest.raises(ValueError, match="from row 1 on"):
        form().write_pieces(tmp_path / "out", [PRED_TN[:, :1], bad_TN[:, 1:]])
    assert not list(tmp_path.iterdir())


def test_predictions_must_be_as_many_as_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\); it must be \(3, 3\)"):
        form().write(tmp_path / "out", PRED_TN[:, :2])
    with pytest.raises(ValueError, match="of 2 rows; there must be 3"):
        form().write_pieces(tmp_path / "out", [PRED_TN[:, :2]])
    assert not list(tmp_path.iterdir())


def test_other_rows_and_columns_than_the_samples_are_told_together() -> None:
    with pytest.raises(UserError) as caught:
        form(ids=("r1", "r2", "r9"), columns=("ID", "a", "b", "z"))
    assert len(caught.value.faults) == 2
    assert "r3, r9" in caught.value.faults[0] and "c, z" in caught.value.faults[1]
    with pytest.raises(UserError, match="repeated ids"):
        form(ids=("r1", "r2", "r3", "r3"))


def test_a_sample_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("\ufeffID,x\n007,0\n010,0\n\n")
    assert read_sample(tmp_path / "s.csv") == (("ID", "x"), ("007", "010"))
    (tmp_path / "s.csv").write_text("ID\n1\n")
    with pytest.raises(UserError, match="needs an id and targets"):
        read_sample(tmp_path / "s.csv")


# --- a run whose metric fits no thresholds, and that hands decisions in


def decided_run(root: Path, task_type: str, metric: str, layout: Layout) -> ModelRun:
    """Three trials, with a data folder to predict; the sample has the rows from the last."""
    made = ModelRun(root, task_type=task_type, metric=metric)
    made.facts["layout"] = dataclasses.asdict(layout)
    write_json(made.run.run, made.facts)
    tests = tuple(f"R{i:02d}" for i in range(ROWS, ROWS + TESTS))
    form_of(
        layout, task_type, target_names=NAMES, test_ids=tests, ids=tests[::-1],
        columns=("ID", *NAMES), sizes=lambda: (),
    ).save(made.run.form)  # fmt: skip
    rows = [[name, f"tiles/{ROWS + i:02d}.png"] for i, name in enumerate(tests)]
    with open(root / "data" / "test.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ID", "path"], *rows])
    sample = [[name, *[0] * len(NAMES)] for name in tests[::-1]]
    with open(root / "data" / "sample_submission.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ID", *NAMES], *sample])
    for size in (0.0, 0.5, 1.0):
        made.add(noisy(size))
    return made


@pytest.fixture(scope="module")
def presence(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("presence")
    layout = Layout(submission=Submission(decided="rest", file="output.csv"))
    with one_thread():
        made = decided_run(root, "multilabel", "auroc", layout)
        keep_tests(made)
        built = build(made.run)
    return SimpleNamespace(run=made.run, made=made, built=built, data=root / "data")


def keep_tests(made: ModelRun) -> None:
    """Test predictions beside the out-of-fold ones, as training keeps them."""
    for number in range(made.trials):
        folder = made.run.checkpoints(number)
        preds = [
            FoldModel.load(path).predict(made.images_NHWC[ROWS:]).T
            for path in sorted(folder.glob("fold-*.safetensors"))
        ]
        mean_TS = np.mean(np.float64(preds), axis=0).astype(np.float32)
        save_rows(made.run.oof(number) / "test.npy", mean_TS)


def test_thresholds_are_fitted_for_accuracy_on_nested_predictions(
    presence: SimpleNamespace,
) -> None:
    choice = presence.built.choice
    found_T = choice.blend.post.thresholds_T
    accuracy = get_metric("accuracy").fit(choice.pool.true_TN)
    wanted_T = best_thresholds(accuracy, choice.oof_TN, choice.pool.true_TN, choice.pool.fold_N)
    np.testing.assert_array_equal(found_T, wanted_T)
    assert not np.allclose(found_T, 0.5)
    np.testing.assert_array_equal(presence.built.bundle.blend.post.thresholds_T, wanted_T)
    assert "threshold" in (presence.run.ensemble / "README.md").read_text()


def test_the_run_hands_decisions_in_after_the_first_target(presence: SimpleNamespace) -> None:
    built = presence.built
    assert built.submission == presence.run.root / "output.csv"
    with open(built.submission, newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head == ["ID", *NAMES]
    assert [row[0] for row in rows] == [f"R{i:02d}" for i in range(ROWS + TESTS - 1, ROWS - 1, -1)]
    called_TS = built.test_TN >= built.choice.blend.post.thresholds_T[:, None]
    for row, place in zip(rows, range(TESTS - 1, -1, -1), strict=True):
        assert float(row[1]) == pytest.approx(built.test_TN[0, place], rel=1e-5)
        assert row[2:] == [str(int(called)) for called in called_TS[1:, place]]


def test_the_bundle_writes_the_same_decisions(presence: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "mine.csv"
    arguments = [str(presence.run.ensemble), "--data", str(presence.data), "--out", str(out)]
    with one_thread():
        prediction.main(arguments)
    ours, theirs = (
        [line.split(",") for line in path.read_text().splitlines()]
        for path in (out, presence.built.submission)
    )
    assert [row[:1] + row[2:] for row in ours] == [row[:1] + row[2:] for row in theirs]
    np.testing.assert_allclose(
        [float(row[1]) for row in ours[1:]], [float(row[1]) for row in theirs[1:]], atol=1e-4
    )


def test_probabilities_need_no_thresholds(tmp_path: Path) -> None:
    with one_thread():
        made = ModelRun(tmp_path, task_type="multilabel", metric="auroc")
        made.add()
        keep_tests(made)
        built = build(made.run)
    assert built.choice.blend.post.thresholds_T is None
    assert built.bundle.blend.post.thresholds_T is None


def test_the_classes_of_a_label_column_come_out_of_the_bundle_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(label_column="grade", submission=Submission(decided="all"))
    with one_thread():
        made = decided_run(tmp_path, "multiclass", "log_loss", layout)
        keep_tests(made)
        built = build(made.run)
        assert built.choice.blend.post.thresholds_T is None and built.submission is not None
        # The sample that such tasks come with: the id and the label.
        sample = tmp_path / "data" / "sample_submission.csv"
        ids = [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
        sample.write_text(
            "".join(f"{a},{b}\n" for a, b in [("ID", "grade"), *((i, "A") for i in ids)])
        )
        out = tmp_path / "mine.csv"
        arguments = [str(made.run.ensemble), "--data", str(tmp_path / "data"), "--out", str(out)]
        prediction.main(arguments)
    assert "4 rows, 2 columns" in capsys.readouterr().out
    assert out.read_text() == built.submission.read_text()
    assert built.test_TN is not None
    best = [NAMES[k] for k in built.test_TN.argmax(axis=0)]
    assert out.read_text().splitlines() == [
        "ID,grade", *(f"{i},{name}" for i, name in zip(ids, best[::-1], strict=True)),
    ]  # fmt: skip


def test_masks_of_a_bundle_have_the_sizes_of_the_images(tmp_path: Path) -> None:
    layout = Layout(sample_submission="", label_column="Label", submission=Submission(form="cells"))
    with one_thread():
        made = decided_run(tmp_path, "multilabel", "average_precision", layout)
        (tmp_path / "data" / "sample_submission.csv").unlink()
        path = tmp_path / "data" / f"tiles/{ROWS + 1:02d}.png"
        Image.open(path).resize((48, 40)).save(path)
        made.run.form.unlink()  # a run without test rows
        bundle = build(made.run).bundle
        prediction.predict_folder(Bundle.open(bundle.root), tmp_path / "data", tmp_path / "o.csv")
    with open(tmp_path / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ImageWidth"], row["ImageHeight"]) for row in rows] == [
        ("32", "32"), ("48", "40"), ("32", "32"), ("32", "32"),
    ]  # fmt: skip
    assert [len(row["PredictionString"].split()) for row in rows] == [9] * TESTS
    assert decoded(rows[1]["PredictionString"].split()[2]) == [0, 48 * 40]
    assert json.loads((bundle.root / "manifest.json").read_text())["layout"]["submission"] == {
        "form": "cells", "file": "submission.csv", "decided": "none",
    }  # fmt: skip
