"""--refit: the ensemble's recipes on all rows, for as many epochs as their folds liked best."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ensemble import predict as prediction
from ensemble.bundle import Bundle
from search.metrics import FittedMetric
from search.model.infer import FoldModel
from search.refit import best_epochs
from search.run import check_resume, given, parser
from search.run_folder import read_json
from search.train.fold import FoldTraining
from search.train.probe import ProbeTraining
from search.trials import Trial
from spaces.errors import UserError
from tests.modelruns import one_thread
from tests.onehand import search

EPOCHS = 3


def trial_of(curves: dict[int, list[float]]) -> Trial:
    """A trial with these scores of each fold's epochs, told out of order."""
    trial = Trial(number=0, params={}, recipe={})
    points = [(fold, n + 1, score) for fold, s in curves.items() for n, score in enumerate(s)]
    for fold, epoch, score in sorted(points, key=lambda point: -point[1]):
        trial.curve[fold, epoch] = {"score": score}
    return trial


@pytest.mark.parametrize(
    ("curves", "epochs"),
    [
        ({0: [0.1, 0.5, 0.4]}, 2),
        ({0: [0.1, 0.5, 0.5]}, 2),  # the earlier of two alike
        ({0: [0.1, 0.2, 0.3, 0.4], 1: [0.5, 0.2, 0.1, 0.0], 2: [0.1, 0.2, 0.3, 0.4]}, 3),
        ({0: [0.9, 0.1], 1: [0.9, 0.1]}, 1),
        ({0: [float("nan"), 0.1, 0.3], 1: [0.1, float("nan"), 0.2]}, 3),
        ({0: [-0.5, -0.1], 1: [-0.5, -0.1]}, 2),
    ],
)
def test_the_mean_over_folds_of_the_best_epoch(curves: Any, epochs: int) -> None:
    assert best_epochs(trial_of(curves)) == epochs


@pytest.fixture(scope="module")
def refitted(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two trials on two folds, refitted in a session of its own."""
    root = tmp_path_factory.mktemp("refit") / "run"
    search("gene_expr", "--data", tiles, "--out", root, "--trials", 2, "--epochs", EPOCHS,
           "--folds", 2, "--groups", "none", "--image-size", 32, "--backbone", "test_resnet",
           "test_efficientnet")  # fmt: skip
    before = {p: p.read_bytes() for p in root.glob("ensemble/*.json")}
    search("--resume", root, "--refit")
    return SimpleNamespace(root=root, data=tiles, before=before)


def test_each_member_has_one_model_of_all_rows(refitted: SimpleNamespace) -> None:
    ours = Bundle.open(refitted.root / "refit" / "ensemble")
    folds = Bundle.open(refitted.root / "ensemble")
    assert [m.name for m in ours.members] == [m.name for m in folds.members]
    assert [m.weight for m in ours.members] == [m.weight for m in folds.members]
    for number, member in enumerate(ours.members):
        assert member.folds == ["all"]
        (part,) = member.parts
        assert part.models == {"all": f"models/{number:02d}/fold-all.safetensors"}
        kept = refitted.root / "refit" / f"{int(member.name):04d}" / "fold-all.safetensors"
        assert (ours.root / part.models["all"]).read_bytes() == kept.read_bytes()
    models = list((refitted.root / "refit").glob("*/fold-*.safetensors"))
    assert {p.name for p in models} == {"fold-all.safetensors"} and len(models) == len(ours.members)


def test_the_models_have_learned_from_all_rows(refitted: SimpleNamespace) -> None:
    """Their targets' means are those of the whole table."""
    targets_TN = np.load(refitted.root / "targets.npy")
    images_NHWC = np.load(next(Path(read_json(refitted.root / "run.json")["store"]).glob("*.npy")))
    folder = next((refitted.root / "refit").glob("0*"))
    with one_thread():
        model = FoldModel.load(folder / "fold-all.safetensors")
        np.testing.assert_allclose(
            model.predict(images_NHWC[targets_TN.shape[1] :]).T,
            np.load(folder / "test.npy"), atol=1e-4,
        )  # fmt: skip
    facts = load_file(folder / "fold-all.safetensors")
    np.testing.assert_allclose(facts["target.mean"], targets_TN.mean(axis=1), rtol=1e-4)
    assert 1 <= model.recipe.epochs <= EPOCHS


def test_the_bundle_says_what_it_is_and_predicts_the_refitted_submission(
    refitted: SimpleNamespace, tmp_path: Path
) -> None:
    bundle, out = refitted.root / "refit" / "ensemble", tmp_path / "mine.csv"
    readme = (bundle / "README.md").read_text()
    assert "there are no out-of-fold predictions" in readme
    assert "one model trained on all rows" in readme and "fold models of a member" not in readme
    with one_thread():
        prediction.main([str(bundle), "--data", str(refitted.data), "--out", str(out)])
    theirs = refitted.root / "refit" / "submission.csv"
    ours, kept = (list(csv.reader(path.read_text().splitlines())) for path in (out, theirs))
    assert ours[0] == kept[0] and [row[0] for row in ours] == [row[0] for row in kept]
    a, b = (np.array([row[1:] for row in rows[1:]], float) for rows in (ours, kept))
    np.testing.assert_allclose(a, b, atol=1e-4)
    first = (refitted.root / "submission.csv").read_text()
    assert first != theirs.read_text()


def test_the_fold_models_stay_what_they_are(refitted: SimpleNamespace) -> None:
    for path, content in refitted.before.items():
        if path.name == "ensemble.json":
            assert path.read_bytes() == content
    assert not any("no out-of-fold" in p.read_text() for p in refitted.root.glob("ensemble/*.md"))


def test_a_second_call_trains_nothing_and_a_lost_model_only_itself(
    refitted: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    shutil.copytree(refitted.root, root)
    models = sorted((root / "refit").glob("*/fold-all.safetensors"))
    lost, content = models[0], models[0].read_bytes()
    trained: list[int] = []
    epoch = FoldTraining.epoch
    monkeypatch.setattr(FoldTraining, "epoch", lambda self: trained.append(1) or epoch(self))
    search("--resume", root, "--refit")
    assert not trained
    lost.unlink()
    search("--resume", root, "--refit")
    assert 1 <= len(trained) <= EPOCHS
    again, before = (FoldModel.load(p) for p in (lost, refitted.root / lost.relative_to(root)))
    assert lost.read_bytes() == content or again.recipe == before.recipe  # the same seed
    assert sorted((root / "refit").glob("*/fold-all.safetensors")) == models


# --- other recipes, and other data


def table(root: Path, rows: int = 48) -> Path:
    """A folder for the task csv: bright images are of class "b"; a column of groups."""
    rng = np.random.default_rng(0)
    (root / "tiles").mkdir(parents=True)
    lines = ["id,image,grade,patient"]
    for i in range(rows):
        pixels = rng.integers(0, 120, (32, 32, 3)) + 100 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "tiles" / f"{i}.png")
        lines.append(f"r{i},tiles/{i}.png,{'ab'[i % 2]},p{i // 4}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one trial without test rows. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("csv")
    data, run = table(root / "data"), root / "run"
    search("csv", "--data", data, "--targets", "grade", "--out", run, "--trials", 1, "--epochs", 1,
           "--folds", 2, "--groups", "patient", "--image-size", 32,
           "--backbone", "test_resnet")  # fmt: skip
    return run


@pytest.fixture
def csv_run(finished: Path, tmp_path: Path) -> Path:
    """One of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_without_test_rows_there_are_models_and_no_submission(csv_run: Path) -> None:
    run = csv_run
    search("--resume", run, "--refit")
    bundle = Bundle.open(run / "refit" / "ensemble")
    assert [member.folds for member in bundle.members] == [["all"]]
    assert not list((run / "refit").glob("*.csv"))


def test_a_probe_is_refitted_as_its_folds_were_fitted(
    csv_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is chosen by the metric, with groups kept whole."""
    run = csv_run
    seen: dict[str, Any] = {}
    begin = ProbeTraining.__init__

    def watch(self: ProbeTraining, job: Any, **options: Any) -> None:
        seen.update(options, job=job)
        begin(self, job, **options)

    monkeypatch.setattr(ProbeTraining, "__init__", watch)
    journal = run / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "ask":
            line["data"]["recipe"] |= {"probe": "ridge", "epochs": 1}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search("--resume", run, "--refit")
    targets_TN = np.load(run / "targets.npy")
    metric = FittedMetric.from_dict(read_json(run / "run.json")["metric"])
    pred_TN = np.random.default_rng(0).random(targets_TN.shape).astype(np.float32)
    assert seen["score"](pred_TN, targets_TN) == metric.score(pred_TN, targets_TN).value
    assert seen["groups_N"].tolist() == np.unique(
        [f"p{i // 4}" for i in range(48)], return_inverse=True
    )[1].tolist()  # fmt: skip
    assert len(seen["job"].train_rows) == 48 and not len(seen["job"].valid_rows)
    assert (run / "refit" / "0000" / "fold-all.safetensors").is_file()


# --- the command line


def asked(*arguments: str) -> None:
    check_resume(parser().parse_args(arguments), given(arguments))


def test_refit_goes_with_resume_and_not_with_hours() -> None:
    asked("--resume", "RUN", "--refit")
    asked("--resume", "RUN", "--refit", "--extend", "3")
    asked("gene_expr", "--refit")
    with pytest.raises(UserError, match="--refit takes as long as it takes"):
        asked("gene_expr", "--hours", "1", "--refit")
    with pytest.raises(UserError, match="leave out --hours"):
        asked("--resume", "RUN", "--refit", "--hours", "1")
