"""Configures the C library's allocator to keep the memory of a training step on CPU."""

from __future__ import annotations

import ctypes
import platform

# glibc's mallopt parameter numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process; returns whether the C library (glibc) accepted the setting.

    On CPU, XLA allocates the temporary buffer of a step (gigabytes) each time, and glibc maps and unmaps it, which causes many
    page faults. Call this before the first large allocation, and only if the CPU computes: afterwards all threads share one
    arena and its lock, which would slow down the threads that decode images for a GPU or TPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
