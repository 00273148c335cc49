"""Augmentation agrees with torchvision sample by sample, and draws what the recipe says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as library

from search.data.augment import (
    FLIPS,
    TURNS,
    affine_matrix,
    augment_batch,
    colour,
    compose,
    dihedral,
    dihedral_each,
    draw,
    hue,
    warp,
)
from search.data.pairs import mixup
from search.data.stain import HED
from spaces.recipe import Augment

EVERYTHING = Augment(
    brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, rotate=30, scale=0.2, shift=0.1, crop=0.5
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 16, side: int = 20, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=seeded(1)) * (high - low) + low


def factors(batch: int, width: float) -> torch.Tensor:
    return 1 + (2 * torch.rand(3, batch, generator=seeded(2)) - 1) * width


def test_the_eight_positions_are_the_flips_and_quarter_turns() -> None:
    x = images(2)
    views = [dihedral(x, k) for k in range(8)]
    known = [torch.rot90(y, turns, (2, 3)) for y in (x, x.flip(3)) for turns in range(4)]
    for view in views:
        assert sum(torch.equal(view, other) for other in known) == 1
    assert torch.equal(views[0], x)
    assert torch.equal(views[1], library.horizontal_flip(x))
    assert torch.equal(views[2], library.vertical_flip(x))
    assert torch.equal(views[3], torch.rot90(x, 2, (2, 3)))
    turned = {turns for k in TURNS for turns in range(4) if torch.equal(views[k], known[turns])}
    assert turned == {0, 1, 2, 3}


def test_positions_of_each_sample_are_those_of_the_whole_batch() -> None:
    x, k_B = images(8), torch.tensor([3, 0, 7, 5, 6, 1, 2, 4])
    each = dihedral_each(x.permute(0, 2, 3, 1), k_B).permute(0, 3, 1, 2)
    for i, k in enumerate(k_B.tolist()):
        assert torch.equal(each[i : i + 1], dihedral(x[i : i + 1], k))


@pytest.mark.parametrize("around", [{}, {"flip": False}, {"rot90": False, "flip": False}])
def test_a_mirrored_row_is_flipped_left_right_before_all_else(around: dict[str, bool]) -> None:
    x = images(64)
    k_B = draw(Augment(**around), 64, seeded()).dihedral_B
    draws = draw(Augment(mirror=True, **around), 64, seeded())
    assert draws.mirror_R is not None and draws.dihedral_B is not None
    assert 20 < draws.mirror_R.sum() < 44
    for i in range(64):
        before = x[i : i + 1].flip(3) if draws.mirror_R[i] else x[i : i + 1]
        expected = before if k_B is None else dihedral(before, int(k_B[i]))
        assert torch.equal(dihedral(x[i : i + 1], int(draws.dihedral_B[i])), expected)


@pytest.mark.parametrize(
    ("augment", "allowed"),
    [
        (Augment(flip=True, rot90=True), tuple(range(8))),
        (Augment(flip=True, rot90=False), FLIPS),
        (Augment(flip=False, rot90=True), TURNS),
    ],
)
def test_drawn_positions_are_all_allowed_ones_equally_often(
    augment: Augment, allowed: tuple[int, ...]
) -> None:
    k_B = draw(augment, 8000, seeded()).dihedral_B
    assert k_B is not None
    counts = {k: int((k_B == k).sum()) for k in range(8)}
    assert {k for k, count in counts.items() if count} == set(allowed)
    assert all(abs(counts[k] - 8000 / len(allowed)) < 150 for k in allowed)


def test_colour_is_the_library_s_where_nothing_is_clipped() -> None:
    x, (brightness, contrast, saturation) = images(low=0.3, high=0.6), factors(16, 0.2)
    ours = colour(x, brightness, contrast, saturation)
    for i in range(len(x)):
        y = library.adjust_brightness(x[i], brightness[i].item())
        y = library.adjust_contrast(y, contrast[i].item())
        y = library.adjust_saturation(y, saturation[i].item())
        assert y.min() > 0 and y.max() < 1
        assert torch.allclose(ours[i], y, atol=2e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_colour_change_clips_as_the_library_does(which: int) -> None:
    x, one = images(), torch.ones(3, 16)
    one[which] = factors(16, 0.6)[which]
    ours = colour(x, *one)
    change = (library.adjust_brightness, library.adjust_contrast, library.adjust_saturation)[which]
    theirs = torch.stack([change(x[i], one[which, i].item()) for i in range(16)])
    assert (theirs == 0).any() or (theirs == 1).any()
    assert torch.allclose(ours, theirs, atol=2e-6)


def test_colour_clips_once_where_the_library_clips_thrice_and_stays_near_it() -> None:
    x, (brightness, contrast, saturation) = images(), factors(16, 0.2)
    ours, theirs = colour(x, brightness, contrast, saturation), []
    for i in range(len(x)):
        y = library.adjust_brightness(x[i], brightness[i].item())
        y = library.adjust_contrast(y, contrast[i].item())
        theirs.append(library.adjust_saturation(y, saturation[i].item()))
    gap = (ours - torch.stack(theirs)).abs()
    assert gap.mean() < 0.01 and gap.max() < 0.2  # at most the brightness that was clipped off


def test_normalising_inside_colour_changes_nothing_else() -> None:
    x, mean, std = images(), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    given = factors(16, 0.5)
    plain = colour(x, *given)
    fused = colour(x * 255, *given, white=255.0, mean=mean, std=std)
    assert torch.allclose(fused, library.normalize(plain, list(mean), list(std)), atol=1e-5)


def test_hue_is_the_library_s() -> None:
    x, shift_B = images(), torch.rand(16, generator=seeded(3)) - 0.5
    x[0] = x[0, :1]  # grey has no hue
    x[1, 0] = x[1, 1]  # ties between channels
    ours = hue(x, shift_B)
    theirs = torch.stack([library.adjust_hue(x[i], shift_B[i].item()) for i in range(16)])
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(ours[0], x[0])


def test_affine_is_the_library_s_inside_the_image() -> None:
    x, uniform = images(side=32), 2 * torch.rand(4, 16, generator=seeded(4)) - 1
    angle_B, shift_B2, zoom_B = 40 * uniform[0], 0.2 * uniform[1:3].T, 1 + 0.3 * uniform[3]
    ours = warp(x, affine_matrix(angle_B, shift_B2, zoom_B), 32)
    for i in range(16):

        def change(image: torch.Tensor, i: int = i) -> torch.Tensor:
            return library.affine(
                image,
                angle=angle_B[i].item(),
                translate=(32 * shift_B2[i]).tolist(),
                scale=zoom_B[i].item(),
                shear=[0.0, 0.0],
                interpolation=library.InterpolationMode.BILINEAR,
            )

        inside = (change(torch.ones(1, 32, 32)) > 0.9999).expand(3, -1, -1)
        assert inside.float().mean() > 0.3
        assert torch.allclose(ours[i][inside], change(x[i])[inside], atol=1e-3)


def test_the_border_mirrors_for_the_widest_augmentation() -> None:
    x = images(64)
    widest = Augment(flip=False, rot90=False, rotate=180, scale=0.5, shift=0.5)
    map_B23 = draw(widest, 64, seeded()).warp_B23
    assert map_B23 is not None
    grid = torch.nn.functional.affine_grid(map_B23, [64, 3, 20, 20], align_corners=False)
    assert grid.abs().max() > 3
    theirs = torch.nn.functional.grid_sample(
        x, grid, padding_mode="reflection", align_corners=False
    )
    assert torch.allclose(warp(x, map_B23, 20), theirs, atol=1e-4)


def test_flips_and_turns_inside_a_warp_are_the_plain_ones() -> None:
    x, still = images(64), Augment(crop=0.999999)
    map_B23 = draw(still, 64, seeded()).warp_B23
    assert map_B23 is not None
    k_B = draw(Augment(), 64, seeded()).dihedral_B
    assert k_B is not None and len(set(k_B.tolist())) == 8
    plain = dihedral_each(x.permute(0, 2, 3, 1), k_B).permute(0, 3, 1, 2)
    assert torch.allclose(warp(x, map_B23, 20), plain, atol=1e-3)


def test_composed_maps_apply_the_inner_one_first() -> None:
    maps = torch.randn(2, 5, 2, 3, generator=seeded())
    points = torch.randn(5, 2, 1, generator=seeded(1))
    inner = maps[1, :, :, :2] @ points + maps[1, :, :, 2:]
    both = compose(maps[0], maps[1])
    expected = maps[0, :, :, :2] @ inner + maps[0, :, :, 2:]
    assert torch.allclose(both[:, :, :2] @ points + both[:, :, 2:], expected, atol=1e-5)


@pytest.mark.parametrize("crop", [0.2, 0.95])
def test_a_crop_lies_inside_and_is_large_enough(crop: float) -> None:
    map_B23 = draw(Augment(flip=False, rot90=False, crop=crop), 2000, seeded()).warp_B23
    assert map_B23 is not None
    width_B, height_B = map_B23[:, 0, 0], map_B23[:, 1, 1]
    assert (map_B23[:, :, 2].abs() + torch.stack((width_B, height_B), 1) <= 1 + 1e-6).all()
    area_B, aspect_B = width_B * height_B, width_B / height_B
    assert crop - 1e-6 <= area_B.min() < crop + 0.02 and area_B.max() > 0.98
    assert aspect_B.min() >= 3 / 4 - 1e-6 and aspect_B.max() <= 4 / 3 + 1e-6


def test_factors_fill_the_intervals_of_the_recipe() -> None:
    draws = draw(EVERYTHING, 4000, seeded())
    assert draws.colour_B3 is not None and draws.hue_B is not None
    assert torch.allclose(draws.colour_B3.amin(0), torch.tensor(0.7), atol=0.01)
    assert torch.allclose(draws.colour_B3.amax(0), torch.tensor(1.3), atol=0.01)
    assert draws.hue_B.abs().max() <= 0.1 < draws.hue_B.abs().max() + 0.01


def test_stains_factors_and_offsets_fill_the_interval_of_the_recipe() -> None:
    map_B34 = draw(Augment(hed=0.2), 4000, seeded()).hed_B34
    assert map_B34 is not None
    stains = torch.nn.functional.normalize(torch.tensor(HED))  # in rows: a density is their sum
    factor_B33 = torch.linalg.solve(stains.T, map_B34[:, :, :3] @ stains.T)
    factor_B3 = factor_B33.diagonal(dim1=1, dim2=2)
    assert torch.allclose(factor_B33, torch.diag_embed(factor_B3), atol=1e-5)
    offset_B3 = torch.linalg.solve(stains.T, map_B34[:, :, 3:])[..., 0]
    for values_B3, middle in ((factor_B3, 1.0), (offset_B3, 0.0)):
        assert torch.allclose(values_B3.amin(0), torch.tensor(middle - 0.2), atol=0.003)
        assert torch.allclose(values_B3.amax(0), torch.tensor(middle + 0.2), atol=0.003)
        assert torch.allclose(values_B3.mean(0), torch.tensor(middle), atol=0.01)


def test_numbers_of_a_row_are_those_of_all_its_views() -> None:
    everything = replace(EVERYTHING, hed=0.1, mirror=True, view_drop=0.5)
    one, three = draw(everything, 8, seeded()), draw(everything, 8, seeded(), views=3)
    for name in ("warp_B23", "hed_B34", "colour_B3", "hue_B"):
        assert torch.equal(getattr(three, name), getattr(one, name).repeat_interleave(3, 0))
    assert one.mirror_R is not None and three.mirror_R is not None
    assert torch.equal(three.mirror_R, one.mirror_R)
    assert one.keep_B is None and three.keep_B is not None and three.keep_B.shape == (24,)


def test_what_is_off_draws_nothing_and_changes_nothing() -> None:
    off, generator = Augment(flip=False, rot90=False), seeded()
    before, x = generator.get_state(), images()
    assert torch.equal(augment_batch(x, off, generator), x)
    assert torch.equal(generator.get_state(), before)


def test_augmenting_is_per_sample_in_range_and_repeatable() -> None:
    x = images(1).expand(16, -1, -1, -1)
    first = augment_batch(x, EVERYTHING, seeded())
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1
    assert all((first[i] - first[j]).abs().max() > 0.05 for i in range(16) for j in range(i))
    assert torch.equal(first, augment_batch(x, EVERYTHING, seeded()))
    assert not torch.equal(first, augment_batch(x, EVERYTHING, seeded(1)))


def test_mixup_mixes_images_and_targets_by_the_same_share() -> None:
    x, targets = images(256), torch.arange(256.0)[:, None]
    mixed, mixed_targets = mixup(x, targets, 0.4, seeded())
    neighbour = (torch.arange(256) - 1) % 256
    share_B = (mixed_targets - targets)[:, 0] / (targets[neighbour] - targets)[:, 0]
    assert share_B.min() >= 0 and share_B.max() <= 1 + 1e-5
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(share_B.mean() - 0.5) < 0.07
    assert np.isclose(share_B.var(), 1 / (4 * 1.8), rtol=0.2)
    expected = x + share_B[:, None, None, None] * (x[neighbour] - x)
    assert torch.allclose(mixed, expected, atol=1e-4)


def test_mixup_of_alpha_0_is_off() -> None:
    x, targets = images(4), torch.rand(4, 2)
    assert mixup(x, targets, 0.0, seeded()) == (x, targets)
