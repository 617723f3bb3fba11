"""Locks a workdir for one run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import jax

from deit_jax import console
from deit_jax.parallel.distributed import from_main_process, sum_over_processes
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import Workdir, WorkdirError, WorkdirLike


@contextlib.contextmanager
def hold(workdir: WorkdirLike) -> Iterator[None]:
    """Locks `workdir`, which is created if needed, until the block or the process ends; a killed run leaves no lock.

    Raises WorkdirError if another run holds the lock, or if the folder is not writable or not shared by all processes.
    """
    workdir = Workdir.at(workdir)
    with contextlib.ExitStack() as stack:
        from_main_process(lambda: stack.enter_context(workdir.locked(console.warn)))
        _check_shared(workdir)
        yield


def _check_shared(workdir: Workdir) -> None:
    """Raises WorkdirError unless all processes see what the first one writes, as checkpoints require."""
    if jax.process_count() == 1:
        return
    holder = from_main_process(workdir.holder)
    if failed := sum_over_processes(int(not _is_held(workdir, holder))):
        raise WorkdirError(
            f"{failed} of {jax.process_count()} processes do not see what the first one writes in --workdir={workdir}: "
            "it must be a folder that all of them share"
        )


def _is_held(workdir: Workdir, holder: str) -> bool:
    for _ in range(20):  # a network disk may be slow
        with contextlib.suppress(UnreadableError):
            if workdir.holder() == holder:
                return True
        time.sleep(0.5)
    return False
