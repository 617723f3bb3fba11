"""One run a workdir at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deit_jax.errors import UserError, machine_fault
from deit_jax.parallel.distributed import from_main_process
from deit_jax.reporting import console

_NAME = "lock"


class WorkdirError(UserError):
    """A workdir that cannot be used now. The message is one line."""


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made if it is not there, until the block ends or the process does.

    The system lets go of the lock when the process ends, however it ends: a killed run leaves none behind. Raises WorkdirError
    if another run holds it, or if the folder cannot be written.
    """
    held: list[int] = []
    from_main_process(lambda: held.extend(_take(workdir)))
    try:
        yield
    finally:
        for handle in held:
            os.close(handle)


def _take(workdir: Path) -> list[int]:
    path = workdir / _NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WorkdirError(
            f"--workdir={workdir} cannot be written ({machine_fault(error) or error.strerror}); mend that or use another"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise WorkdirError(
                f"--workdir={workdir} is in use by another run ({holder or 'unknown'}); wait for it, stop it or use another"
            ) from None
        console.warn(f"{path} cannot be locked here ({error.strerror}): see to it that no other run uses this workdir")
        return []
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return [handle]
