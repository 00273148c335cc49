"""The C library's memory allocator, told to keep what a training step frees for the next one."""

import ctypes

# Numbers of glibc's mallopt(3), and what they are set to.
M_TRIM_THRESHOLD, NEVER = -1, 2**31 - 1
M_MMAP_THRESHOLD, LARGE = -3, 32 * 2**20  # bytes; the largest that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep memory that it has freed, where its C library is glibc.

    As it is, glibc gives large blocks back to the system at once, and the kernel clears the same
    pages for every step anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, NEVER)
