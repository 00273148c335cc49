"""Batches of rows with several images, of any channels, mirrored, weighted and stain-normalised."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from search.data.batches import BLOCK, STATISTICS, Batches, channel_statistics, to_device
from search.data.stain import METHODS, normalise_stain
from spaces.recipe import Augment

OFF = Augment(flip=False, rot90=False)
MIRROR = Augment(flip=False, rot90=False, mirror=True)
ROWS, VIEWS, SIDE = 24, 4, 8
SIDES, NAMES = (2, 3, 0, 1), (0, 2, 1)  # left views first, then right ones; target 0 stays
EVERYTHING = Augment(
    brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, rotate=30.0, scale=0.2, shift=0.1,
    crop=0.5, hed=0.1, mirror=True, view_drop=0.3, mixup=0.4, cutmix=1.0,
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(channels: int = 3, views: int = VIEWS, rows: int = ROWS) -> np.ndarray:
    shape = (rows * views, SIDE, SIDE, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def make(images: np.ndarray | torch.Tensor, rows: np.ndarray | None = None, **given) -> Batches:
    """Batches in [0, 1] of rows whose first target is their number."""
    views, channels = given.setdefault("views", VIEWS), given.setdefault("channels", 3)
    count = len(images) // views
    targets = torch.arange(count)[:, None] + torch.tensor([0.0, 0.25, 0.5])
    arguments = {
        "image_size": images.shape[1], "mean": (0.0,) * channels, "std": (1.0,) * channels,
        "device": "cpu",
    }  # fmt: skip
    return Batches(images, targets, np.arange(count) if rows is None else rows, **arguments | given)


def whole(batches: Batches, augment: Augment, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of all rows: images_RVCHW and targets_RT."""
    ((images, targets),) = batches.epoch(len(batches.rows), augment, seeded(seed))
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images.unflatten(0, (-1, batches.views)), targets


def as_floats(images: np.ndarray, views: int = VIEWS) -> torch.Tensor:
    """images_NVCHW in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().unflatten(0, (-1, views)) / 255


# --- views and channels


def test_the_views_of_each_row_follow_one_another() -> None:
    images, rows = pixels(), np.array([7, 3, 23, 0, 21])
    parts = list(make(images, rows).ordered(2))
    assert [len(part) for part in parts] == [2 * VIEWS, 2 * VIEWS, VIEWS]
    assert torch.allclose(torch.cat(parts), as_floats(images)[rows].flatten(0, 1), atol=1e-6)
    got, targets = whole(make(images, rows), OFF)
    assert sorted(targets[:, 0].tolist()) == sorted(rows)
    assert torch.allclose(got, as_floats(images)[targets[:, 0].long()], atol=1e-6)


@pytest.mark.parametrize("stored", [3, 4, 6])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [6, 8, 11])
def test_the_first_channels_are_read_at_every_size(stored: int, channels: int, size: int) -> None:
    if channels > stored:
        with pytest.raises(ValueError, match=f"channels is {channels}; .* {stored}"):
            make(pixels(stored), channels=channels)
        return
    images = pixels(stored)
    few = np.ascontiguousarray(images[..., :channels])
    for augment in (OFF, Augment(brightness=0.2, crop=0.5)):
        ours, _ = whole(make(images, channels=channels, image_size=size), augment)
        expected, _ = whole(make(few, channels=channels, image_size=size), augment)
        assert ours.shape == (ROWS, VIEWS, channels, size, size)
        assert torch.equal(ours, expected)


def test_means_must_be_as_many_as_channels() -> None:
    with pytest.raises(ValueError, match="3 means and 3 deviations are given for 2 channels"):
        make(pixels(), channels=2, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_views_of_a_row_are_augmented_alike_and_rows_are_not(channels: int) -> None:
    row = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, channels), dtype=np.uint8)
    augment = Augment(
        brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, hed=0.1, rotate=30.0, crop=0.5
    )
    got, _ = whole(make(row.repeat(ROWS * VIEWS, 0), channels=channels), augment)
    assert torch.equal(got, got[:, :1].expand_as(got))
    assert all((got[0] - got[i]).abs().max() > 0.05 for i in range(1, ROWS))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_brightness_and_contrast_act_on_all_channels(channels: int) -> None:
    images = (pixels(channels) // 4 + 96).astype(np.uint8)  # far from both ends
    changes = {"saturation": 0.5, "hue": 0.3, "hed": 0.3}  # of colours: not here
    got, targets = whole(
        make(images, channels=channels),
        Augment(flip=False, rot90=False, brightness=0.2, contrast=0.2, **changes),
    )
    own = as_floats(images)[targets[:, 0].long()]
    mean = own.mean((2, 3, 4), keepdim=True)
    brightness = got.mean((2, 3, 4), keepdim=True) / mean  # contrast leaves the mean
    contrast = (got / brightness - mean).std((2, 3, 4), keepdim=True) / own.std(
        (2, 3, 4), keepdim=True
    )
    expected = brightness * (mean + contrast * (own - mean))
    assert torch.allclose(got, expected, atol=1e-4)
    for factor in (brightness, contrast):
        assert 0.8 <= factor.min() < 0.9 and 1.1 < factor.max() <= 1.2
        assert torch.allclose(factor, factor[:, :1].expand_as(factor), atol=1e-4)


# --- views that are blanked, and sides that change


@pytest.mark.parametrize("chance", [0.3, 0.9])
def test_blanked_views_are_zero_and_one_at_least_stays(chance: float) -> None:
    images = np.maximum(pixels(rows=500), 1)
    kept, _ = whole(make(images), Augment(view_drop=chance))
    stays = (kept != 0).flatten(2).all(2)
    assert torch.equal(stays, (kept != 0).flatten(2).any(2))
    assert stays.any(1).all()
    expected = 1 - chance + chance**VIEWS / VIEWS  # the luckiest of a row that lost them all
    assert abs(stays.float().mean() - expected) < 0.04
    assert (stays.float().mean(0) - expected).abs().max() < 0.08  # no view is spared


def test_the_only_view_is_never_blanked() -> None:
    generator = seeded()
    batches = make(pixels(views=1), views=1)
    expected = list(batches.epoch(8, OFF, seeded()))
    got = list(batches.epoch(8, Augment(flip=False, rot90=False, view_drop=0.9), generator))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(got, expected, strict=True))


def test_a_row_mirrored_twice_is_the_row() -> None:
    images = pixels(rows=200)
    batches = make(images, mirror_views=SIDES, mirror_targets=NAMES)
    got, targets = whole(batches, MIRROR)
    mirrored = targets[:, 1] > targets[:, 2]
    assert 70 < mirrored.sum() < 130
    again = torch.where(mirrored[:, None, None, None, None], got[:, SIDES].flip(4), got)
    again_targets = torch.where(mirrored[:, None], targets[:, NAMES], targets)
    row = targets[:, 0].long()
    assert torch.allclose(again, as_floats(images)[row], atol=1e-6)
    assert torch.equal(again_targets - row[:, None], batches.targets_NT[:1].expand(200, 3))


def test_flips_and_turns_come_after_the_mirror() -> None:
    batches = make(pixels(rows=200), mirror_views=SIDES, mirror_targets=NAMES)
    both, both_targets = whole(batches, Augment(mirror=True))
    row = both_targets[:, 0].long()
    mirrored = both_targets[:, 1] > both_targets[:, 2]
    own = as_floats(pixels(rows=200))[row]
    own = torch.where(mirrored[:, None, None, None, None], own[:, SIDES].flip(4), own)
    kinds = [torch.rot90(x, k, (3, 4)) for x in (own, own.flip(4)) for k in range(4)]
    matches = sum(torch.isclose(both, kind, atol=1e-6).flatten(1).all(1).int() for kind in kinds)
    assert (matches == 1).all()


def test_a_mirror_inside_a_warp_is_the_plain_one() -> None:
    batches = make(pixels(), mirror_views=SIDES, mirror_targets=NAMES)
    still = Augment(mirror=True, crop=0.999999)
    for seed in range(3):
        plain = whole(batches, Augment(mirror=True), seed)
        warped = whole(batches, still, seed)
        assert torch.equal(plain[1], warped[1])
        assert torch.allclose(plain[0], warped[0], atol=1e-3)


def test_a_mirror_needs_to_know_what_changes_places() -> None:
    with pytest.raises(ValueError, match="which views or targets change places"):
        next(make(pixels()).epoch(8, MIRROR, seeded()))
    with pytest.raises(ValueError, match="views change places as"):
        make(pixels(), mirror_views=(1, 2, 3, 0))
    with pytest.raises(ValueError, match=r"targets change places as .*; each of 3"):
        make(pixels(), mirror_targets=(0, 1))
    only = make(pixels(), mirror_targets=NAMES)
    assert len(set(whole(only, MIRROR)[1][:, 1].mul(4).long().remainder(4).tolist())) == 2


# --- pairs of rows


@pytest.mark.parametrize("views", [1, VIEWS])
def test_cutmix_takes_one_box_of_the_neighbour_and_shares_targets_by_area(views: int) -> None:
    images = pixels(views=views, rows=120)
    batches = make(images, views=views)
    own, own_targets = whole(batches, OFF)
    got, targets = whole(batches, Augment(flip=False, rot90=False, cutmix=1.0))
    foreign = (got != own).any(2)
    inside = torch.zeros(120, SIDE, SIDE, dtype=torch.bool)
    for i in range(120):
        rows, columns = (foreign[i].any(0).any(axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows):
            inside[i, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    expected = torch.where(inside[:, None, None], own.roll(1, 0), own)
    assert torch.equal(got, expected)
    share = inside.float().mean((1, 2))[:, None]
    assert torch.allclose(targets, own_targets + share * (own_targets.roll(1, 0) - own_targets))
    assert (share > 0.5).sum() > 10 and (share < 0.2).sum() > 10
    assert len(set(inside.flatten(1).float().argmax(1).tolist())) > 15  # boxes lie anywhere


def test_mixup_mixes_all_views_of_a_row_by_its_targets_share() -> None:
    batches = make(pixels())
    own, own_targets = whole(batches, OFF)
    got, targets = whole(batches, Augment(flip=False, rot90=False, mixup=0.4))
    share = ((targets - own_targets) / (own_targets.roll(1, 0) - own_targets))[:, 0]
    assert ((share > 0.01) & (share < 0.99)).sum() > 5
    expected = own + share[:, None, None, None, None] * (own.roll(1, 0) - own)
    assert torch.allclose(got, expected, atol=1e-3)


def test_with_both_each_batch_is_of_one_kind_and_both_occur() -> None:
    batches = make(pixels())
    both = Augment(flip=False, rot90=False, mixup=1.0, cutmix=1.0)
    cut = 0
    for seed in range(60):
        own, _ = whole(batches, OFF, seed)
        got, _ = whole(batches, both, seed)
        pure = (torch.isclose(got, own) | torch.isclose(got, own.roll(1, 0))).flatten(1)
        cut += bool(pure.all())
        assert pure.all() or pure.float().mean() < 0.5
    assert 15 < cut < 45


# --- rows that are drawn


def test_weighted_rows_are_drawn_as_often_as_they_weigh() -> None:
    weights = np.r_[np.zeros(4), np.ones(10), np.full(10, 3.0)]
    batches, generator = make(pixels(), weights_N=weights), seeded()
    counts = np.zeros(ROWS)
    for _ in range(200):
        parts = [targets[:, 0].long().numpy() for _, targets in batches.epoch(8, OFF, generator)]
        assert [len(part) for part in parts] == [8, 8, 8]
        counts += np.bincount(np.concatenate(parts), minlength=ROWS)
    assert not counts[:4].any()
    assert np.allclose(counts / counts.sum(), weights / weights.sum(), atol=0.012)


def test_weights_belong_to_the_rows_that_are_given() -> None:
    batches = make(pixels(), np.array([20, 5, 9]), weights_N=np.array([0.0, 2.0, 0.0]))
    _, targets = whole(batches, OFF)
    assert targets[:, 0].tolist() == [5.0, 5.0, 5.0]
    assert len(torch.cat(list(batches.ordered(2)))) == 3 * VIEWS


@pytest.mark.parametrize(
    "weights", [np.ones(ROWS - 1), np.full(ROWS, np.nan), -np.ones(ROWS), np.zeros(ROWS)]
)
def test_impossible_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights"):
        make(pixels(), weights_N=weights)


# --- normalisation


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("augment", [OFF, Augment(brightness=0.2, contrast=0.2, crop=0.5)])
def test_image_normalisation_gives_each_channel_mean_0_and_deviation_1(
    channels: int, augment: Augment
) -> None:
    images = pixels(channels)
    images[0], images[1, ..., 0] = 7, 200  # flat ones stay finite
    batches = make(images, channels=channels, normalise="image", mean=(), std=())
    got, targets = whole(batches, augment)
    assert torch.isfinite(got).all()
    assert got.mean((3, 4)).abs().max() < 1e-3
    flat = targets[:, 0] == 0
    assert (got[~flat].std((3, 4), correction=0) - 1).abs().max() < 1e-3
    assert got[flat][:, 0].abs().max() < 1e-3
    if augment is OFF:
        own = as_floats(images)[targets[:, 0].long()]
        deviation = own.std((3, 4), correction=0, keepdim=True).clamp(min=1 / 255)
        expected = (own - own.mean((3, 4), keepdim=True)) / deviation
        assert torch.allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_are_those_of_all_pixels(views: int, channels: int) -> None:
    images, rows = pixels(4, 2, 100), np.arange(0, 200 // views, 2)
    assert BLOCK < len(rows) * views <= STATISTICS
    mean, std = channel_statistics(images, rows, views, channels)
    chosen = images.reshape(-1, views, SIDE, SIDE, 4)[rows][..., :channels] / 255
    assert np.allclose(mean, chosen.mean(axis=(0, 1, 2, 3)), atol=1e-12)
    assert np.allclose(std, chosen.std(axis=(0, 1, 2, 3)), atol=1e-9)
    assert (mean, std) == channel_statistics(torch.from_numpy(images), rows, views, channels)


def test_channel_statistics_of_many_images_are_of_a_spread_sample() -> None:
    count = 4 * STATISTICS
    images = np.broadcast_to((np.arange(count) % 256).astype(np.uint8)[:, None, None, None],
                             (count, 2, 2, 3))  # fmt: skip
    mean, std = channel_statistics(images, np.arange(count), 1, 3)
    assert np.allclose(mean, 0.5, atol=0.01) and np.allclose(std, 12**-0.5, atol=0.01)
    flat = np.zeros((4, 2, 2, 1), np.uint8)
    assert channel_statistics(flat, np.arange(4), 1, 1) == ((0.0,), (1 / 255,))


@pytest.mark.parametrize("method", METHODS)
def test_stains_are_normalised_alike_in_training_and_prediction(method: str) -> None:
    density = np.random.default_rng(0).gamma(2.0, 0.3, (ROWS * VIEWS, SIDE, SIDE, 2)) + 0.4
    stains = np.array([(0.62, 0.70, 0.36), (0.10, 0.95, 0.28)])
    images = (240 * np.exp(-density @ stains)).round().astype(np.uint8)
    expected = normalise_stain(torch.from_numpy(images), method)
    assert (expected.int() - torch.from_numpy(images).int()).abs().float().mean() > 3
    batches = make(images, stain=method)
    (ordered,) = batches.ordered(ROWS)
    got, targets = whole(batches, OFF)
    floats = as_floats(expected.numpy())
    assert torch.allclose(ordered.unflatten(0, (-1, VIEWS)), floats, atol=1.1 / 255)
    assert torch.allclose(got, floats[targets[:, 0].long()], atol=1.1 / 255)


def test_stains_are_of_rgb_images() -> None:
    with pytest.raises(ValueError, match="stain is 'macenko'; 2 channels are not RGB"):
        make(pixels(), channels=2, stain="macenko")


# --- all of it


def everything(images: np.ndarray | torch.Tensor, device: str, **given) -> Batches:
    return make(
        images, device=device, mirror_views=SIDES, mirror_targets=NAMES,
        weights_N=np.arange(ROWS), **given,
    )  # fmt: skip


OPTIONS: dict[str, Callable[[], dict]] = {
    "macenko": lambda: {"stain": "macenko"},
    "reinhard": lambda: {"stain": "reinhard", "normalise": "image"},
    "one channel": lambda: {"channels": 1, "normalise": "image"},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_one_seed_gives_one_epoch_with_everything_on(option: str) -> None:
    batches = everything(pixels(), "cpu", **OPTIONS[option]())
    first, again, other = (list(batches.epoch(8, EVERYTHING, seeded(s))) for s in (0, 0, 1))
    assert [len(x) for x, _ in first] == [8 * VIEWS] * 3
    assert all(torch.isfinite(x).all() and torch.isfinite(y).all() for x, y in first)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in first)
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("augment", [OFF, EVERYTHING])
def test_no_step_depends_on_the_device_s_numbers(option: str, augment: Augment) -> None:
    """On the device that has no numbers; so on none must the host wait for any."""
    images = to_device(pixels(), "meta", 10**9)
    batches = everything(images, "meta", **OPTIONS[option]())
    shapes = [(x.shape, y.shape) for x, y in batches.epoch(8, augment, seeded())]
    assert shapes == [((8 * VIEWS, batches.channels, SIDE, SIDE), (8, 3))] * 3
    assert all(x.is_meta for x in batches.ordered(8))


@pytest.mark.gpu
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_gpu_makes_the_cpu_s_batches_with_everything_on_without_waiting(
    option: str, budget: int
) -> None:
    images = pixels()
    on_gpu = everything(to_device(images, "cuda", budget), "cuda", **OPTIONS[option]())
    list(on_gpu.epoch(8, EVERYTHING, seeded(1)))  # allocations of the first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        parts = list(on_gpu.epoch(8, EVERYTHING, seeded()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = everything(images, "cpu", **OPTIONS[option]())
    for (x, y), (x_cpu, y_cpu) in zip(parts, on_cpu.epoch(8, EVERYTHING, seeded()), strict=True):
        assert torch.allclose(y.cpu(), y_cpu, atol=1e-5)
        assert (x.cpu() - x_cpu).abs().max() < 0.1
