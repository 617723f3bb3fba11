"""The lock of a workdir on a disk: flock, which the system lets go of when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


class InUseError(Exception):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def locked(path: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock until the block ends; the file says who holds it. `warn` is called where the file system knows no locks.

    Raises InUseError, or OSError if the file cannot be written.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(handle, path, warn)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        os.fsync(handle)  # for the other processes, which may be on other machines
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, warn: Callable[[str], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InUseError(os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown") from None
        warn(f"{path} cannot be locked here ({error.strerror}): see to it that no other run uses this workdir")
