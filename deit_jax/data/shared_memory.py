"""What reading processes hand over through shared memory: how much they need, and what is said where it is not there."""

from __future__ import annotations

import os
import re
import signal

from deit_jax.data.sources import DataError

FOLDER = "/dev/shm"  # a container's has 64 MB unless more is asked for
_REMEDY = (
    "give a container more (docker run --shm-size=8g, or --ipc=host), or read in threads (--config.data.num_workers=0)"
)


class SharedMemoryError(DataError):
    """Shared memory that has no room for what reading processes hand over. The message is one line."""


def require(needed: int, num_workers: int) -> None:
    """Raise SharedMemoryError where `needed` bytes of the workers do not fit: they would be killed while they write."""
    free = _free()
    if free is not None and free < needed:
        raise SharedMemoryError(
            f"data.num_workers={num_workers} needs {needed / 1e6:,.1f} MB of shared memory for its batches, and {FOLDER} "
            f"has {free / 1e6:,.1f} MB free: {_REMEDY}"
        )


def refused(error: OSError) -> DataError:
    """What to raise for an error of a worker's write."""
    return SharedMemoryError(
        f"the processes that read images cannot hand them over ({error.strerror or error}; {_state()}): {_REMEDY}"
    )


def ended(error: RuntimeError) -> DataError | None:
    """What to raise for Grain's error of a worker that has ended; None if it is another error."""
    match = re.match(r"Worker process was terminated unexpectedly with (exit code (\S+\d))", str(error))
    if match is None:
        return None
    if int(match[2]) == -signal.SIGBUS:
        return SharedMemoryError(
            f"a process that reads images has ended ({match[1]}: shared memory is full; {_state()}): {_REMEDY}"
        )
    return DataError(
        f"a process that reads images has ended ({match[1]}; -9 is often a lack of memory): run the command again, with "
        "fewer of them (config.data.num_workers) if that recurs"
    )


def _free() -> int | None:
    """In bytes; None where no folder shows it."""
    try:
        state = os.statvfs(FOLDER)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def _state() -> str:
    free = _free()
    return f"no {FOLDER}" if free is None else f"{free / 1e6:,.1f} MB free in {FOLDER}"
