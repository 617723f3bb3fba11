"""Several processes as one run: found out from the cluster, or told by flags."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from deit_jax.errors import UserError
from deit_jax.parallel.cluster import devices_of_process, in_cluster, one_of_several, what_jax_lacks
from deit_jax.parallel.platforms import has_tpu
from deit_jax.parallel.rendezvous import ClusterError, meet

_Value = TypeVar("_Value")


class LostProcessError(UserError):
    """Another process of the run is gone. The message is one line."""

    exit_status = 75  # as of a run that was asked to stop: the same command goes on


# Words of the errors that collectives and barriers end in when a process at the other end is not there any more.
_LOST = re.compile(
    r"Gloo|NCCL|connection (closed|reset|refused)|broken pipe|heartbeat|coordination|barrier|UNAVAILABLE|ABORTED",
    re.IGNORECASE,
)


_LONGEST_WAIT = 3600  # seconds that the first process waits for the last, which may be compiling
_SILENT_WAIT = 10  # seconds after which a process says what it waits for
_said: set[str] = set()  # what it has waited for, each printed once
_meetings: collections.Counter[str] = collections.Counter()  # how often this process has met the others, by place


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 60,
    join_seconds: int = 300,
) -> None:
    """Join the other processes of the run, if there are any. Call it before anything touches a device.

    Without arguments a TPU pod, Slurm (srun), Open MPI or a Kubernetes JobSet is recognised by its environment, on Compute Engine
    a TPU pod by its metadata server; elsewhere the process is on its own.

    Args:
      coordinator: "host:port" of process 0, the same in every process.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      heartbeat_seconds: a process that is silent for so long counts as gone, and ends the others; so long, too, the first
        to finish waits for the last.
      join_seconds: how long the first to come waits for the last.

    Raises ClusterError if only some of the three are given, or the processes do not find each other or run other versions.
    """
    told = (coordinator, num_processes, process_id)
    by_itself = all(value is None for value in told)
    if by_itself:
        if not in_cluster(os.environ) and not (has_tpu() and one_of_several()):
            return
        if lacking := what_jax_lacks(os.environ):
            raise ClusterError(f"{lacking}; or give --coordinator, --num_processes and --process_id (docs/pods.md)")
    elif any(value is None for value in told):
        raise ClusterError("--coordinator, --num_processes and --process_id go together: give all three or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        with _said_if_long(f"process {process_id} of {num_processes} waits for the others to start"):
            meet(coordinator, num_processes, process_id, seconds=join_seconds)
    try:
        with _said_if_long("this process waits for the others to start"):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                local_device_ids=devices_of_process(os.environ),
                cluster_detection_method=None if by_itself else "deactivate",
                initialization_timeout=join_seconds,
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=heartbeat_seconds,
            )
    except (ValueError, RuntimeError) as error:
        where = f"at {coordinator}" if coordinator else "of the cluster"
        raise ClusterError(f"the processes {where} do not find each other ({str(error).splitlines()[0]})") from error


def is_main_process() -> bool:
    """Whether this process writes for all: files in the workdir but for checkpoints, and the console."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has come here. `what` names the place; a long wait is printed, once for each place.

    Every process must come to a place equally often: a call that only some of them make waits for an hour, and fails. Meetings
    are numbered by place, so that such a call leaves the numbers of other places as they are.

    By the coordination service, not by a collective: between CPUs Gloo carries those, and it waits for no more than 30 seconds.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        _meetings[what] += 1
        # Orbax asks the service only if the processes are named.
        everyone = set(range(jax.process_count()))
        with _said_if_long(f"process {jax.process_index()} waits for the others: {what}"):
            multihost.sync_global_processes(f"{what} {_meetings[what]}", timeout=_LONGEST_WAIT, processes=everyone)


@contextlib.contextmanager
def _said_if_long(text: str) -> Iterator[None]:
    """Print a line if what follows takes long, in every process: the one that hangs is seldom the one that speaks."""

    def say() -> None:
        if text not in _said:
            _said.add(text)
            with contextlib.suppress(OSError):
                print(text, flush=True)

    timer = threading.Timer(_SILENT_WAIT, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first_process_first(make: Callable[[], _Value]) -> _Value:
    """What `make` returns here; the others call it when the first process is done, and find what it left on a shared disk.

    All processes wait once, also where `make` fails.
    """
    if jax.process_count() == 1:
        return make()
    if not is_main_process():
        wait_for_all("the first one opens the data")
        return make()
    try:
        return make()
    finally:
        wait_for_all("the first one opens the data")


def compiled_together(function: Any) -> Callable[..., Any]:
    """A jitted function that is run, the first time for each shape of its arguments, only when every process has compiled it.

    Processes compile at different speeds where they share a machine, and a collective does not wait long (see `wait_for_all`). A
    single process gets the function back as it is.
    """
    if jax.process_count() == 1:
        return function
    compiled: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = (tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if shapes not in compiled:
            compiled[shapes] = function.lower(*arguments).compile()
            wait_for_all("compiled")
        return compiled[shapes](*arguments)

    return call


def from_main_process(make: Callable[[], Any]) -> Any:
    """What `make` returns in the main process, which alone calls it, in all of them. JSON's types.

    Raises in every process the UserError that `make` raised, so that none goes on and waits for the others.
    """
    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils

    wait_for_all("asking the main process")
    answer, failure = {}, None
    if is_main_process():
        try:
            answer = {"value": make()}
        except UserError as error:
            answer, failure = {"error": str(error)}, error
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(text if is_main_process() else np.zeros(length, np.uint8))
    answer = json.loads(np.asarray(text).astype(np.uint8).tobytes())
    if failure is not None:
        raise failure
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def lost_processes_told() -> Iterator[None]:
    """Raises LostProcessError for the errors of jax that say that another process is gone, or stopped answering.

    Where a collective only hangs, jax's heartbeat ends this process instead, with a message of its own.
    """
    try:
        yield
    except UserError:
        raise
    # A ValueError comes where jax makes an array of what a collective gave.
    except (RuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        reason = str(error).splitlines()[0][-120:]
        raise LostProcessError(
            f"another process of this run is gone or has failed (...{reason}); its own output says why. "
            "The last checkpoint is there: start all processes again"
        ) from error


def leave_at_once(status: int) -> None:
    """End this process of several without waiting for the others, which may never come; a single one just returns."""
    # Asked in this order: where there are no devices there is no count of processes.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main_process():
        time.sleep(2)  # whose end takes the others along: let them speak first
    os._exit(status)


def sum_over_processes(count: int) -> int:
    """The sum of what each process gives."""
    if jax.process_count() == 1:
        return count
    from jax.experimental import multihost_utils

    wait_for_all("a sum")
    return int(np.sum(multihost_utils.process_allgather(np.int32(count))))
