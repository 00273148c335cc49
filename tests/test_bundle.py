"""From trained folds to a bundle that predicts by itself.

One small run is trained for the whole file: two trials of timm's test_resnet, three folds.
Shapes: T outputs, N rows.
"""

import ast
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ensemble import predict as prediction
from ensemble.build import build
from ensemble.build import main as build_main
from ensemble.bundle import Bundle, file_digest
from ensemble.members import RunFacts, load_members, score_submission
from ensemble.predict import predict_fold
from ensemble.submission import SubmissionForm
from ensemble.vendor import closure, requirements
from search.data.decode import decode
from search.data.folds import make_folds, write_folds
from search.metrics import get_metric
from search.oof import assemble, read_oof, write_fold
from search.run_folder import RunFolder, write_json
from search.train.fold import FoldJob, save_fold, train_fold
from spaces.errors import UserError
from spaces.recipe import Recipe
from spaces.task import CsvLayout

NAMES = ("GENE1", "GENE2", "GENE3")
TRAIN, TEST, STORE = 36, 7, 40
REPO = Path(__file__).resolve().parent.parent


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_data(root, rng):
    """Tiles of differing colour, and the competition's three CSVs, the sample in another order."""
    (root / "tiles").mkdir(parents=True)
    colours = rng.integers(40, 216, (TRAIN + TEST, 1, 1, 3))
    images = (colours + rng.integers(-30, 30, (TRAIN + TEST, 48, 48, 3))).astype(np.uint8)
    names = [f"R_{i:02d}" for i in range(TRAIN + TEST)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(root / "tiles" / f"{name}.png")
    targets_NT = colours.reshape(-1, 3) / 64.0
    paths = [f"./tiles/{name}.png" for name in names]
    rows = list(zip(names, paths, strict=True))
    write_csv(root / "test.csv", [("ID", "path"), *rows[TRAIN:]])
    truth = [[n, *map(float, t)] for n, t in zip(names, targets_NT, strict=True)][TRAIN:]
    write_csv(root / "truth.csv", [("ID", *NAMES), *truth])
    order = [(name, 0, 0, 0) for name in reversed(names[TRAIN:])]
    write_csv(root / "sample_submission.csv", [("ID", "GENE3", "GENE1", "GENE2"), *order])
    return names, paths, np.ascontiguousarray(targets_NT.T, dtype=np.float32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run as search.run leaves it, with its data folder. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("trained")
    names, paths, targets_TN = write_data(root / "data", np.random.default_rng(0))
    run = RunFolder(root / "run")
    fold_N = make_folds(names[:TRAIN], None, 3, 0)
    folds = write_folds(run.folds, names[:TRAIN], None, fold_N)
    np.save(run.targets, targets_TN[:, :TRAIN])
    SubmissionForm(
        target_names=NAMES,
        test_ids=tuple(names[TRAIN:]),
        ids=tuple(reversed(names[TRAIN:])),
        columns=("ID", "GENE3", "GENE1", "GENE2"),
    ).save(run.form)
    metric = get_metric("gene_expr", heg_n=2, hvg_n=2).fit(targets_TN[:, :TRAIN])
    write_json(
        run.run,
        {
            "task": "gene_expr",
            "metric": metric.to_dict(),
            "target_names": NAMES,
            "layout": dataclasses.asdict(CsvLayout()),
            "plan": {"store_size": STORE},
        },
    )
    images_NHWC = np.stack([decode(root / "data" / path, STORE) for path in paths])
    # The sizes differ from the store's and from each other, and one recipe has its own TTA.
    for trial, (size, tta) in enumerate([(32, 4), (48, 1)]):
        recipe = Recipe(
            backbone="test_resnet", weights="random", image_size=size, epochs=2, batch_size=8,
            tta=tta, seed=trial,
        )  # fmt: skip
        for k in range(3):
            result = train_fold(
                FoldJob(
                    recipe=recipe,
                    images_NHWC=images_NHWC[:TRAIN],
                    targets_TN=targets_TN[:, :TRAIN],
                    train_rows=np.flatnonzero(fold_N != k),
                    valid_rows=np.flatnonzero(fold_N == k),
                    test_images_NHWC=images_NHWC[TRAIN:],
                    seed=k,
                )
            )
            save_fold(run.checkpoints(trial) / f"fold-{k}.safetensors", result, recipe)
            write_fold(run.oof(trial), k, result.pred_TV, result.test_pred_TS)
        write_json(run.checkpoints(trial) / "recipe.json", {"recipe": recipe.to_dict()})
        assemble(
            run.oof(trial), folds=folds, target_names=NAMES, recipe_digest=recipe.digest, extra={}
        )
    return SimpleNamespace(run=run, data=root / "data", folds=folds, images_NHWC=images_NHWC)


@pytest.fixture(scope="module")
def built(trained, tmp_path_factory):
    """The run with its ensemble. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("built") / "run"
    shutil.copytree(trained.run.root, root)
    run = RunFolder(root)
    return SimpleNamespace(**{**vars(trained), "run": run, "result": build(run)})


@pytest.fixture
def bundle(built, tmp_path):
    """A bundle of one's own to spoil."""
    shutil.copytree(built.run.ensemble, tmp_path / "bundle")
    return tmp_path / "bundle"


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def numbers(path):
    return np.array([[float(value) for value in row[1:]] for row in read_csv(path)[1:]])


def test_build_leaves_a_verified_bundle_and_a_submission_in_the_samples_order(built):
    bundle = Bundle.open(built.run.ensemble)
    assert sum(member.weight for member in bundle.members) == pytest.approx(1)
    sample, ours = (
        read_csv(path) for path in (built.data / "sample_submission.csv", built.run.submission)
    )
    assert ours[0] == sample[0]
    assert [row[0] for row in ours] == [row[0] for row in sample]
    assert built.result.submission == built.run.submission
    assert not list(built.run.root.glob(".ensemble.*.old"))


def test_the_result_tells_each_score_with_its_kind(built):
    data = json.loads((built.run.ensemble / "ensemble.json").read_text())
    assert data["scores"][0]["score"] == built.result.score
    assert "optimistic" in data["scores"][0]["kind"]
    assert data["scores"][1]["score"] == built.result.nested.ensemble.mean
    assert "nested" in data["scores"][1]["kind"]
    assert sum(data["weights"].values()) == pytest.approx(1)


def test_members_are_sorted_by_their_score(built):
    pool = load_members(built.run)
    assert [m.score for m in pool.members] == sorted((m.score for m in pool.members), reverse=True)
    assert len(pool.members) == 2


@pytest.mark.parametrize("trial", [0, 1])
@pytest.mark.parametrize("fold", [0, 2])
def test_predict_fold_reproduces_the_out_of_fold_rows(trained, built, trial, fold):
    bundle = Bundle.open(built.run.ensemble)
    if trial not in [member.trial for member in bundle.members]:
        bundle = dataclasses.replace(
            bundle, members=(dataclasses.replace(bundle.members[0], trial=trial, models={
                "0": f"../checkpoints/{trial:04d}/fold-0.safetensors",
                "2": f"../checkpoints/{trial:04d}/fold-2.safetensors",
            }),),
        )  # fmt: skip
    oof_TN, _ = read_oof(trained.run.oof(trial), trained.folds, NAMES)
    rows = np.flatnonzero(trained.folds.fold == fold)
    pred_TN = predict_fold(bundle, trial, fold, trained.images_NHWC[rows], batch_size=5)
    assert pred_TN.shape == (3, len(rows))
    assert np.abs(pred_TN - oof_TN[:, rows]).max() < 1e-4


def test_prediction_from_files_equals_the_submission_kept_from_training(built, tmp_path):
    out = tmp_path / "mine.csv"
    arguments = [str(built.run.ensemble), "--data", str(built.data), "--out", str(out)]
    prediction.main([*arguments, "--batch-size", "3"])
    assert read_csv(out)[0] == read_csv(built.run.submission)[0]
    assert [r[0] for r in read_csv(out)] == [r[0] for r in read_csv(built.run.submission)]
    assert np.abs(numbers(out) - numbers(built.run.submission)).max() < 1e-4
    prediction.main([*arguments, "--tta", "8"])
    assert np.abs(numbers(out) - numbers(built.run.submission)).max() > 1e-4


def test_the_bundle_predicts_without_ray_optuna_and_this_package(built, tmp_path):
    """Isolated mode, another folder, no path to the repository, and what must not be needed cannot
    be found."""
    moved = tmp_path / "moved"
    shutil.copytree(built.run.ensemble, moved)
    runner = tmp_path / "runner.py"
    runner.write_text(f"""
import runpy, sys
from pathlib import Path

class Without:  # what is refused looks as if it were not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.split(".")[0] in ("ray", "optuna", "sklearn", "pyarrow")
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(f) for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path({str(REPO)!r})]
for name in ("ray", "optuna", "ensemble"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{name}} can still be imported")
sys.argv[0] = {str(moved / "predict.py")!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    for name in ("spaces", "search", "ensemble"):
        file = sys.modules[name].__file__
        assert file.startswith({str(moved)!r}), file
""")
    out = tmp_path / "isolated.csv"
    done = subprocess.run(
        [sys.executable, "-I", str(runner), "--data", str(built.data), "--out", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = tmp_path / "ours.csv"
    prediction.main([str(built.run.ensemble), "--data", str(built.data), "--out", str(ours)])
    assert out.read_bytes() == ours.read_bytes()
    assert Bundle.open(moved)  # running added nothing that changes a digest
    assert not list(moved.rglob("__pycache__"))


def test_the_vendored_code_needs_no_search_libraries_and_every_import_is_pinned():
    found = closure()
    assert not {"ray", "optuna", "sklearn", "pyarrow", "rich"} & set(found.packages)
    assert {"torch", "timm", "numpy", "PIL"} <= set(found.packages)
    assert {Path("ensemble/predict.py"), Path("search/model/infer.py")} <= set(found.files)
    pins = {line.split("==")[0] for line in requirements(found)}
    assert {"torch", "torchvision", "timm", "pillow", "numpy", "pandas", "safetensors"} <= pins
    assert all("+" not in line for line in requirements(found))


def test_the_closure_follows_lazy_imports_but_not_those_of_type_checking(tmp_path):
    for name, text in {
        "ensemble/__init__.py": "def __getattr__(name):\n    import ray\n",
        "ensemble/predict.py": (
            "from ensemble import late\ndef f():\n    from search.deep import x\n"
        ),
        "ensemble/late.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import optuna\n"
        ),
        "search/__init__.py": "",
        "search/deep.py": "import json\nimport numpy.linalg\n",
        "search/unused.py": "import ray\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        ast.parse(text)
    found = closure(root=tmp_path)
    assert [str(file) for file in found.files] == [
        "ensemble/__init__.py",
        "ensemble/late.py",
        "ensemble/predict.py",
        "search/__init__.py",
        "search/deep.py",
    ]
    assert found.packages == ("numpy",)


def spoil(path):
    """Change one bit and leave length and time as they were."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_changed_byte_in_any_file_is_refused_by_name(bundle):
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    assert len(files) > 25
    for path in files:
        if path.name != "manifest.json":
            file_digest(path)  # known to this process: that must not count when verifying
        before = path.read_bytes()
        spoil(path)
        with pytest.raises(UserError, match="was changed") as caught:
            Bundle.open(bundle)
        assert str(path) in caught.value.faults[0]
        path.write_bytes(before)
    assert Bundle.open(bundle)


def test_missing_files_are_all_named_and_another_folder_is_no_bundle(bundle, tmp_path):
    gone = [bundle / "README.md", next((bundle / "models").rglob("fold-1.safetensors"))]
    for path in gone:
        path.unlink()
    with pytest.raises(UserError) as caught:
        Bundle.open(bundle)
    assert sorted(f.split(" is missing")[0] for f in caught.value.faults) == sorted(map(str, gone))
    with pytest.raises(UserError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_the_command_refuses_a_changed_bundle_with_exit_1_and_writes_nothing(bundle, built):
    spoil(bundle / "requirements.txt")
    out = bundle / "out.csv"
    done = subprocess.run(
        [sys.executable, str(bundle / "predict.py"), "--data", str(built.data), "--out", str(out)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "requirements.txt was changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


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
    assert np.abs(numbers(out)[::-1] - numbers(built.run.submission)).max() < 1e-4


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
            str(built.run.ensemble), "--data", str(built.data), "--out", str(tmp_path),
            "--tta", "3", "--batch-size", "0",
        ])  # fmt: skip
    assert len(caught.value.faults) == 3
    with pytest.raises(UserError, match="--max-members is 0"):
        build(built.run, max_members=0)


def test_the_submission_is_scored_against_the_truth(built):
    facts = RunFacts.read(built.run)
    truth = built.data / "truth.csv"
    score = score_submission(built.run.submission, truth, facts)
    value_of = {row[0]: row for row in read_csv(built.run.submission)[1:]}
    rows = read_csv(truth)[1:]
    pred = np.array([[float(value_of[r[0]][c]) for c in (2, 3, 1)] for r in rows]).T
    true = np.array([[float(v) for v in r[1:]] for r in rows]).T
    assert score == facts.metric.score(pred, true)
    perfect = score_submission(truth, truth, facts)
    assert perfect.value == pytest.approx(1)


def test_building_again_replaces_the_bundle_and_spares_other_folders(trained, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    build(run)
    (run.ensemble / "old").touch()
    build_main([str(run.root), "--max-members", "1"])
    assert not (run.ensemble / "old").exists()
    assert len(Bundle.open(run.ensemble).members) == 1
    shown = capsys.readouterr().out
    assert "optimistic" in shown and "nested" in shown and "±" in shown
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("keep")
    with pytest.raises(UserError, match="is no bundle"):
        build(run, out=mine)
    assert (mine / "thesis.txt").read_text() == "keep"
    build(run, out=tmp_path / "elsewhere" / "bundle")
    assert Bundle.open(tmp_path / "elsewhere" / "bundle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "mine", "run"]


def test_a_failed_export_leaves_the_old_bundle(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    build(run)
    for model in run.root.glob("checkpoints/*/fold-2.safetensors"):
        model.unlink()
    with pytest.raises(UserError, match=r"lacks the models of folds \[2\]"):
        build(run)
    assert Bundle.open(run.ensemble)
    assert [p for p in run.root.iterdir() if p.name.startswith(".ensemble.") and p.is_dir()] == []


def test_a_run_without_members_and_a_damaged_member_are_told(trained, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    with open(run.oof(0) / "pred.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(UserError, match="member 0000"):
        build(run)
    shutil.rmtree(run.root / "oof")
    with pytest.raises(UserError, match="has no member"):
        build(run)
