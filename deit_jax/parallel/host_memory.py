"""The C library's allocator, told to keep the memory of a training step on CPU."""

from __future__ import annotations

import ctypes
import platform

# glibc's mallopt parameter numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Keep freed memory in the process; returns whether the C library (glibc) took the setting.

    XLA on CPU allocates the temporary buffer of a step (gigabytes) each time, and glibc maps and unmaps it: many page faults a
    step. Call this before the first large allocation, and only where the CPU computes: all threads share one arena and its
    lock afterwards, which the threads that decode images for a GPU or TPU would wait for.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
