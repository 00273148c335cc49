"""The allocator's setting: large blocks come from memory that the process keeps."""

import ctypes
import subprocess
import sys

import pytest

# Bytes of a block of 24 MiB that are a mapping of their own, given back as soon as it is freed.
MAPPED = """
import ctypes
from search.train.allocator import keep_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(f"field{{i}}", ctypes.c_size_t) for i in range(10)]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
if {keep}: keep_freed_memory()
before = libc.mallinfo2().field4  # hblkhd
libc.malloc(24 * 2**20)
print(libc.mallinfo2().field4 - before)
"""


def mapped(keep: bool) -> int:
    command = [sys.executable, "-c", MAPPED.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_a_large_block_is_no_mapping_of_its_own() -> None:
    assert mapped(keep=False) >= 24 * 2**20
    assert mapped(keep=True) == 0
