"""Shared memory for the batches of loader workers: how much they need, and errors if there is too little."""

from __future__ import annotations

import os
import re
import signal

from deit_jax.data.sources import DataError

FOLDER = "/dev/shm"  # 64 MB by default in a container
_REMEDY = (
    "give a container more (docker run --shm-size=8g, or --ipc=host), or read in threads (--config.data.num_workers=0)"
)


class SharedMemoryError(DataError):
    """There is too little shared memory for the batches of loader workers. The message is one line."""


def require(needed: int, num_workers: int) -> None:
    """Raises SharedMemoryError if the workers' `needed` bytes do not fit: the workers would be killed while writing."""
    free = _free()
    if free is not None and free < needed:
        raise SharedMemoryError(
            f"data.num_workers={num_workers} needs {needed / 1e6:,.1f} MB of shared memory for its batches, and {FOLDER} "
            f"has {free / 1e6:,.1f} MB free: {_REMEDY}"
        )


def refused(error: OSError) -> DataError:
    """Returns the error to raise for a worker's failed write."""
    return SharedMemoryError(
        f"the loader's processes cannot write their images ({error.strerror or error}; {_state()}): {_REMEDY}"
    )


def ended(error: RuntimeError) -> DataError | None:
    """Returns the error to raise if Grain reports that a worker has ended; None for other errors."""
    match = re.match(r"Worker process was terminated unexpectedly with (exit code (\S+\d))", str(error))
    if match is None:
        return None
    if int(match[2]) == -signal.SIGBUS:
        return SharedMemoryError(
            f"a loader process has ended ({match[1]}: shared memory is full; {_state()}): {_REMEDY}"
        )
    return DataError(
        f"a loader process has ended ({match[1]}; -9 often means out of memory): run the command again, with fewer "
        "processes (config.data.num_workers) if it recurs"
    )


def _free() -> int | None:
    """Returns the free bytes; None if the folder does not exist."""
    try:
        state = os.statvfs(FOLDER)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def _state() -> str:
    free = _free()
    return f"no {FOLDER}" if free is None else f"{free / 1e6:,.1f} MB free in {FOLDER}"
