"""Limits on an ensemble are kept, and impossible ones refused."""

import numpy as np
import pytest

from ensemble.limits import Budget, Cost, Limits
from spaces.backbones import series
from spaces.errors import UserError

COSTS = [Cost(family="resnet", mb=10, ms=1), Cost(family="resnet", mb=20, ms=2),
         Cost(family="vit", mb=90, ms=3), Cost(family="vit", mb=5, ms=4)]  # fmt: skip
NAMES = ["a", "b", "c", "d"]


def budget(**limits):
    return Budget(Limits(**limits), COSTS, NAMES)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UserError) as caught:
        Limits(max_members=0, max_per_family=-1, max_mb=0, max_ms=-3)
    assert [fault.split()[0] for fault in caught.value.faults] == [
        "--max-members", "--max-per-family", "--max-mb", "--max-ms"]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "filled"),
    [
        ({}, (0, 1, 2, 3)),
        ({"max_members": 2}, (0, 1)),
        ({"max_per_family": 1}, (0, 2)),
        ({"max_mb": 100}, (0, 1, 3)),
        ({"max_ms": 4}, (0, 1)),
        ({"max_mb": 100, "max_per_family": 1}, (0, 2)),
    ],
)
def test_filling_takes_members_in_order_as_long_as_they_fit(limits, filled):
    assert budget(**limits).fill(range(4)) == filled


def test_members_that_are_in_may_always_be_added_again():
    mask_M = budget(max_members=2).mask(np.array([3, 0, 1, 0]))
    assert mask_M.tolist() == [True, False, True, False]


def test_a_limit_that_no_member_keeps_is_refused_with_the_cheapest_cost():
    with pytest.raises(UserError, match="--max-mb is 4, but the cheapest member needs 5"):
        budget(max_mb=4)
    with pytest.raises(UserError, match="together"):
        budget(max_mb=8, max_ms=2)


def test_a_limit_on_an_unknown_cost_is_refused():
    costs = [*COSTS[:3], Cost(family="vit")]
    with pytest.raises(UserError, match=r"1 members \(d\)"):
        Budget(Limits(max_mb=100), costs, NAMES)
    Budget(Limits(max_members=2), costs, NAMES)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("resnet50", "resnet"), ("test_resnet", "resnet"), ("tf_efficientnetv2_s", "efficientnet"),
     ("efficientnet_b0.ra_in1k", "efficientnet"), ("vit_small_patch14_dinov2", "vit"),
     ("seresnet50", "seresnet"), ("mobilenetv3_small_050", "mobilenet"),
     ("convnext_tiny", "convnext"), ("eva02_small_patch14_224", "eva")],
)  # fmt: skip
def test_backbones_of_one_series_share_a_name(backbone, name):
    assert series(backbone) == name
