import sys
import time

import pytest

from deit_jax.parallel import distributed
from deit_jax.parallel.distributed import (
    ClusterError,
    first_process_first,
    is_main_process,
    start,
    wait_for_all,
)

KUBERNETES = {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def test_pod_with_missing_requirement_raises_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):  # libtpu sets them where it is loaded
        monkeypatch.delenv(name, raising=False)
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match="or give --coordinator, --num_processes and --process_id"):
        start()


def test_incomplete_flags_raise():
    with pytest.raises(ClusterError, match="give all three or none"):
        start("127.0.0.1:1", None, 0)


def test_single_process_is_main_and_does_not_wait():
    start()
    assert is_main_process()
    wait_for_all("nowhere")
    assert first_process_first(lambda: 7) == 7


def test_long_wait_is_printed_once(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_SILENT_WAIT", 0.01)
    for _ in range(2):
        with distributed._report_long_wait("this test waits"):
            time.sleep(0.2)
    monkeypatch.setattr(distributed, "_SILENT_WAIT", 60)
    with distributed._report_long_wait("this test does not wait"):
        pass
    assert capsys.readouterr().out == "this test waits\n"
