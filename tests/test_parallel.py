"""Two ranks train what one device would train, and none waits for one that failed.

Letters as in tests/test_train.py. The ranks are processes joined by gloo, without Ray.
"""

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from search.data.batches import Batches
from search.model.memory import OutOfMemory
from search.train.fold import FoldTraining
from search.train.job import FoldJob
from search.train.parallel import PeerFailed, Peers, Rank
from spaces.errors import UserError
from spaces.parts import Classification
from spaces.recipe import Augment
from tests.test_train import ROWS, Memory, job, with_micro_batch

RANKS = 2
MIXED = Augment(brightness=0.2, rotate=20.0, crop=0.7, mixup=0.4, cutmix=1.0)


def live(index: int, folder: Path, pipe: Connection) -> None:
    """A rank's process: calls what it is sent, with its rank, until it is sent None."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=index, world_size=RANKS)
    while (task := pipe.recv()) is not None:
        function, arguments = task
        try:
            answer = function(Rank.here(), *arguments)
        except Exception as error:
            answer = error
        pipe.send(answer)
    dist.destroy_process_group()


class Ranks:
    """Two processes that train together; as soon as one does not answer in time, none is left."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for index in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=live, args=(index, folder, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank's call gives, or the exception that it raises."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(120):
                self.close()
                pytest.fail("a rank waits for ever")
            answers.append(pipe.recv())
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(**changes: Any) -> FoldJob:
    """A job without what is drawn anew on each rank, or depends on a step's size: SGD, since Adam
    turns rounding into whole steps where a gradient is almost zero."""
    return job(
        **{"backbone": "test_vit", "epochs": 2, "optimizer": "sgd", "lr": 0.005, "drop": 0.0,
           "augment": MIXED, **changes}
    )  # fmt: skip


@dataclasses.dataclass
class Outcome:
    """What training left on a rank; arrays, since they come from another process."""

    losses: list[float]
    preds_TV: list[np.ndarray]  # after each epoch, and with the test rows at last
    tensors: dict[str, np.ndarray]
    micro_batches: list[int]
    steps: int


def outcome(training: FoldTraining) -> Outcome:
    """Of training to the end."""
    epochs = []
    while not training.done:
        epochs.append(training.epoch())
    finished = training.finish()
    preds = [epoch.pred_TV for epoch in epochs] + [finished.pred_TV]
    if finished.test_pred_TS is not None:
        preds.append(finished.test_pred_TS)
    return Outcome(
        losses=[epoch.loss for epoch in epochs],
        preds_TV=[pred for pred in preds if pred is not None],
        tensors={name: t.numpy().copy() for name, t in training.state.tensors().items()},
        micro_batches=[epoch.micro_batch for epoch in epochs],
        steps=training.state.step,
    )


def train(rank: Rank, job: FoldJob) -> Outcome:
    return outcome(FoldTraining(job, rank))


def assert_alike(one: Outcome, other: Outcome, tolerance: float, parts: str = "") -> None:
    """Losses, predictions and every tensor whose name begins with `parts` agree."""
    assert one.losses == pytest.approx(other.losses, rel=tolerance)
    assert one.steps == other.steps and len(one.preds_TV) == len(other.preds_TV)
    for mine, theirs in zip(one.preds_TV, other.preds_TV, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=tolerance, rtol=tolerance)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        if name.startswith(parts):
            np.testing.assert_allclose(
                tensor, other.tensors[name], atol=tolerance, rtol=tolerance, err_msg=name
            )


# --- shares


@given(st.integers(1, 300), st.integers(1, 16))
def test_shares_are_all_rows_in_order_and_nearly_alike(rows: int, count: int) -> None:
    ranks = [Rank(index, count) for index in range(count)]
    shares = [rank.share(rows) for rank in ranks]
    found = [row for share in shares for row in range(rows)[share]]
    assert found == list(range(rows))
    sizes = [len(range(rows)[share]) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert {rank.largest_share(rows) for rank in ranks} == {max(sizes)}


AUGMENTS = {
    "none": Augment(flip=False, rot90=False),
    "many": Augment(brightness=0.2, contrast=0.2, hue=0.1, rotate=20.0, crop=0.6, view_drop=0.4),
    "mirror": Augment(mirror=True),
    "mixup": Augment(mixup=0.5),
    "cutmix": Augment(cutmix=1.0, brightness=0.2),
    "both": MIXED,
}


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
@pytest.mark.parametrize("views", (1, 2))
@pytest.mark.parametrize("count", (1, 2, 3, 7))
def test_what_ranks_are_given_is_the_batch(augment: Augment, views: int, count: int) -> None:
    """Bit for bit, whatever is drawn and however rows are mixed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (22 * views, 16, 16, 3), dtype=np.uint8)
    batches = Batches(
        images, torch.from_numpy(rng.normal(size=(22, 3)).astype(np.float32)), np.arange(22), 12,
        (0.5,) * 3, (0.2,) * 3, "cpu", views=views, mirror_targets=(1, 0, 2),
        mirror_views=tuple(reversed(range(views))),
    )  # fmt: skip

    def epoch(share: Callable[[int], slice] | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches.epoch(7, augment, torch.Generator().manual_seed(3), True, share))

    shares = [epoch(Rank(index, count).share) for index in range(count)]
    for whole, *parts in zip(epoch(None), *shares, strict=True):
        for wanted, found in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(found), wanted, rtol=0, atol=0)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match="batches have 2 rows and 3 GPUs are to share them"):
        FoldTraining(plain(batch_size=2), Rank(1, 3))
    with pytest.raises(UserError, match="batches have 1 rows and 2 GPUs"):
        FoldTraining(plain(train_rows=np.arange(1)), Rank(0, 2))


# --- as one device


CASES: dict[str, dict[str, Any]] = {
    "uneven shares": {"batch_size": 9},
    "micro-batches": {"batch_size": 9, "micro_batch": 2},
    "fewer rows than a batch": {"batch_size": 64, "train_rows": np.arange(11)},
    "average of steps, test rows": {"ema": 0.9, "test_images_NHWC": job().images_NHWC[:3]},
    "average of epochs": {"ema": 0.0, "swa": 1.0, "backbone": "test_convnext"},
    "plateau, frozen": {"schedule": "plateau", "freeze": "last_block", "lr": 1e-6, "epochs": 3},
    "labels, drawn by weight": {
        "task_type": "multilabel", "task": Classification(loss="asymmetric", sampler="over"),
        "targets_TN": np.float32(np.arange(ROWS) % np.array([[2], [3]]) == 0),
    },
    "views": {
        "views": 2, "train_rows": np.arange(17), "valid_rows": np.arange(17, 28),
        "targets_TN": job().targets_TN[:, : ROWS // 2],
        "augment": dataclasses.replace(MIXED, view_drop=0.3),
    },
    "one validation row": {"valid_rows": np.arange(42, 43)},
    "none": {"valid_rows": np.arange(0)},
}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_ranks_train_as_one_device_does(ranks: Ranks, changes: dict[str, Any]) -> None:
    """For networks without batch norm, and losses that add up over rows."""
    alone = outcome(FoldTraining(plain(**changes)))
    first, second = ranks(train, plain(**changes))
    assert_alike(first, alone, 2e-5)
    assert_alike(first, second, 0.0)
    for result in (first, second):
        assert result.micro_batches == alone.micro_batches


@pytest.mark.parametrize("optimizer", ("adam", "adamw"))
def test_a_step_of_every_optimiser_is_that_of_one_device(ranks: Ranks, optimizer: str) -> None:
    changes = {"optimizer": optimizer, "lr": 1e-4, "epochs": 1, "train_rows": np.arange(9)}
    first, second = ranks(train, plain(**changes))
    alone = outcome(FoldTraining(plain(**changes)))
    assert_alike(first, second, 0.0)
    assert_alike(first, alone, 1e-4, "optimizer.exp_avg")
    assert first.steps == 1


def test_batch_norm_sees_a_ranks_rows_as_it_sees_a_micro_batch(ranks: Ranks) -> None:
    """The weights are those of one device with micro-batches of a rank's rows."""
    norms = plain(backbone="test_resnet", ema=0.0, lr=0.001)
    alone = outcome(with_micro_batch(norms, 4))
    first, second = ranks(train, norms)
    assert_alike(first, second, 0.0)
    assert first.losses == pytest.approx(alone.losses, rel=1e-4)
    learned = [name for name in alone.tensors if name.endswith(("weight", "bias"))]
    assert len(learned) > 10
    for name in learned:
        mine, theirs = first.tensors[name], alone.tensors[name]
        np.testing.assert_allclose(mine, theirs, atol=1e-4, err_msg=name)


def norm(rank: Rank) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm's statistics after a step in which rank r saw numbers around r."""
    layer = torch.nn.BatchNorm1d(3)
    peers = Peers(layer, rank)
    with peers.epoch(1):
        layer(rank.index + torch.tensor([[-1.0], [1.0]]).expand(2, 3)).sum().backward()
        peers.sum_gradients()
        peers.sum_loss(torch.zeros(()))
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean.numpy(), layer.running_var.numpy()


def test_batch_norms_keep_the_mean_of_all_ranks_statistics(ranks: Ranks) -> None:
    for mean, var in ranks(norm):
        np.testing.assert_allclose(mean, 0.1 * 0.5)
        np.testing.assert_allclose(var, 0.9 + 0.1 * 2)


def start(rank: Rank) -> dict[str, np.ndarray]:
    """A network at its start, of a seed of the rank's own."""
    training = FoldTraining(plain(seed=rank.index, backbone="test_resnet"), rank)
    return {name: t.numpy() for name, t in training.state.tensors().items()}


def test_all_begin_with_the_weights_of_the_first(ranks: Ranks) -> None:
    first, second = ranks(start)
    alone = start(Rank())
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in alone.items():
        np.testing.assert_array_equal(first[name], tensor, err_msg=name)
        np.testing.assert_array_equal(second[name], tensor, err_msg=name)


def drawn(rank: Rank) -> np.ndarray:
    """Which features dropout leaves of the first batch, in training."""
    training = FoldTraining(plain(drop=0.5, train_rows=np.arange(8), epochs=1), rank)
    kept: list[torch.Tensor] = []
    for module in training.state.network.head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, given, out: kept.append(out == 0))
    training.epoch()
    return kept[0].numpy()


def test_ranks_draw_their_own_dropout(ranks: Ranks) -> None:
    first, second = ranks(drawn)
    assert first.any() and first.shape == second.shape and (first != second).any()


# --- checkpoints


def interrupted(rank: Rank, job: FoldJob, path: str) -> None:
    """Train an epoch and leave a checkpoint."""
    training = FoldTraining(job, rank)
    training.epoch()
    if rank.index == 0:
        training.save(Path(path), "a note")
    rank.gather(lambda: None)


def resumed(rank: Rank, job: FoldJob, path: str) -> Outcome:
    training = FoldTraining(job, rank)
    assert training.restore(Path(path)) == "a note"
    return outcome(training)


@pytest.mark.parametrize("fits", (None, 3))
def test_a_fold_goes_on_with_more_ranks_or_fewer(
    ranks: Ranks, tmp_path: Path, fits: int | None
) -> None:
    whole = plain(epochs=3, ema=0.9, micro_batch=fits)
    alone = outcome(FoldTraining(whole))
    path = str(tmp_path / "epoch.safetensors")
    ranks(interrupted, whole, path)
    fewer = resumed(Rank(), whole, path)
    interrupted(Rank(), whole, path)
    more, same = ranks(resumed, whole, path)
    assert_alike(more, same, 0.0)
    for result in (fewer, more):
        assert result.losses == pytest.approx(alone.losses[1:], rel=2e-5)
        assert result.micro_batches == alone.micro_batches[1:]
        np.testing.assert_allclose(result.preds_TV[-1], alone.preds_TV[-1], atol=2e-5)


# --- what goes wrong


def train_with_little(rank: Rank, job: FoldJob, full: int, rows: int, spare: int) -> Any:
    """Train where rank `full` holds only `rows` samples, after `spare` passes; the outcome and the
    number of its passes."""
    training = FoldTraining(job, rank)
    memory = Memory(training, rows if rank.index == full else ROWS, spare)
    return outcome(training), memory.calls


@pytest.mark.parametrize("spare", range(5))
@pytest.mark.parametrize("full", range(RANKS))
def test_a_rank_out_of_memory_halves_the_micro_batches_of_all(
    ranks: Ranks, full: int, spare: int
) -> None:
    """In any of the 4 steps of the first epoch, or in the second."""
    short = plain(train_rows=np.arange(32), evaluate_at=frozenset())  # shares of 4 rows
    expected = outcome(FoldTraining(short))
    answers = ranks(train_with_little, short, full, 2, spare)
    (first, second), passes = zip(*answers, strict=True)
    assert_alike(first, second, 0.0)
    assert_alike(first, expected, 2e-5)
    assert first.micro_batches == second.micro_batches == ([8, 2] if spare == 4 else [2, 2])
    assert passes[full] == spare + 1 + (8 if spare == 4 else 16), "it was tried in vain again"
    in_vain = passes[1 - full] - passes[full]
    assert in_vain == (1 if spare == 2 else 0), "the marks are looked at after steps 1, 2 and 4"


def test_what_does_not_fit_one_by_one_is_told_to_all(ranks: Ranks) -> None:
    for answer in ranks(train_with_little, plain(), 1, 0, 0):
        assert isinstance(answer, OutOfMemory) and "batch of 1" in str(answer)


def train_with_fault(rank: Rank, job: FoldJob, step: int) -> None:
    """Train with a loss that rank 1 cannot compute in that step."""
    training, calls = FoldTraining(job, rank), []
    loss_of = training.loss_of

    def loss(pred_BT: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
        calls.append(len(pred_BT))
        if rank.index == 1 and len(calls) > step:
            raise ZeroDivisionError("of the loss")
        return loss_of(pred_BT, target_BT)

    training.loss_of = loss
    training.epoch()


@pytest.mark.parametrize("step", (0, 2, 4))
def test_an_error_of_one_rank_is_raised_by_all(ranks: Ranks, step: int) -> None:
    first, second = ranks(train_with_fault, plain(train_rows=np.arange(40)), step)
    assert isinstance(first, PeerFailed)
    assert isinstance(second, ZeroDivisionError) and str(second) == "of the loss"
    # Nothing is left of it: they can train the next fold.
    assert_alike(*ranks(train, plain(epochs=1)), 0.0)


def predict_with_fault(rank: Rank, job: FoldJob, fault: str) -> Any:
    """Train with an average that rank 1 cannot evaluate, or not with many rows at a time."""
    training = FoldTraining(job, rank)

    def fail(network: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        if rank.index == 1 and fault == "bug":
            raise ZeroDivisionError("of the network")
        if rank.index == 1 and len(given[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    training.state.average.network.register_forward_pre_hook(fail)
    return training.epoch().pred_TV


def test_predictions_that_one_rank_cannot_make(ranks: Ranks) -> None:
    short = plain(epochs=1, ema=0.9)
    first, second = ranks(predict_with_fault, short, "bug")
    assert isinstance(first, PeerFailed) and isinstance(second, ZeroDivisionError)
    expected = FoldTraining(short).epoch().pred_TV
    assert expected is not None
    for pred_TV in ranks(predict_with_fault, short, "memory"):
        np.testing.assert_allclose(pred_TV, expected, atol=2e-5)


def train_compiled(rank: Rank, job: FoldJob, step: int) -> Outcome:
    """Train with a compiler that does nothing, and breaks in rank 1 in that step."""
    compile, calls = torch.compile, []

    def stand_in(network: torch.nn.Module, **options: Any) -> Any:
        def forward(images_BCHW: torch.Tensor) -> torch.Tensor:
            calls.append(len(images_BCHW))
            if rank.index == 1 and len(calls) > step:
                raise RuntimeError("the compiler is broken")
            return network(images_BCHW)

        return forward

    torch.compile = stand_in  # type: ignore[assignment]
    try:
        return train(rank, job)
    finally:
        torch.compile = compile


@pytest.mark.parametrize("step", (0, 2, 100))
def test_where_one_rank_cannot_compile_none_does(ranks: Ranks, step: int) -> None:
    whole = plain(compile=True)
    first, second = ranks(train_compiled, whole, step)
    assert_alike(first, second, 0.0)
    assert_alike(first, outcome(FoldTraining(dataclasses.replace(whole, compile=False))), 2e-5)


def test_diverged_is_told_by_all(ranks: Ranks) -> None:
    wild = plain(lr=10.0, ema=0.0, head_lr_mult=1000.0, backbone="test_convnext")
    for answer in ranks(train, wild):
        assert type(answer).__name__ == "Diverged", answer


# --- alone


def test_one_process_alone_needs_no_process_group() -> None:
    assert not dist.is_initialized()
    network = torch.nn.Linear(2, 1)
    peers = Peers(network)
    with pytest.raises(ZeroDivisionError), peers.epoch(3):
        peers.sum_gradients()
        raise ZeroDivisionError
    assert network.weight.grad is None
    assert peers.sum_loss(torch.tensor(2.5)) == 2.5
    assert Rank().gather(lambda: 7) == [7]
