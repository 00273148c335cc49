"""The allocator's setting: freed memory stays with the process."""

import ctypes
import subprocess
import sys

import pytest

# Page faults of taking, filling and giving back the same 8 MiB often, after the first time.
FAULTS = """
import resource, torch
from search.train.allocator import keep_freed_memory
if {keep}: keep_freed_memory()
torch.set_num_threads(1)
torch.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): torch.ones(2**21)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    kept = faults(keep=True)
    assert kept < 2048  # one block of 8 MiB has as many pages
    assert kept < faults(keep=False)
