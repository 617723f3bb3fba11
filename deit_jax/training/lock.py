"""One run a workdir at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from deit_jax.errors import UserError, machine_fault
from deit_jax.parallel.distributed import from_main_process, sum_over_processes
from deit_jax.reporting import console

_NAME = "lock"


class WorkdirError(UserError):
    """A workdir that cannot be used now. The message is one line."""


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made if it is not there, until the block ends or the process does.

    The system lets go of the lock when the process ends, however it ends: a killed run leaves none behind. Raises WorkdirError
    if another run holds it, if the folder cannot be written, or if it is not one folder for all processes of this run.
    """
    held: list[int] = []
    from_main_process(lambda: held.append(_take(workdir)))
    try:
        _refuse_private(workdir)
        yield
    finally:
        for handle in held:
            os.close(handle)


def _take(workdir: Path) -> int:
    path = workdir / _NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(workdir, error) from error
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
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        os.fsync(handle)  # for the other processes, which may be on other machines
    except OSError as error:
        os.close(handle)
        raise _unwritable(workdir, error) from error
    return handle


def _unwritable(workdir: Path, error: OSError) -> WorkdirError:
    reason = machine_fault(error) or error.strerror
    return WorkdirError(f"--workdir={workdir} cannot be written ({reason}); fix that or use another")


def _refuse_private(workdir: Path) -> None:
    """Checkpoints are written by all processes into one folder: what the first has written there, all must see."""
    if jax.process_count() == 1:
        return
    path = workdir / _NAME
    holder = from_main_process(lambda: path.read_text(encoding="utf-8"))
    blind = sum_over_processes(0 if _shows(path, holder) else 1)
    if blind:
        raise WorkdirError(
            f"{blind} of {jax.process_count()} processes do not see what the first one writes in --workdir={workdir}: "
            "it has to be a folder that all of them share"
        )


def _shows(path: Path, text: str) -> bool:
    for _ in range(20):  # a network disk may take a moment
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == text:
                return True
        time.sleep(0.5)
    return False
