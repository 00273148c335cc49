"""Prediction with a bundle: the blend of its members, in chunks, within memory, explained.

Shapes: m members, T outputs, N rows.
"""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ensemble import predict as prediction
from ensemble.bundle import Bundle
from ensemble.inference import Inference
from ensemble.meter import Meter
from ensemble.predict import predict_files, predict_fold
from search.data.decode import UnreadableImage, check_header
from search.model.infer import FoldModel
from search.oof import read_oof
from spaces.errors import UserError
from tests.bundles import (
    KINDS,
    NAMES,
    STORE,
    TEST,
    TRAIN,
    export_blend,
    make_blend,
    numbers,
    read_csv,
    spoil,
)

FILES = [(f"tiles/R_{i:02d}.png",) for i in range(TRAIN + TEST)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_predicts_what_its_blend_makes_of_its_members(trained, tmp_path, kind):
    blend = make_blend(**KINDS[kind])
    bundle = Bundle.open(export_blend(trained.run, tmp_path / "bundle", blend).root)
    images_NHWC = trained.images_NHWC[TRAIN:]
    preds_mTN = []
    for member in bundle.members:
        folds = [predict_fold(bundle, member.name, k, images_NHWC) for k in range(3)]
        preds_mTN.append(np.float32(np.mean(np.float64(folds), axis=0)))
    pred_TN = predict_files(bundle, trained.data, FILES[TRAIN:])
    np.testing.assert_array_equal(pred_TN, blend.apply(preds_mTN))
    for name in ("thresholds_T", "mean_T"):
        np.testing.assert_equal(getattr(bundle.blend.post, name), getattr(blend.post, name))


@pytest.mark.parametrize("trial", ["0", "1"])
@pytest.mark.parametrize("fold", [0, 2])
def test_predict_fold_reproduces_the_out_of_fold_rows(trained, built, trial, fold):
    bundle = Bundle.open(built.run.ensemble)
    oof_TN, _ = read_oof(trained.run.oof(int(trial)), trained.folds, NAMES)
    rows = np.flatnonzero(trained.folds.fold == fold)
    pred_TN = predict_fold(bundle, trial, fold, trained.images_NHWC[rows], batch_size=5)
    assert pred_TN.shape == (3, len(rows))
    assert np.abs(pred_TN - oof_TN[:, rows]).max() < 1e-4
    with pytest.raises(UserError, match=f"member {trial} has no fold 3"):
        predict_fold(bundle, trial, 3, trained.images_NHWC[rows])


def test_prediction_from_files_equals_the_submission_kept_from_training(built, tmp_path):
    out = tmp_path / "mine.csv"
    arguments = [str(built.run.ensemble), "--data", str(built.data), "--out", str(out)]
    prediction.main([*arguments, "--batch-size", "3"])
    assert read_csv(out)[0] == read_csv(built.submission)[0]
    assert [r[0] for r in read_csv(out)] == [r[0] for r in read_csv(built.submission)]
    assert np.abs(numbers(out) - numbers(built.submission)).max() < 1e-4
    prediction.main([*arguments, "--tta", "8"])
    assert np.abs(numbers(out) - numbers(built.submission)).max() > 1e-4


def test_unreadable_and_missing_images_are_all_named_before_anything_is_predicted(
    built, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    shutil.copytree(built.data, data)
    bad = [data / "tiles" / f"R_{TRAIN + i:02d}.png" for i in (1, 4)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    monkeypatch.setattr("search.model.infer.FoldModel.load", lambda *_: pytest.fail("predicted"))
    arguments = [str(built.run.ensemble), "--data", str(data), "--out", str(tmp_path / "o.csv")]
    with pytest.raises(UserError) as caught:
        prediction.main(arguments)
    assert all(any(path.name in fault for fault in caught.value.faults) for path in bad)
    bad[0].unlink()
    with pytest.raises(UserError, match=bad[0].name):
        prediction.main(arguments)
    assert not (tmp_path / "o.csv").exists()


def test_a_folder_without_a_sample_gets_the_bundles_columns_and_the_test_rows(built, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(built.data, data)
    (data / "sample_submission.csv").unlink()
    out = tmp_path / "o.csv"
    prediction.main([str(built.run.ensemble), "--data", str(data), "--out", str(out)])
    assert read_csv(out)[0] == ["ID", "GENE3", "GENE1", "GENE2"]
    assert [r[0] for r in read_csv(out)[1:]] == [r[0] for r in read_csv(data / "test.csv")[1:]]
    assert np.abs(numbers(out)[::-1] - numbers(built.submission)).max() < 1e-4


def test_a_sample_with_other_targets_is_refused(built, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(built.data, data)
    sample = data / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("GENE2", "OTHER"))
    with pytest.raises(UserError, match="GENE2, OTHER"):
        prediction.main([str(built.run.ensemble), "--data", str(data), "--out", "o.csv"])


def test_impossible_arguments_are_told_together(built, tmp_path):
    with pytest.raises(UserError) as caught:
        prediction.main([
            str(built.run.ensemble), "--out", str(tmp_path), "--tta", "3", "--batch-size", "0",
        ])  # fmt: skip
    assert len(caught.value.faults) == 4
    assert "--data is missing" in caught.value.faults[0]


# --- chunks and memory


def hold(monkeypatch, images):
    """Chunks of at most this many images."""
    monkeypatch.setattr("ensemble.inference.IMAGE_BYTES", images * STORE * STORE * 3)


@pytest.mark.parametrize("kept", [True, False])
def test_chunks_change_no_bit_and_leave_nothing(built, tmp_path, monkeypatch, kept):
    bundle = Bundle.open(built.run.ensemble)
    whole_TN = predict_files(bundle, built.data, FILES, batch_size=7)
    loads = []
    load = FoldModel.load
    monkeypatch.setattr(FoldModel, "load", lambda *given: loads.append(given) or load(*given))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hold(monkeypatch, 7)
    if not kept:
        monkeypatch.setattr("ensemble.inference.MODEL_BYTES", 0)
    np.testing.assert_array_equal(predict_files(bundle, built.data, FILES, batch_size=7), whole_TN)
    chunks = -(-len(FILES) // 7)
    assert len(loads) == (6 if kept else 6 * chunks)
    assert not list(tmp_path.iterdir())


def test_chunks_write_the_same_file(built, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("whole.csv", "parts.csv")]
    arguments = [str(built.run.ensemble), "--data", str(built.data), "--batch-size", "2", "--out"]
    prediction.main([*arguments, str(files[0])])
    hold(monkeypatch, 3)
    assert Inference(Bundle.open(built.run.ensemble), "cpu", None, 2).chunk == 2
    prediction.main([*arguments, str(files[1])])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_chunks_are_whole_batches_and_hold_the_members_predictions_too(built, monkeypatch):
    bundle = Bundle.open(built.run.ensemble)
    assert Inference(bundle, "cpu", None, 64).chunk >= 64 * 1000
    monkeypatch.setattr("ensemble.inference.PREDICTION_BYTES", 4 * 2 * 3 * 100)
    assert Inference(bundle, "cpu", None, 64).chunk == 64
    assert Inference(bundle, "cpu", None, 30).chunk == 90
    hold(monkeypatch, 20)
    assert Inference(bundle, "cpu", None, 64).chunk == 64  # one batch at least


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_size_decides_the_last_bits_only(built, batch_size):
    bundle = Bundle.open(built.run.ensemble)
    ours_TN, theirs_TN = (
        predict_files(bundle, built.data, FILES, batch_size=size) for size in (batch_size, 16)
    )
    np.testing.assert_allclose(ours_TN, theirs_TN, rtol=0, atol=1e-5)


def test_with_chunks_missing_and_foreign_files_are_all_named_before_anything_is_decoded(
    built, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    shutil.copytree(built.data, data)
    bad = [data / FILES[row][0] for row in (TRAIN, TRAIN + 3, TRAIN + 6)]
    bad[0].write_text("no image")
    bad[1].unlink()
    bad[2].write_bytes(b"")
    hold(monkeypatch, 2)
    monkeypatch.setattr("ensemble.inference.open_store", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError) as caught:
        predict_files(Bundle.open(built.run.ensemble), data, FILES, batch_size=2)
    assert len(caught.value.faults) == 3
    assert all(path.name in fault for path, fault in zip(bad, caught.value.faults, strict=True))


def test_an_image_that_breaks_off_in_a_later_chunk_is_named_and_no_file_is_left(
    built, tmp_path, monkeypatch
):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(built.data, data)
    broken = data / FILES[TRAIN][0]  # the last row of the sample
    broken.write_bytes(broken.read_bytes()[:200])
    check_header(broken)
    hold(monkeypatch, 3)
    arguments = [str(built.run.ensemble), "--data", str(data), "--out", str(out / "o.csv")]
    with pytest.raises(UserError, match=f"{broken.name} is unreadable"):
        prediction.main([*arguments, "--batch-size", "1"])
    assert not list(out.iterdir())
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnreadableImage, match="none of"):
        check_header(tmp_path / "text.png")


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte"),
}


def hold_in_memory(monkeypatch, error, images):
    """A model takes batches of at most so many images; the list of batch sizes that are tried."""
    tried = []
    predict = FoldModel.predict

    def limited(self, images_NHWC, tta=None, batch_size=64):
        tried.append(batch_size)
        if batch_size > images:
            raise error
        return predict(self, images_NHWC, tta, batch_size)

    monkeypatch.setattr(FoldModel, "predict", limited)
    return tried


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_when_memory_runs_out_the_batch_halves_and_this_is_said_once(
    built, monkeypatch, caplog, error
):
    bundle = Bundle.open(built.run.ensemble)
    wanted_TN = predict_files(bundle, built.data, FILES, batch_size=3)
    tried = hold_in_memory(monkeypatch, error, 3)
    with caplog.at_level(logging.WARNING):
        pred_TN = predict_files(bundle, built.data, FILES, batch_size=20)
    assert tried == [20, 10, 5] + [3] * 6
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == [
        "batches of 3, not 20"
    ]
    np.testing.assert_array_equal(pred_TN, wanted_TN)


def test_an_image_too_big_for_memory_is_the_users_fault_and_other_errors_are_not(
    built, monkeypatch
):
    bundle = Bundle.open(built.run.ensemble)
    with monkeypatch.context() as patched:
        tried = hold_in_memory(patched, ERRORS["cuda"], 0)
        with pytest.raises(UserError, match=r"member 1: a batch of 1 does not fit in memory"):
            predict_files(bundle, built.data, FILES, batch_size=4)
    assert tried == [4, 2, 1]
    tried = hold_in_memory(monkeypatch, RuntimeError("mat1 and mat2 cannot be multiplied"), 0)
    with pytest.raises(RuntimeError, match="mat1"):
        predict_files(bundle, built.data, FILES, batch_size=4)
    assert tried == [4]


def test_the_time_left_counts_each_kind_of_work_by_its_own_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ensemble.meter.time.monotonic", lambda: now[0])
    meter = Meter({"decoded": 10, "predicted": 20})
    now[0] = 5.0
    meter.add("decoded", 5)
    assert meter.line() == "decoded 5/10, predicted 0/20"
    now[0] = 35.0
    meter.add("predicted", 10)
    assert meter.line() == "decoded 5/10, predicted 10/20, 35 s left"


# --- --explain


def test_explain_tells_what_the_bundle_is_and_needs_no_data(built, capsys):
    prediction.main([str(built.run.ensemble), "--explain"])
    shown = capsys.readouterr().out
    size = sum(p.stat().st_size for p in built.run.ensemble.rglob("*") if p.is_file()) / 2**20
    for words in (
        "gene_expr (regression)", "3: GENE1, GENE2, GENE3", f"{size:.1f} MB",
        "greedy: the weighted mean of members' predictions",
        "`test.csv` with the columns `ID`, `path`", "sample_submission.csv",
        "ensemble, nested  0.5000 ± 0.0100  nested", "optimistic", "torch==", "image size",
    ):  # fmt: skip
        assert words in shown, words
    rows = [line.split() for line in shown.splitlines() if "test_resnet" in line]
    assert [row[:5] for row in rows] == [
        ["1", "0.750", "test_resnet", "48", "1.2500"],
        ["0", "0.250", "test_resnet", "32", "0.2500"],
    ]
    assert "after" not in shown


WORDS = {
    "coefficients": ["the sum of", "a coefficient per output, plus an intercept per output"],
    "median": ["the median of members' predictions"],
    "ranks": ["as ranks"],
    "logits": ["logits", "then through the sigmoid"],
    "votes": ["votes"],
    "classes": ["logarithms", "the softmax", "divided by the temperature 1.5"],
    "shrunk": ["from each output's mean are multiplied by 0.5"],
    "thresholds": ["GENE1 0.25, GENE2 0.5, GENE3 0.75"],
}


@pytest.mark.parametrize("kind", WORDS)
def test_explain_and_readme_put_the_formula_in_words(trained, tmp_path, capsys, kind):
    bundle = export_blend(trained.run, tmp_path / "bundle", make_blend(**KINDS[kind]))
    prediction.main([str(bundle.root), "--explain"])
    shown, readme = capsys.readouterr().out, (bundle.root / "README.md").read_text()
    assert all(words in shown and words in readme for words in WORDS[kind])


def test_explain_verifies_the_digests(bundle):
    spoil(bundle / "blend.safetensors")
    with pytest.raises(UserError, match=r"blend\.safetensors was changed"):
        prediction.main([str(bundle), "--explain"])


def test_a_bundle_explains_itself(bundle):
    done = subprocess.run(
        [sys.executable, str(bundle / "predict.py"), "--explain"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "gene_expr" in done.stdout
    assert Bundle.open(bundle)
