"""Lets the processes of a run meet before JAX starts, and reports a missing process or another version in one line.

In such cases JAX's own service aborts the process with pages of C++ frames, or crashes if the port is in use. The first process
listens on the coordinator's port, which JAX takes over later. The others send their number and versions; all get the same answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import platform
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from deit_jax.errors import UserError
from deit_jax.version import __version__

_PROTOCOL = "deit_jax rendezvous 1"
_MAX_BYTES = 1 << 16  # longest message
_RETRY_SECONDS = 0.2
_NAME_SECONDS = 30  # for which an unknown host name is retried: a cluster may register its machines late


class ClusterError(UserError):
    """The processes of a run cannot find each other, or do not match. The message is one line."""


def versions() -> dict[str, str]:
    """Returns what must be the same in all processes: the versions of this package, JAX and Python."""
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {"deit_jax": __version__, **libraries, "Python": ".".join(platform.python_version_tuple()[:2])}


def meet(coordinator: str, num_processes: int, process_id: int, *, seconds: float) -> None:
    """Returns when all processes have reached `coordinator` and run the same versions.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      seconds: how long to wait for the last one.

    Raises ClusterError: an invalid argument, a port that is in use or unreachable, a process that is missing or appears twice,
    different versions.
    """
    host, port = _address(coordinator)
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ClusterError(
            f"--process_id={process_id} of --num_processes={num_processes}: processes are numbered from 0 to {num_processes - 1}"
        )
    own = {"protocol": _PROTOCOL, "process": process_id, "processes": num_processes, "versions": versions()}
    deadline = time.monotonic() + seconds
    if process_id == 0:
        _receive(host, port, own, deadline, seconds)
    else:
        _join(host, port, own, deadline, seconds)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"--coordinator={coordinator}: give host:port of process 0, e.g. 10.0.0.2:8476")
    return host.strip("[]"), int(port)


def _receive(host: str, port: int, own: Mapping[str, Any], deadline: float, seconds: float) -> None:
    """Runs in the first process: receives the others' messages, and sends all of them the result."""
    try:
        listener = _listen(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ClusterError(
                f"port {port} of --coordinator={host}:{port} is in use on this machine: end the program that uses it, or give "
                "all processes another port"
            ) from None
        raise ClusterError(f"port {port} of --coordinator={host}:{port} cannot be used ({error.strerror})") from None
    joined: set[int] = set()
    waiting: list[socket.socket] = []
    fault: str | None = None
    with listener, contextlib.ExitStack() as connections:
        while fault is None and len(joined) < own["processes"] - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = connections.enter_context(listener.accept()[0])
            except TimeoutError:
                missing = [number for number in range(1, own["processes"]) if number not in joined]
                fault = f"process {', '.join(map(str, missing))} of {own['processes']} did not start within {seconds:g} seconds"
                break
            message = _read(connection)
            if message is None:
                continue  # not a process of a run, e.g. a port scan
            fault = _mismatch(own, message, joined)
            joined.add(message["process"])
            waiting.append(connection)
        answer = {"protocol": _PROTOCOL, "fault": fault}
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
    if fault is not None:
        raise ClusterError(fault)


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be disabled; a port in use also fails below
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _mismatch(own: Mapping[str, Any], other: Mapping[str, Any], joined: set[int]) -> str | None:
    number = other["process"]
    if other["processes"] != own["processes"]:
        return f"process {number} has --num_processes={other['processes']}, process 0 has {own['processes']}: give all the same"
    if number in joined or number == 0:
        return f"two processes have --process_id={number}: number them from 0 to {own['processes'] - 1}"
    for name, value in own["versions"].items():
        if (theirs := other["versions"].get(name)) != value:
            return f"process {number} runs {name} {theirs}, process 0 {value}: install the same versions everywhere"
    return None


def _join(host: str, port: int, own: Mapping[str, Any], deadline: float, seconds: float) -> None:
    """Runs in the other processes: contacts the first one, and handles its answer."""
    with _connect(host, port, deadline, seconds) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(own).encode() + b"\n")
        answer = _read(connection, deadline - time.monotonic() + 10)  # the first one's deadline may be later
    if answer is None:
        raise ClusterError(
            f"--coordinator={host}:{port} answers, but not as process 0 of this run: process 0 has ended, or another program "
            "uses the port"
        )
    if answer["fault"] is not None:
        raise ClusterError(answer["fault"])


def _connect(host: str, port: int, deadline: float, seconds: float) -> socket.socket:
    names_until = min(time.monotonic() + _NAME_SECONDS, deadline)
    while True:
        now = time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(deadline - now, 0.01))
        except OSError as error:
            unknown = isinstance(error, socket.gaierror)
            if now + _RETRY_SECONDS > (names_until if unknown else deadline):
                reason = f"no such host: {error.strerror}" if unknown else (error.strerror or "no answer")
                raise ClusterError(
                    f"process 0 cannot be reached at --coordinator={host}:{port} ({reason}; tried for {seconds:g} seconds): "
                    "check the address and the firewall, and that process 0 runs"
                ) from None
        time.sleep(_RETRY_SECONDS)


def _read(connection: socket.socket, seconds: float = 10) -> dict[str, Any] | None:
    """Returns the other side's message; None if it is invalid or does not arrive."""
    connection.settimeout(max(seconds, 1))
    received = b""
    try:
        while not received.endswith(b"\n") and len(received) < _MAX_BYTES:
            part = connection.recv(4096)
            if not part:
                break
            received += part
        message = json.loads(received)
        return message if message["protocol"] == _PROTOCOL else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
