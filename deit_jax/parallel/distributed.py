"""Several processes as one run: detected from the cluster, or given by flags."""

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
from deit_jax.parallel.cluster import devices_of_process, in_cluster, is_multi_host, missing_requirement
from deit_jax.parallel.platforms import has_tpu
from deit_jax.parallel.rendezvous import ClusterError, meet

_Value = TypeVar("_Value")


class LostProcessError(UserError):
    """Another process of the run has ended or stopped responding. The message is one line."""

    exit_status = 75  # as for a run that was asked to stop: the same command resumes


# Appears in the errors of collectives and barriers if a process at the other end no longer exists.
_LOST = re.compile(
    r"Gloo|NCCL|connection (closed|reset|refused)|broken pipe|heartbeat|coordination|barrier|UNAVAILABLE|ABORTED",
    re.IGNORECASE,
)
_MAX_WAIT = 3600  # seconds that the first process waits for the last, which may be compiling
_SILENT_WAIT = 10  # seconds after which a process prints what it waits for
_reported: set[str] = set()  # waits that were printed
_num_waits: collections.Counter[str] = collections.Counter()  # calls of `wait_for_all`, by place


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 60,
    join_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any. Call it before anything uses a device.

    Without arguments a TPU pod, Slurm (srun), Open MPI or a Kubernetes JobSet is recognised by its environment, and a TPU pod on
    Compute Engine by its metadata server. Otherwise the process is on its own.

    Args:
      coordinator: "host:port" of process 0, the same in every process.
      num_processes, process_id: number of processes, and this one's number, from 0.
      heartbeat_seconds: a process that is silent for this long counts as lost, and the others end. The first process to finish
        also waits this long for the last.
      join_seconds: how long the first process to start waits for the last.

    Raises ClusterError if only some of the three are given, or the processes do not find each other or run different versions.
    """
    flags = (coordinator, num_processes, process_id)
    by_itself = all(value is None for value in flags)
    if by_itself:
        if not in_cluster(os.environ) and not (has_tpu() and is_multi_host()):
            return
        if lacking := missing_requirement(os.environ):
            raise ClusterError(f"{lacking}; or give --coordinator, --num_processes and --process_id (docs/pods.md)")
    elif any(value is None for value in flags):
        raise ClusterError("--coordinator, --num_processes and --process_id go together: give all three or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        with _report_long_wait(f"process {process_id} of {num_processes} waits for the others to start"):
            meet(coordinator, num_processes, process_id, seconds=join_seconds)
    try:
        with _report_long_wait("this process waits for the others to start"):
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
        raise ClusterError(f"the processes {where} cannot find each other ({str(error).splitlines()[0]})") from error


def is_main_process() -> bool:
    """Whether this process writes for all: the files in the workdir except checkpoints, and the console."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has called it. `what` names the place; a long wait is printed, once per place.

    Every process must call it equally often for each place: a call that only some of them make waits for an hour, then fails.
    Calls are numbered by place, so that such a call does not affect other places.

    Uses the coordination service, not a collective: Gloo, which runs collectives between CPUs, waits at most 30 seconds.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        _num_waits[what] += 1
        # Orbax uses the service only if it gets the processes.
        everyone = set(range(jax.process_count()))
        with _report_long_wait(f"process {jax.process_index()} waits for the others: {what}"):
            multihost.sync_global_processes(f"{what} {_num_waits[what]}", timeout=_MAX_WAIT, processes=everyone)


@contextlib.contextmanager
def _report_long_wait(text: str) -> Iterator[None]:
    """Prints a line if the block takes long, in every process: the one that hangs is rarely the one that prints the log."""

    def report() -> None:
        if text not in _reported:
            _reported.add(text)
            with contextlib.suppress(OSError):
                print(text, flush=True)

    timer = threading.Timer(_SILENT_WAIT, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first_process_first(make: Callable[[], _Value]) -> _Value:
    """Returns `make()`. The first process calls it before the others, which then find its results on a shared disk.

    All processes wait once, even if `make` fails.
    """
    place = "the first process opens the data"
    if not is_main_process():
        wait_for_all(place)
        return make()
    try:
        return make()
    finally:
        wait_for_all(place)


def compiled_together(function: Any) -> Callable[..., Any]:
    """Wraps a jitted function so that, for new argument shapes, it first runs when every process has compiled it.

    Processes that share a machine compile at different speeds, and a collective does not wait long (see `wait_for_all`). A single
    process gets the function unchanged.
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
    """Returns the main process's `make()` in all processes; only the main process calls it. Values of JSON types.

    Raises the UserError that `make` raised in every process, so that none of them continues and waits for the others.
    """
    if jax.process_count() == 1:
        return make()
    wait_for_all("asking the main process")
    answer, failure = {}, None
    if is_main_process():
        try:
            answer = {"value": make()}
        except UserError as error:
            answer, failure = {"error": str(error)}, error
    answer = gather(answer, "the answer of the main process")[0]
    if failure is not None:
        raise failure
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Converts JAX's errors about a lost or unresponsive process to LostProcessError.

    If a collective only hangs, JAX's heartbeat ends this process instead, with its own message.
    """
    try:
        yield
    except UserError:
        raise
    # JAX raises ValueError if it makes an array of a failed collective's result.
    except (RuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        reason = str(error).splitlines()[0][-120:]
        raise LostProcessError(
            f"another process of this run has ended or failed (...{reason}); see its output for the reason. "
            "The last checkpoint is kept: start all processes again to resume"
        ) from error


def leave_at_once(status: int) -> None:
    """Ends one of several processes without waiting for the others, which may never finish; a single process returns."""
    # In this order: without devices there is no process count.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main_process():
        time.sleep(2)  # when process 0 exits the others are killed; give them time to print their errors
    os._exit(status)


def gather(value: Any, what: str) -> list[Any]:
    """Returns the values of all processes, by process number. Values of JSON types; `what`: see `wait_for_all`."""
    if jax.process_count() == 1:
        return [value]
    return [json.loads(content) for content in _gather_bytes(json.dumps(value).encode(), what)]


def gather_arrays(array: np.ndarray, what: str) -> list[np.ndarray]:
    """Returns the arrays of all processes, by process number. They have the same type and shape; `what`: see `wait_for_all`."""
    if jax.process_count() == 1:
        return [array]
    contents = _gather_bytes(np.ascontiguousarray(array).tobytes(), what)
    return [np.frombuffer(content, array.dtype).reshape(array.shape) for content in contents]


def _gather_bytes(content: bytes, what: str) -> list[bytes]:
    from jax.experimental import multihost_utils

    own = np.frombuffer(content, np.uint8)
    wait_for_all(what)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = own
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def sum_over_processes(count: int) -> int:
    """Returns the sum of `count` over the processes."""
    return sum(gather(count, "a sum"))
