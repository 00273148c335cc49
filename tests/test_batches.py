"""Batches hold the rows that they should, prepared as the slow way would prepare them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from search.data.augment import augment_batch
from search.data.batches import Batches, to_device
from spaces.recipe import Augment

OFF = Augment(flip=False, rot90=False)
COLOUR = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}
AFFINE = {"rotate": 30.0, "scale": 0.2, "shift": 0.1}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTS = {
    "off": OFF,
    "flips and turns": Augment(),
    "colour": Augment(**COLOUR),
    "affine": Augment(**AFFINE),
    "hue": Augment(hue=0.2),
    "stains": Augment(hed=0.1),
    "all": Augment(**COLOUR, **AFFINE, crop=0.5, hue=0.1, hed=0.1),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 40, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def make(images: np.ndarray | torch.Tensor, rows: np.ndarray | None = None, **given) -> Batches:
    """Batches over `images` whose targets are the row numbers."""
    targets = torch.arange(len(images), dtype=torch.float32)[:, None]
    arguments = {"image_size": images.shape[1], "mean": MEAN, "std": STD, "device": "cpu"} | given
    return Batches(images, targets, np.arange(len(images)) if rows is None else rows, **arguments)


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def normalised(images_BCHW: torch.Tensor) -> torch.Tensor:
    return (images_BCHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_ordered_gives_each_row_once_in_order_and_normalised() -> None:
    images, rows = pixels(), np.array([7, 3, 39, 0, 21])
    batches = list(make(images, rows).ordered(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert torch.allclose(torch.cat(batches), normalised(as_floats(images[rows])), atol=1e-6)


def test_an_epoch_gives_each_row_once_with_its_own_target() -> None:
    images, rows = pixels(), np.arange(5, 37)
    batches, generator = make(images, rows), seeded()
    orders = []
    for _ in range(2):
        parts = list(batches.epoch(10, OFF, generator))
        assert [len(targets) for _, targets in parts] == [10, 10, 10, 2]
        order = torch.cat([targets for _, targets in parts])[:, 0].long().numpy()
        assert sorted(order) == list(rows)
        expected = normalised(as_floats(images[order]))
        assert torch.allclose(torch.cat([x for x, _ in parts]), expected, atol=1e-6)
        orders.append(order)
    assert not np.array_equal(*orders)


@pytest.mark.parametrize(
    ("rows", "batch_size", "drop_last", "sizes"),
    [
        (21, 10, False, [10, 10]),  # batch norm cannot train on the last one alone
        (22, 10, False, [10, 10, 2]),
        (22, 10, True, [10, 10]),
        (20, 10, True, [10, 10]),
        (7, 10, False, [7]),
        (7, 10, True, [7]),
        (1, 10, False, [1]),
        (3, 1, False, [1, 1, 1]),
    ],
)
def test_sizes_of_an_epoch_s_batches(
    rows: int, batch_size: int, drop_last: bool, sizes: list[int]
) -> None:
    epoch = make(pixels(), np.arange(rows)).epoch(batch_size, OFF, seeded(), drop_last)
    assert [len(x) for x, _ in epoch] == sizes


@pytest.mark.parametrize("kind", AUGMENTS)
def test_a_fused_batch_is_the_augmented_images_normalised(kind: str) -> None:
    images, generator = pixels(), seeded(3)
    order = torch.randperm(len(images), generator=generator).numpy()
    expected = normalised(augment_batch(as_floats(images[order]), AUGMENTS[kind], generator))
    ((batch, _),) = make(images).epoch(len(images), AUGMENTS[kind], seeded(3))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(batch, expected, atol=1e-4)


@pytest.mark.parametrize("kind", AUGMENTS)
@pytest.mark.parametrize("size", [12, 16, 24])
def test_a_batch_prepared_in_pieces_is_the_whole_one(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make(pixels(), image_size=size)
    ((whole, _),) = batches.epoch(40, AUGMENTS[kind], seeded())
    monkeypatch.setattr("search.data.batches.PIECE", 3 * max(size, 16) ** 2)  # 3 images, then 1
    ((pieced, _),) = batches.epoch(40, AUGMENTS[kind], seeded())
    assert torch.allclose(pieced, whole, atol=1e-5)


@pytest.mark.parametrize("kind", AUGMENTS)
@pytest.mark.parametrize("size", [12, 16, 24])
def test_the_same_seed_gives_the_same_batches_at_every_size(kind: str, size: int) -> None:
    batches = make(pixels(), image_size=size)
    augment = AUGMENTS[kind]
    first = [x for x, _ in batches.epoch(16, augment, seeded())]
    again = [x for x, _ in batches.epoch(16, augment, seeded())]
    other = [x for x, _ in batches.epoch(16, augment, seeded(1))]
    assert first[0].shape == (16, 3, size, size)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("size", [11, 32])
def test_resizing_is_bilinear_and_antialiased(size: int) -> None:
    images = pixels(side=24)
    (batch,) = make(images, image_size=size).ordered(len(images))
    floats = F.interpolate(as_floats(images), (size, size), mode="bilinear", antialias=True)
    step = 1 / 255 / min(STD)  # the result is rounded to whole grey levels
    assert (batch - normalised(floats)).abs().max() <= 1.01 * step
    assert (batch - normalised(floats)).abs().mean() <= 0.4 * step  # rounded once per axis


def test_enlarging_inside_a_warp_agrees_with_enlarging_first() -> None:
    smooth = np.linspace(0, 255, 16, dtype=np.uint8)
    images = np.broadcast_to(smooth[None, :, None, None], (4, 16, 16, 3))
    still = Augment(flip=False, rot90=False, crop=0.999999)
    ((warped, _),) = make(images, image_size=24).epoch(4, still, seeded())
    (plain,) = make(images, image_size=24).ordered(4)
    assert (warped - plain).abs().max() < 1.1 / 255 / min(STD)


def test_mixup_reaches_images_and_targets() -> None:
    images = pixels()
    ((batch, targets),) = make(images).epoch(
        40, Augment(flip=False, rot90=False, mixup=0.4), seeded()
    )
    order = torch.randperm(40, generator=seeded()).float()
    partner = order.roll(1)
    share = (targets[:, 0] - order) / (partner - order)
    assert ((share > 0.01) & (share < 0.99)).sum() > 10
    x = normalised(as_floats(images))
    own, other = x[order.long()], x[partner.long()]
    expected = own + share[:, None, None, None] * (other - own)
    assert torch.allclose(batch, expected, atol=1e-3)


def test_a_read_only_memory_map_is_read_without_a_warning(tmp_path: Path) -> None:
    images, path = pixels(), tmp_path / "store.u8"
    images.tofile(path)
    store = np.memmap(path, np.uint8, "r", shape=images.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (batch,) = make(store).ordered(40)
        list(make(store).epoch(16, AUGMENTS["all"], seeded()))
    assert torch.equal(batch, next(make(images).ordered(40)))
    assert path.read_bytes() == images.tobytes()


def test_a_store_goes_to_the_device_only_when_it_fits() -> None:
    images = pixels()
    assert to_device(images, "cpu", 10**12) is images
    assert to_device(images, "meta", images.nbytes - 1) is images  # any device but the CPU
    held = to_device(images, "meta", images.nbytes)
    assert isinstance(held, torch.Tensor) and held.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", AUGMENTS)
@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("size", [12, 16, 24])
def test_a_gpu_makes_the_cpu_s_batches_without_waiting(kind: str, budget: int, size: int) -> None:
    images, augment = pixels(), AUGMENTS[kind]
    store = to_device(images, "cuda", budget)
    assert isinstance(store, torch.Tensor) == bool(budget)
    on_gpu = make(store, image_size=size, device="cuda")
    list(on_gpu.epoch(16, augment, seeded(1)))  # allocations of the first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = list(on_gpu.epoch(16, augment, seeded()))
        whole = list(on_gpu.ordered(16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = make(images, image_size=size)
    atol = 5e-3 if size == 16 else 0.05  # resized on the CPU in integers: one grey level apart
    for (x, y), (x_cpu, y_cpu) in zip(parts, on_cpu.epoch(16, augment, seeded()), strict=True):
        assert torch.equal(y.cpu(), y_cpu)
        assert (x.cpu() - x_cpu).abs().max() < atol
    for x, x_cpu in zip(whole, on_cpu.ordered(16), strict=True):
        assert (x.cpu() - x_cpu).abs().max() < atol
