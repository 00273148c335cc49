"""--init-from on the command line: which checkpoint each fold of a run starts from, and that the
network that is trained has its weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from search.data.folds import read_folds
from search.model.backbone import build_model
from search.model.infer import FoldModel
from search.model.initial import start_from
from search.run_folder import read_json
from search.setup import reopen
from search.train.fold import FoldJob, FoldTraining
from search.train.frozen import Frozen
from search.train.probe import ProbeTraining
from spaces.errors import UserError
from spaces.parts import Classification
from spaces.recipe import Recipe
from tests.modelruns import one_thread
from tests.onehand import search
from tests.test_refit import table

SMALL = ("--epochs", 1, "--folds", 2, "--groups", "none", "--image-size", 32, "--trials", 1,
         "--backbone", "test_resnet")  # fmt: skip
PREFIX = "backbone."


@pytest.fixture(scope="module")
def source(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one finished trial. Not to be changed by a test."""
    root = tmp_path_factory.mktemp("source") / "run"
    search("gene_expr", "--data", tiles, "--out", root, "--weights", "random", *SMALL)
    return root


def checkpoint(run: Path, fold: int) -> Path:
    return run / "checkpoints" / "0000" / f"fold-{fold}.safetensors"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The jobs whose networks are made from here on, with the backbone that each begins with."""
    found: list[SimpleNamespace] = []

    def watch(kind: type, network_of: Any) -> None:
        begin = kind.__init__  # type: ignore[misc]

        def init(self: Any, job: FoldJob, *others: Any, **options: Any) -> None:
            begin(self, job, *others, **options)
            state = network_of(self).backbone.state_dict()
            found.append(SimpleNamespace(job=job, state={k: t.clone() for k, t in state.items()}))

        monkeypatch.setattr(kind, "__init__", init)

    watch(FoldTraining, lambda training: training.state.network)
    watch(Frozen, lambda frozen: frozen.model.network)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are overwritten at once are not asked for."""
    create = timm.create_model

    def watched(*names: Any, **options: Any) -> Any:
        assert not options.get("pretrained")
        return create(*names, **options)

    monkeypatch.setattr(timm, "create_model", watched)


def same_backbone(state: dict[str, torch.Tensor], path: Path) -> bool:
    theirs = load_file(path)
    return all(torch.equal(tensor, theirs[PREFIX + name]) for name, tensor in state.items())


def test_each_fold_starts_from_the_model_that_has_not_seen_it(
    source: Path, tiles: Path, tmp_path: Path, begun: list[SimpleNamespace],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    search("gene_expr", "--data", tiles, "--out", run, "--init-from", source, *SMALL)
    output = " ".join(capsys.readouterr().out.split())
    assert f"weights: test_resnet from trial 0 of {source.resolve()}" in output
    assert "60 rows are the same" in output
    initial = read_json(run / "run.json")["initial"]
    assert initial == {
        "test_resnet": {str(k): str(checkpoint(source, k).resolve()) for k in (0, 1)}
    }
    assert len(begun) == 2
    fold_of = {}
    for start in begun:
        job = start.job
        assert job.recipe.weights == "pretrained"  # learning rates of networks that know something
        assert same_backbone(start.state, job.initial)
        fold_of[job.initial.name] = set(job.valid_rows.tolist())
    # Fold k's model has seen all rows but those of fold k, which it starts the same fold of.

    fold_N = read_folds(source / "folds.parquet").fold
    assert fold_of == {
        f"fold-{k}.safetensors": set(np.flatnonzero(fold_N == k).tolist()) for k in (0, 1)
    }


def test_other_folds_of_the_same_rows_are_refused(
    source: Path, tiles: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for where in (source, checkpoint(source, 0)):
        with pytest.raises(UserError, match=r"60 rows of the same ids, \d+ of them in other folds"):
            search("gene_expr", "--data", tiles, "--out", run, "--init-from", where, *SMALL,
                   "--seed", 1)  # fmt: skip
        assert not run.exists()


def test_a_file_of_a_run_stands_for_its_folds(
    source: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search("gene_expr", "--data", tiles, "--out", tmp_path / "run", "--init-from",
           checkpoint(source, 1), *SMALL, "--dry-run")  # fmt: skip
    output = " ".join(capsys.readouterr().out.split())
    assert "each fold from its own model since 60 rows are the same" in output
    assert not (tmp_path / "run").exists()


def test_backbones_that_cannot_start_there_are_left_out_and_named(
    source: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    search("gene_expr", "--data", tiles, "--out", run, "--init-from", source, *SMALL,
           "test_efficientnet", "--dry-run")  # fmt: skip
    output = " ".join(capsys.readouterr().out.split())
    assert "left out: test_efficientnet" in output
    with pytest.raises(UserError, match=r"trials of test_resnet.*over test_efficientnet"):
        search("gene_expr", "--data", tiles, "--out", run, "--init-from", source, *SMALL,
               "--backbone", "test_efficientnet")  # fmt: skip
    with pytest.raises(UserError, match=r"--init-from .*nowhere does not exist"):
        search("gene_expr", "--data", tiles, "--out", run, "--init-from", tmp_path / "nowhere",
               *SMALL)  # fmt: skip


def test_ones_own_file_starts_a_task_of_other_targets(
    tmp_path: Path, begun: list[SimpleNamespace]
) -> None:
    """Classes in place of values, on rows that nothing has seen."""

    theirs = timm.create_model("test_resnet", num_classes=9)
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors")
    data, run = table(tmp_path / "data"), tmp_path / "run"
    search("csv", "--data", data, "--targets", "grade", "--out", run, "--init-from",
           tmp_path / "mine.safetensors", *SMALL)  # fmt: skip
    assert len(begun) == 2
    for start in begun:
        assert start.job.initial == (tmp_path / "mine.safetensors").resolve()
        for name, tensor in start.state.items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    model = FoldModel.load(run / "checkpoints" / "0000" / "fold-0.safetensors")
    with one_thread():
        pred_NT = model.predict(np.zeros((2, 32, 32, 3), np.uint8))
    assert pred_NT.shape == (2, 2)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("views", [1, 2])
def test_a_job_of_other_heads_channels_and_views(source: Path, channels: int, views: int) -> None:
    path = checkpoint(source, 0)
    rng = np.random.default_rng(0)
    stored = max(channels, 3)
    job = FoldJob(
        recipe=Recipe(
            backbone="test_resnet", weights="pretrained", image_size=32, channels=channels,
            normalise="minmax", epochs=1, batch_size=4, task=Classification(),
            fusion="attention" if views > 1 else "mean",
        ),
        images_NHWC=rng.integers(0, 256, (8 * views, 32, 32, stored), dtype=np.uint8),
        targets_TN=np.float32(rng.random((5, 8)) > 0.5),
        train_rows=np.arange(6), valid_rows=np.arange(6, 8), task_type="multilabel", views=views,
        initial=path,
    )  # fmt: skip
    with one_thread():
        training = FoldTraining(job)
        ours, theirs = training.state.network.backbone.state_dict(), load_file(path)
        changed = [n for n, t in ours.items() if not torch.equal(t, _of(theirs, n, t))]
        assert changed == ["conv1.0.weight"]
        wanted = build_model(job.recipe, 5, pretrained=False, channels=channels, views=views)
        start_from(wanted, path)
        stem = wanted.backbone.state_dict()["conv1.0.weight"]
        assert torch.equal(ours["conv1.0.weight"], stem) and stem.shape[1] == channels
        result = training.epoch()
    assert result.pred_TV is not None and result.pred_TV.shape == (5, 2)


def _of(theirs: dict[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
    found = theirs[PREFIX + name]
    return found if found.shape == like.shape else torch.zeros_like(like)


def test_a_probe_sees_through_the_network_that_it_is_given(
    source: Path, begun: list[SimpleNamespace]
) -> None:
    path, rng = checkpoint(source, 1), np.random.default_rng(0)
    job = FoldJob(
        recipe=Recipe(
            backbone="test_resnet", weights="pretrained", image_size=32, probe="ridge", epochs=1
        ),
        images_NHWC=rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8),
        targets_TN=rng.random((2, 12)).astype(np.float32),
        train_rows=np.arange(8), valid_rows=np.arange(8, 12), initial=path,
    )  # fmt: skip
    with one_thread():
        training = ProbeTraining(job)
        training.epoch()
        training.finish()
    (start,) = begun
    assert same_backbone(start.state, path)


def test_a_resumed_run_needs_its_starts_and_a_refit_uses_one(
    source: Path, tiles: Path, tmp_path: Path, begun: list[SimpleNamespace]
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    copy.mkdir()
    for fold in (0, 1):
        data = checkpoint(source, fold).read_bytes()
        (copy / f"fold-{fold}.safetensors").write_bytes(data)
    # Outside a run: whose rows these are is not known, so one file serves all folds.
    start = copy / "fold-0.safetensors"
    search("gene_expr", "--data", tiles, "--out", run, "--init-from", start, *SMALL)
    setup = reopen(run)
    assert setup.initial == {"test_resnet": dict.fromkeys(("0", "1"), str(start.resolve()))}
    begun.clear()
    search("--resume", run, "--refit")
    assert [len(b.job.valid_rows) for b in begun] == [0]
    assert begun[0].job.initial == start.resolve() and same_backbone(begun[0].state, start)
    start.unlink()
    with pytest.raises(UserError, match=r"start from are gone: .*fold-0\.safetensors"):
        reopen(run)
