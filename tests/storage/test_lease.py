"""The lock of a run in a bucket, by servers on loopback."""

import json
import os
import subprocess
import sys
import time

import pytest

from deit_jax.storage import lease as lease_module
from deit_jax.storage.lease import HeldError, Lease, LostLockError
from deit_jax.storage.workdir import LOCK


def test_a_lock_that_is_renewed_is_refused(bucket):
    said = []
    holder = Lease(bucket, LOCK, seconds=2.0, renew=0.2)
    holder.take(said.append)
    assert not said and holder.holder() == Lease(bucket, LOCK).holder() == holder.token
    with pytest.raises(HeldError, match=rf"^process {os.getpid()} on "):
        Lease(bucket, LOCK, seconds=2.0).take(said.append)
    holder.check(ask=True)
    holder.release()
    assert bucket.list() == {}
    holder.check(ask=True)  # it is not held any more
    assert len(said) == 1 and "which may have ended: waiting for the end of its lease" in said[0]


def ended_process():
    """Returns what a lock says whose process has ended."""
    code = "from deit_jax.storage import lease; import json; print(json.dumps(lease._this_process()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def test_the_lock_of_an_ended_process_is_taken_at_once_on_its_machine_only(bucket):
    # S3 tells the time in whole seconds.
    lease_seconds, least = {"gs": (0.4, 0.3), "s3": (2.5, 1.0)}[bucket.scheme]
    ended, said = {**ended_process(), "lease_seconds": lease_seconds}, []
    bucket.write(LOCK, json.dumps(ended).encode())
    lease = Lease(bucket, LOCK)
    lease.take(said.append)
    lease.release()
    assert not said
    for name in ("host", "boot", "pids"):
        bucket.write(LOCK, json.dumps({**ended, name: "another"}).encode())
        began = time.monotonic()
        lease = Lease(bucket, LOCK)
        lease.take(said.append)
        assert time.monotonic() - began > least and bucket.stat(LOCK).size > 0
        lease.release()
    assert len(said) == 3


def test_a_number_that_another_process_has_now_is_not_the_holder(bucket):
    own = lease_module._this_process()
    assert not lease_module._has_ended(own) and lease_module._has_ended({**own, "started": "1"})
    assert not lease_module._has_ended({}) and not lease_module._has_ended({**own, "pids": ""})


def test_a_damaged_lock_is_taken_after_the_lease(bucket):
    bucket.write(LOCK, b"\xff{")
    lease = Lease(bucket, LOCK, seconds=0.5)
    lease.take(lambda line: None)
    lease.release()


def test_each_renewal_changes_the_version(bucket):
    lease = Lease(bucket, LOCK)
    lease.take(print)
    versions = [bucket.stat(LOCK).version]
    for _ in range(3):
        lease._renew()
        versions.append(bucket.stat(LOCK).version)
    lease.release()
    assert len(set(versions)) == 4


def test_a_lock_that_was_removed_is_lost(bucket):
    lease = Lease(bucket, LOCK)
    lease.take(print)
    bucket.delete(LOCK)
    lease._renew()
    with pytest.raises(LostLockError, match=r"was taken over by another run .unknown."):
        lease.check()
    lease.release()
    assert bucket.list() == {}


def test_a_released_lock_of_another_run_stays(bucket, taken_over, monkeypatch):
    if bucket.scheme == "gs":
        pytest.skip("fake-gcs-server ignores the condition of a removal")
    lease = Lease(bucket, LOCK)
    lease.take(print)
    check = lease.check

    def late(**arguments):
        """The other run takes the lock after this one has looked."""
        check(**arguments)
        taken_over(bucket.address)

    monkeypatch.setattr(lease, "check", late)
    lease.release()
    assert json.loads(bucket.read(LOCK))["token"] == "other"
