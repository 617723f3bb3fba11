import json
import socket
import threading
import time

import pytest

from deit_jax.parallel import rendezvous
from deit_jax.parallel.rendezvous import ClusterError, meet
from tests.end_to_end.commands import free_port


def together(*arguments, seconds=5.0):
    """Calls `meet` in several threads; returns each one's result: None or the error message."""
    found = [None] * len(arguments)

    def call(i, values):
        try:
            meet(*values, seconds=seconds)
        except ClusterError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=call, args=(i, values)) for i, values in enumerate(arguments)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(30)
    return found


@pytest.fixture
def coordinator():
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_meet_in_any_order_and_leave_the_port_free(coordinator, order):
    assert together(*((coordinator, 3, number) for number in order)) == [None] * 3
    assert together((coordinator, 2, 0), (coordinator.replace("127.0.0.1", "localhost"), 2, 1)) == [None] * 2


def test_missing_process_is_reported_by_all(coordinator):
    found = together((coordinator, 4, 0), (coordinator, 4, 2), seconds=1.0)
    assert found == ["process 1, 3 of 4 did not start within 1 seconds"] * 2


def test_missing_first_process_is_reported(coordinator):
    [found] = together((coordinator, 2, 1), seconds=0.5)
    assert (
        f"process 0 cannot be reached at --coordinator={coordinator} (Connection refused; tried for 0.5 seconds)"
        in found
    )
    [found] = together(("no-such-host.invalid:1234", 2, 1), seconds=0.5)
    assert "(no such host: " in found


def test_port_in_use_is_reported_by_all(coordinator):
    with socket.create_server(("", int(coordinator.rpartition(":")[2]))) as other:

        def refuse():
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        found = together((coordinator, 2, 0), (coordinator, 2, 1))
    assert "is in use on this machine" in found[0]
    assert "answers, but not as process 0 of this run" in found[1]


def test_mismatch_is_reported_by_all(coordinator, monkeypatch):
    found = together((coordinator, 3, 0), (coordinator, 3, 1), (coordinator, 3, 1))
    assert found == ["two processes have --process_id=1: number them from 0 to 2"] * 3
    found = together((coordinator, 3, 0), (coordinator, 2, 1))
    assert found == ["process 1 has --num_processes=2, process 0 has 3: give all the same"] * 2

    versions = iter([rendezvous.versions(), rendezvous.versions() | {"jax": "0.1.2"}])
    monkeypatch.setattr(rendezvous, "versions", lambda: next(versions))
    found = together((coordinator, 2, 0), (coordinator, 2, 1))
    assert found[0] == found[1] and "process 1 runs jax 0.1.2, process 0 " in found[0]


def test_other_connections_are_ignored(coordinator):
    host, port = coordinator.split(":")
    found = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(together((coordinator, 2, number))))
        for number in (0,)
    ]
    threads[0].start()
    for message in (b"GET / HTTP/1.1\r\n\r\n", b"", json.dumps({"protocol": "another"}).encode() + b"\n", b"[1]\n"):
        for _ in range(50):
            try:
                with socket.create_connection((host, int(port)), timeout=5) as scan:
                    scan.sendall(message)
                break
            except OSError:
                time.sleep(0.1)
    assert together((coordinator, 2, 1)) == [None]
    threads[0].join(30)
    assert found == [[None]]


@pytest.mark.parametrize("address", ["127.0.0.1", ":1234", "host:", "host:port", "host:0", "host:70000"])
def test_invalid_address_raises(address):
    with pytest.raises(ClusterError, match="give host:port of process 0"):
        meet(address, 2, 1, seconds=1)


@pytest.mark.parametrize(("count", "number"), [(2, 2), (2, -1), (0, 0)])
def test_invalid_process_id_raises(coordinator, count, number):
    with pytest.raises(ClusterError, match="processes are numbered from 0"):
        meet(coordinator, count, number, seconds=1)
