"""Training one fold: schedule, averages, memory, resume, reproduction.

Shapes: N rows, V validation rows, T outputs, H W C height, width and channels.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.model.infer import FoldModel
from search.model.memory import OutOfMemory, pieces
from search.train.fold import FoldTraining, save_fold, train_fold
from search.train.job import Diverged, EpochResult, FoldJob
from search.train.optim import AveragedModel, learning_rate, make_optimizer
from spaces.errors import UserError
from spaces.parts import Classification, Regression
from spaces.recipe import Augment, Recipe

ROWS, OUTPUTS, SIZE = 56, 6, 32
GOLDEN = [0.985648, 0.758045, 0.611585]  # torch 2.15, timm 1.0.31


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Sums in a fixed order: some of these tests compare bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job(**changes: Any) -> FoldJob:
    """A small fold whose targets are functions of the images' colours; `changes` go to the recipe
    or to the job."""
    rng = np.random.default_rng(0)
    tint = rng.random((ROWS, 1, 1, 3))
    noise = rng.random((ROWS, SIZE, SIZE, 3))
    targets_TN = rng.normal(size=(OUTPUTS, 3)) @ tint[:, 0, 0].T + 3
    recipe = {
        "backbone": "test_resnet",
        "image_size": SIZE,
        "batch_size": 8,
        "epochs": 3,
        "lr": 2e-3,
        "ema": 0.9,
        "drop": 0.2,
        "tta": 4,
        "augment": Augment(brightness=0.1, rotate=10.0),
        "task": Regression(),
    }
    settings: dict[str, Any] = {
        "images_NHWC": (255 * (0.6 * tint + 0.4 * noise)).astype(np.uint8),
        "targets_TN": targets_TN.astype(np.float32),
        "train_rows": np.arange(0, 42),
        "valid_rows": np.arange(42, ROWS),
        "seed": 5,
        "bf16": False,  # the same on every CPU
    }
    for name, value in changes.items():
        (settings if name in FoldJob.__dataclass_fields__ else recipe)[name] = value
    return FoldJob(**{"recipe": Recipe(**recipe), **settings})


def run(job: FoldJob) -> tuple[list[EpochResult], Any]:
    epochs: list[EpochResult] = []

    def on_epoch(result: EpochResult) -> bool:
        epochs.append(result)
        return True

    return epochs, train_fold(job, on_epoch)


# --- schedule, optimiser, averages


@given(st.integers(1, 300), st.integers(0, 100), st.floats(1e-6, 1))
def test_learning_rate_climbs_to_its_peak_and_falls_towards_zero(
    total: int, warmup: int, peak: float
) -> None:
    rates = [learning_rate(step, total, warmup, peak) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    climb, fall = rates[:warmup], rates[warmup:]
    assert climb == sorted(climb)
    assert fall == sorted(fall, reverse=True)
    if fall:
        assert fall[0] == pytest.approx(peak)


def test_norms_and_biases_do_not_decay_and_the_head_has_its_own_rate() -> None:
    training = FoldTraining(job(head_lr_mult=10.0, weight_decay=0.3))
    optimizer = make_optimizer(training.state.network, training.job.recipe)
    found = {
        id(p): (group["scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in training.state.network.named_parameters():
        scale = 10.0 if name.startswith("head.") else 1.0
        assert found[id(parameter)] == (scale, 0.3 if parameter.ndim > 1 else 0)


def test_average_is_the_recursion_with_a_growing_decay() -> None:
    source = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = AveragedModel(source, 0.5)
    expected = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(torch.randn_like(parameter))
        source(torch.randn(4, 3))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in source.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


# --- one fold


def test_a_fold_learns_and_reports_each_epoch() -> None:
    small = job(epochs=8, lr=4e-3)
    epochs, result = run(small)
    assert [e.epoch for e in epochs] == list(range(1, 9))
    assert epochs[-1].loss < 0.6 * epochs[0].loss
    true_TV = small.targets_TN[:, small.valid_rows]
    corr = [np.corrcoef(p, t)[0, 1] for p, t in zip(result.pred_TV, true_TV, strict=True)]
    assert np.mean(corr) > 0.8
    assert result.pred_TV.dtype == np.float32
    # Original units: better than the mean of the training rows.
    mean_T1 = small.targets_TN[:, small.train_rows].mean(1, keepdims=True)
    assert np.square(result.pred_TV - true_TV).mean() < np.square(mean_T1 - true_TV).mean()


def test_golden_losses() -> None:
    """Seeded losses of one fold. A change here changes every result: say so in the CHANGELOG."""
    losses = [result.loss for result in run(job())[0]]
    assert losses == pytest.approx(GOLDEN, rel=2e-3)


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    one, two, other = (run(job(epochs=1, seed=seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.pred_TV, two.pred_TV)
    assert np.abs(one.pred_TV - other.pred_TV).max() > 1e-4


def test_only_the_wanted_epochs_are_evaluated_and_a_stopped_fold_has_no_result() -> None:
    epochs, result = run(job(evaluate_at=frozenset({2}), epochs=4))
    assert [e.epoch for e in epochs if e.pred_TV is not None] == [2, 4]
    assert result is not None
    seen: list[int] = []
    stopped = train_fold(job(), lambda result: seen.append(result.epoch) or result.epoch < 2)
    assert stopped is None
    assert seen == [1, 2]


def test_a_rate_far_too_high_is_named_diverged() -> None:
    with pytest.raises(Diverged, match="epoch"):
        run(job(optimizer="sgd", lr=10.0, ema=0.0, head_lr_mult=1000.0, backbone="test_convnext"))


def test_validation_and_test_rows_do_not_touch_training() -> None:
    plain = run(job(epochs=1))[1]
    images = job().images_NHWC
    changed = job(epochs=1)
    targets_TN = changed.targets_TN.copy()
    targets_TN[:, changed.valid_rows] = 99
    blind = run(dataclasses.replace(changed, targets_TN=targets_TN, test_images_NHWC=images[:3]))
    np.testing.assert_array_equal(plain.pred_TV, blind[1].pred_TV)
    assert blind[1].test_pred_TS.shape == (OUTPUTS, 3)
    assert plain.test_pred_TS is None


# --- checkpoints


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"optimizer": "sgd", "lr": 0.02, "ema": 0.0},
        {"backbone": "test_vit", "drop_path": 0.2, "optimizer": "adam"},
        {"schedule": "onecycle", "swa": 0.7, "head_warmup": 1.0},
        {"schedule": "exponential", "freeze": "last_block", "swa": 0.01},
        {  # learns too little
            "schedule": "plateau", "lr": 1e-6, "epochs": 4, "layer_decay": 0.7, "batch_size": 7,
            "drop": 0.0, "augment": Augment(flip=False, rot90=False),
        },
    ),
    ids=(
        "adamw", "sgd without average", "adam, stochastic depth", "onecycle, average of epochs",
        "exponential, frozen", "plateau",
    ),
)  # fmt: skip
def test_resumed_fold_is_bit_for_bit_the_unbroken_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    small = job(**{"train_rows": np.arange(23), **changes})
    unbroken = FoldTraining(small)
    while not unbroken.done:
        unbroken.epoch()
        unbroken.save(tmp_path / f"{unbroken.state.epoch}.safetensors", "a note")
    expected = unbroken.finish()
    for stop in (1, 3):
        torch.rand(1)  # the global generator's place does not matter
        resumed = FoldTraining(small)
        assert resumed.restore(tmp_path / f"{stop}.safetensors") == "a note"
        assert resumed.state.epoch == stop
        while not resumed.done:
            resumed.epoch()
        plateau = dataclasses.asdict(resumed.state.plateau)
        assert plateau == dataclasses.asdict(unbroken.state.plateau)
        assert plateau["factor"] < 1 or small.recipe.schedule != "plateau"
        result = resumed.finish()
        np.testing.assert_array_equal(result.pred_TV, expected.pred_TV)
        for name, tensor in expected.state.items():
            torch.testing.assert_close(result.state[name], tensor, rtol=0, atol=0, msg=name)


def test_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch.safetensors"
    training = FoldTraining(job())
    training.epoch()
    training.save(path)
    with pytest.raises(UserError, match="seed 6"):
        FoldTraining(job(seed=6)).restore(path)
    with pytest.raises(UserError, match="belongs to recipe"):
        FoldTraining(job(lr=3e-3)).restore(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="no epoch checkpoint"):
        FoldTraining(job()).restore(path)


def test_bfloat16_is_trained_in_where_it_is_faster_and_learns_the_same() -> None:
    assert not FoldTraining(job(backbone="test_convnext", bf16=None)).state.bf16  # depthwise
    assert not FoldTraining(job(backbone="test_vit", bf16=None)).state.bf16
    exact, coarse = (run(job(bf16=bf16, drop=0.0)) for bf16 in (False, True))
    assert coarse[0][0].loss != exact[0][0].loss
    assert coarse[0][-1].loss == pytest.approx(exact[0][-1].loss, rel=0.1)


@pytest.mark.parametrize(
    "changes", ({}, {"bf16": True}, {"ema": 0.0, "backbone": "test_vit", "tta": 8})
)
def test_fold_model_reproduces_the_folds_predictions(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    small = job(test_images_NHWC=job().images_NHWC[:5], **changes)
    result = run(small)[1]
    save_fold(tmp_path / "fold-0.safetensors", result, small.recipe)
    model = FoldModel.load(tmp_path / "fold-0.safetensors")
    again_TV = model.predict(small.images_NHWC[small.valid_rows], batch_size=5).T
    np.testing.assert_allclose(again_TV, result.pred_TV, atol=1e-4)
    test_TS = model.predict(small.test_images_NHWC).T
    np.testing.assert_allclose(test_TS, result.test_pred_TS, atol=1e-4)


# --- memory


@given(st.integers(1, 200), st.integers(1, 200))
def test_pieces_cover_a_batch_evenly(rows: int, micro_batch: int) -> None:
    sizes = [part.stop - part.start for part in pieces(rows, micro_batch)]
    assert sum(sizes) == rows
    assert len(sizes) == -(-rows // micro_batch)
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1


def with_micro_batch(job: FoldJob, micro_batch: int) -> FoldTraining:
    training = FoldTraining(job)
    training.state.micro_batch = micro_batch
    return training


@pytest.mark.parametrize("micro_batch", (3, 1))
@pytest.mark.parametrize("loss", ("mse", "huber", "mse_pearson_cell"))
def test_micro_batches_agree_with_the_full_batch(loss: str, micro_batch: int) -> None:
    """For a model without batch statistics and a loss that adds up over rows. SGD, since Adam
    divides by the gradient's size and so turns rounding into a full step where it is near zero."""
    small = job(
        backbone="test_convnext", optimizer="sgd", lr=0.005, drop=0.0, task=Regression(loss=loss),
        train_rows=np.arange(19),
    )  # fmt: skip
    full, cut = FoldTraining(small), with_micro_batch(small, micro_batch)
    for _ in range(2):
        assert cut.epoch().loss == pytest.approx(full.epoch().loss, rel=1e-5)
    weights = full.state.network.state_dict()
    for name, tensor in cut.state.network.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-5, msg=name)


class Memory:
    """Stands in for a device that holds `rows` samples in training; counts what it is given."""

    def __init__(self, training: FoldTraining, rows: int, spare_first: int = 0) -> None:
        self.rows, self.calls, self.spare_first = rows, 0, spare_first
        training.state.network.register_forward_pre_hook(self)

    def __call__(self, network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.calls += 1
        if network.training and len(inputs[0]) > self.rows and self.calls > self.spare_first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


@pytest.mark.parametrize("ema", (0.0, 0.9))
@pytest.mark.parametrize("spare_first", (0, 1, 2), ids=("at once", "mid-epoch", "second epoch"))
def test_running_out_of_memory_leaves_no_trace(ema: float, spare_first: int) -> None:
    small = job(ema=ema, evaluate_at=frozenset(), train_rows=np.arange(16))
    failing = FoldTraining(small)
    Memory(failing, 4, spare_first)
    first = failing.epoch()
    second = failing.epoch()
    reference = with_micro_batch(small, 8 if spare_first == 2 else 4)
    assert reference.epoch().loss == first.loss
    reference.state.micro_batch = 4
    assert reference.epoch().loss == second.loss
    assert second.micro_batch == 4
    theirs = reference.state.tensors()
    for name, tensor in failing.state.tensors().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


def test_a_micro_batch_of_one_that_fails_is_out_of_memory() -> None:
    training = FoldTraining(job(backbone="test_convnext"))
    memory = Memory(training, 0)
    with pytest.raises(OutOfMemory, match="batch of 1"):
        training.epoch()
    assert memory.calls == 4  # 8, 4, 2, 1
    assert training.state.epoch == training.state.step == 0


def test_the_micro_batch_survives_a_checkpoint(tmp_path: Path) -> None:
    training = with_micro_batch(job(), 4)
    training.epoch()
    training.save(tmp_path / "epoch.safetensors")
    resumed = FoldTraining(job())
    resumed.restore(tmp_path / "epoch.safetensors")
    assert resumed.state.micro_batch == 4


# --- on a GPU


@pytest.mark.gpu
def test_a_fold_on_the_gpu_learns_and_is_reproduced_by_its_model(tmp_path: Path) -> None:
    small = job(epochs=8, lr=4e-3, device="cuda", bf16=None)
    on_device = torch.from_numpy(small.images_NHWC).cuda()
    epochs, result = run(dataclasses.replace(small, images_NHWC=on_device))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    assert epochs[-1].peak_memory_bytes > 0
    save_fold(tmp_path / "fold-0.safetensors", result, small.recipe)
    model = FoldModel.load(tmp_path / "fold-0.safetensors", device="cuda")
    again_TV = model.predict(small.images_NHWC[small.valid_rows], batch_size=5).T
    np.testing.assert_allclose(again_TV, result.pred_TV, atol=1e-4)
    on_cpu = FoldModel.load(tmp_path / "fold-0.safetensors")
    np.testing.assert_allclose(
        on_cpu.predict(small.images_NHWC[small.valid_rows]).T, result.pred_TV, atol=1e-3
    )


MIXED = Augment(brightness=0.1, rotate=10.0, hue=0.1, hed=0.1, mixup=0.2, cutmix=1.0)
CLASSES = {
    "task_type": "multilabel",
    "targets_TN": (np.arange(ROWS) % 2 * np.ones((2, 1), np.float32)).astype(np.float32),
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {"augment": MIXED},
        {"augment": MIXED, "micro_batch": 4, "ema": 0.0, "swa": 0.5},
        {"optimizer": "sgd", "schedule": "plateau", "layer_decay": 0.8},
        {"optimizer": "adam", "schedule": "onecycle", "head_warmup": 1.0, "freeze": "last_block"},
        {"stain": "macenko", "normalise": "image"},
        {"task": Regression(loss="mse_pearson_both")},
        {**CLASSES, "task": Classification(loss="asymmetric", sampler="over")},
        {**CLASSES, "task": Classification(loss="focal", class_weight="balanced")},
        {"compile": True, "augment": MIXED},
    ],
    ids=lambda changes: ", ".join(changes),
)
@pytest.mark.parametrize("held", (True, False), ids=("store on the GPU", "store on the host"))
def test_the_step_loop_never_waits_for_the_gpu(
    held: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = job(**{"device": "cuda", "bf16": None, **changes})
    if held:
        on_device = torch.from_numpy(small.images_NHWC).cuda()
        small = dataclasses.replace(small, images_NHWC=on_device)
    training = FoldTraining(small)
    training.epoch()  # what is done once may wait

    take_in = training.state.average.update

    def update(step: int) -> None:
        take_in(step)
        last = len(small.train_rows) // small.recipe.batch_size - 1
        torch.cuda.set_sync_debug_mode("error" if step % (last + 1) < last else "default")

    monkeypatch.setattr(training.state.average, "update", update)
    try:
        training.epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
