"""How many trials share a GPU: never more than it holds, and told why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.policy.packing import HEADROOM, MOST, STORE_SHARE, Packing, pack, store_budget

GB = 10**9


def packed(peak: float = 8, store: float = 1, total: float = 80, **machine: int) -> Packing:
    """Of a GPU and what is on it, in GB."""
    peaks = {"small": int(peak * GB / 4), "large": int(peak * GB)}
    usual = {"cpus_per_gpu": 64, "memory_per_gpu": 512 * GB}
    return pack(peaks, int(store * GB), int(total * GB), **{**usual, **machine})


@given(
    peak=st.floats(0.1, 100), store=st.floats(0, 100), total=st.floats(4, 200),
    cpus_per_gpu=st.integers(1, 64), cpus_per_trial=st.integers(1, 8),
)  # fmt: skip
def test_what_is_packed_fits(
    peak: float, store: float, total: float, cpus_per_gpu: int, cpus_per_trial: int
) -> None:
    packing = packed(peak, store, total, cpus_per_gpu=cpus_per_gpu, cpus_per_trial=cpus_per_trial)
    trials = packing.trials
    assert 1 <= trials <= MOST
    if trials > 1:
        budget = store_budget(int(total * GB), int(total * GB), packing.gpus_per_trial)
        # Shares are rounded down by up to one in ten thousand.
        held = store if store * GB <= budget * 1.001 else 0
        assert trials * (peak + held) <= (1 - HEADROOM) * total * 1.001
        assert trials * cpus_per_trial <= cpus_per_gpu
        assert held == store or store > STORE_SHARE * total, "the store was driven out of the GPU"


@pytest.mark.parametrize(
    ("change", "trials", "word"),
    [
        ({"peak": 17}, 4, "limited by its memory"),
        ({"peak": 17, "store": 10}, 2, "10.0 GB for the image store"),
        ({"peak": 1, "store": 10}, 3, "room for a copy of the image store each"),
        ({"peak": 17, "store": 40}, 4, "limited by its memory"),  # read from the machine's memory
        ({"peak": 1}, MOST, "at most 8"),
        ({"peak": 1, "cpus_per_gpu": 3}, 3, "3 CPU cores for each GPU"),
        ({"peak": 1, "cpus_per_gpu": 9, "cpus_per_trial": 4}, 2, "9 CPU cores for each GPU"),
        ({"peak": 1, "memory_per_gpu": 7 * GB}, 2, "7.0 GB of the machine's memory"),
        ({"peak": 79}, 1, "large was measured to take 79.0 GB"),
    ],
)
def test_the_scarcest_thing_decides_and_is_named(change: dict, trials: int, word: str) -> None:
    packing = packed(**change)
    assert packing.trials == trials
    assert word in packing.reason


def test_what_is_free_limits_the_store_as_well_as_the_share() -> None:
    assert store_budget(80 * GB, 80 * GB, 1) == 32 * GB
    assert store_budget(80 * GB, 10 * GB, 1) == 4 * GB
    assert store_budget(80 * GB, 80 * GB, 0.25) == store_budget(80 * GB, 20 * GB, 0.25) == 8 * GB
