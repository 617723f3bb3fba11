"""One run a workdir at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from deit_jax import console
from deit_jax.parallel.distributed import from_main_process, sum_over_processes
from deit_jax.storage.workdir import LOCK, UnreadableError, Workdir, WorkdirError, WorkdirLike


@contextmanager
def hold(workdir: WorkdirLike) -> Iterator[None]:
    """Keep other runs out of `workdir`, which is made if it is not there, until the block ends or the process does.

    The system lets go of the lock when the process ends, however it ends: a killed run leaves none behind. Raises WorkdirError
    if another run holds it, if the folder cannot be written, or if it is not one folder for all processes of this run.
    """
    workdir = Workdir.at(workdir)
    with contextlib.ExitStack() as held:
        from_main_process(lambda: held.enter_context(workdir.locked(console.warn)))
        _refuse_private(workdir)
        yield


def _refuse_private(workdir: Workdir) -> None:
    """Checkpoints are written by all processes into one folder: what the first has written there, all must see."""
    if jax.process_count() == 1:
        return
    holder = from_main_process(lambda: workdir.read(LOCK))
    blind = sum_over_processes(0 if _shows(workdir, holder) else 1)
    if blind:
        raise WorkdirError(
            f"{blind} of {jax.process_count()} processes do not see what the first one writes in --workdir={workdir}: "
            "it has to be a folder that all of them share"
        )


def _shows(workdir: Workdir, text: str) -> bool:
    for _ in range(20):  # a network disk may take a moment
        with contextlib.suppress(UnreadableError):
            if workdir.read(LOCK) == text:
                return True
        time.sleep(0.5)
    return False
