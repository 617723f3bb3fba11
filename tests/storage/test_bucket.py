"""Runs in a bucket, by a server on loopback; tests/reliability/test_bucket_runs.py trains in one."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deit_jax.storage import bucket as module
from deit_jax.storage import lease as lease_module
from deit_jax.storage.bucket import ABSENT, Bucket, BucketError, ChangedError, UnreachableError, bucket_address
from deit_jax.storage.checkpoints import MANIFEST, DamageError
from deit_jax.storage.lease import HeldError, Lease, LostLockError
from deit_jax.storage.workdir import CONFIG, LOCK, METRICS, TENSORBOARD, Workdir, WorkdirError
from tests.bucket_server import address, server


def test_places_in_a_bucket():
    for place in ("gs://b/runs/a", "gs://b/runs/a/", "GS://b/runs/a", Path("gs://b/runs/a")):
        assert bucket_address(place) == "gs://b/runs/a"
    for place in ("runs/a", "/runs/a", "a:b", "a:/b", Path("gs"), "C:/runs"):
        assert bucket_address(place) is None
    workdir = Workdir.at("gs://b/runs/a")
    assert str(workdir) == "gs://b/runs/a" and workdir.address(CONFIG) == "gs://b/runs/a/config.json"
    assert workdir.name == "a" and str(workdir.teacher) == "gs://b/runs/a/teacher" and Workdir.at(workdir) is workdir
    assert str(workdir.checkpoints) == "gs://b/runs/a/checkpoints"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "s3://b/a",
            "s3://b/a: runs are kept in gs:// buckets or in folders, not in s3://, where Orbax does not write",
        ),
        ("https://b/a", "https://b/a is an address: give a folder, or a bucket's gs://BUCKET/RUN"),
        ("gs://b", "gs://b: a run in a bucket is gs://BUCKET/RUN, with a name for the run"),
        ("gs://b/a//c", "with a name for the run"),
        ("gs://b/../c", "with a name for the run"),
    ],
)
def test_other_addresses_are_refused_in_one_line(place, message):
    with pytest.raises(BucketError, match=message):
        Workdir.at(place)


@pytest.fixture(scope="module")
def running():
    with server() as it:
        yield it


@pytest.fixture
def place(running, request):
    return address(request.node.name.partition("[")[0])


@pytest.fixture
def bucket(place):
    return Bucket(place)


def test_objects_are_written_under_a_condition(bucket):
    assert bucket.read("a/b") is None and bucket.stat("a/b") is None and bucket.list() == {}
    first = bucket.write("a/b", b"one", generation=ABSENT)
    for generation in (ABSENT, first.generation + 1):
        with pytest.raises(ChangedError):
            bucket.write("a/b", b"two", generation=generation)
    assert bucket.read("a/b") == b"one" and bucket.stat("a/b") == first
    second = bucket.write("a/b", b"two", generation=first.generation)
    assert second.generation != first.generation and second.updated >= first.updated and second.size == 3
    bucket.write("c", b"")
    bucket.copy("a/b", "a/copy")
    assert list(bucket.list()) == ["a/b", "a/copy", "c"] and list(bucket.list("a/")) == ["a/b", "a/copy"]
    assert bucket.within("a").read("copy") == b"two" and bucket.read("c") == b""
    bucket.delete("a/b")
    bucket.delete("a/b")
    assert list(bucket.list("a/")) == ["a/copy"]


def test_a_bucket_that_does_not_exist(running):
    for call in (
        lambda it: it.list(),
        lambda it: it.write("x", b""),
        lambda it: Workdir.at(it.address).write(CONFIG, "{}"),
    ):
        with pytest.raises(BucketError, match=r"^gs://nowhere does not exist: create the bucket, or use another$"):
            call(Bucket("gs://nowhere/run"))


class Stub(ThreadingHTTPServer):
    """Answers every request with one status."""

    def __init__(self, status, message):
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.server.asked += 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = json.dumps({"error": {"code": status, "message": message}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def answering(monkeypatch):
    pytest.importorskip("gcsfs")
    stubs = []

    def start(status, message):
        stubs.append(stub := Stub(status, message))
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{stub.server_port}")
        module._client.cache_clear()
        return stub

    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.1))
    monkeypatch.setattr(Bucket, "_given_up", set())
    yield start
    for stub in stubs:
        stub.shutdown()
    module._client.cache_clear()


@pytest.mark.parametrize(
    ("status", "message", "line"),
    [
        (
            403,
            "x does not have storage.objects.create access",
            r"access is denied \(x does not have .*\); what it holds is",
        ),
        (401, "Anonymous caller", r"access is denied \(.*\)"),
        (400, "Invalid argument", r"the store refuses a request \(Invalid argument\)"),
    ],
)
def test_a_store_that_refuses_is_not_asked_for_minutes(answering, status, message, line):
    stub = answering(status, message)
    with pytest.raises(BucketError, match=rf"^gs://some/run: {line}") as caught:
        Bucket("gs://some/run").write("x", b"content")
    assert stub.asked <= 2 and caught.value.exit_status == 2


def test_a_busy_store_is_asked_again_then_given_up(answering):
    stub = answering(429, "quota")
    with pytest.raises(
        UnreachableError, match=r"^gs://some/run does not answer \(quota\); .* rerun the command"
    ) as caught:
        Bucket("gs://some/run").write("x", b"content")
    assert stub.asked > 3 and caught.value.exit_status == 75
    asked = stub.asked
    with pytest.raises(UnreachableError):
        Bucket("gs://some/other").read("y")
    assert stub.asked == asked + 1


def test_a_server_that_comes_back(running, bucket, monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.1))
    bucket.write("x", b"kept")
    running.kill()
    timer = threading.Timer(0.5, running.start)
    timer.start()
    assert bucket.read("x") == b"kept"
    timer.join()
    with pytest.raises(ChangedError):
        bucket.write("x", b"other", generation=ABSENT)


# --- The lock -------------------------------------------------------------------------------------------------------------------


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
    ended, said = {**ended_process(), "lease_seconds": 0.4}, []
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
        assert time.monotonic() - began > 0.3 and bucket.stat(LOCK).size > 0
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


def taken_over(workdir):
    """Another run takes the lock, as after the end of the lease."""
    Bucket(str(workdir)).write(LOCK, json.dumps({"host": "b", "pid": 7, "token": "other"}).encode())


def test_a_run_that_lost_its_lock_writes_nothing(place):
    workdir = Workdir.at(place)
    with workdir.locked(print):
        workdir.write(CONFIG, "{}")
        places = workdir.checkpoints
        places.begin(3)
        rows = workdir.growing(METRICS)
        rows.begin("")
        rows.append('{"step": 1}')
        taken_over(workdir)
        before = Bucket(place).list()
        line = rf"^--workdir={place} was taken over by another run \(process 7 on b\), .* writes nothing more$"
        for write in (
            lambda: places.seal(3, {}),
            lambda: places.begin(4),
            lambda: places.discard(3),
            lambda: workdir.write(CONFIG, "[]"),
            workdir.upload,
            lambda: rows.append('{"step": 2}'),
        ):
            with pytest.raises(LostLockError, match=line):
                write()
        places.abandon(3)
    assert Bucket(place).list() == before


def test_an_upload_after_a_long_stop_does_not_replace_what_another_run_wrote(place, monkeypatch):
    workdir, other = Workdir.at(place), Workdir.at(place)
    with workdir.locked(print):
        rows = workdir.growing(METRICS)
        rows.begin("old\n")
        workdir.upload()
        # The process is stopped after it has checked the lock: its thread renews nothing, and a check asks nothing.
        monkeypatch.setattr(workdir._lease, "_renew_seconds", 1e9)
        monkeypatch.setattr(workdir._lease, "_renewed", float("inf"))
        taken_over(workdir)
        other.write(METRICS, "new\n")
        rows.append("late")
        with pytest.raises(LostLockError):
            workdir.upload()
    assert other.read(METRICS) == "new\n"


# --- Files and checkpoints ------------------------------------------------------------------------------------------------------


def test_files_that_grow_are_uploaded_whole(place):
    workdir = Workdir.at(place)
    assert not workdir.is_there() and not workdir.has(CONFIG) and workdir.read_json(CONFIG) is None
    with workdir.locked(print):
        workdir.write_json(CONFIG, {"a": float("nan")})
        workdir.write_json(CONFIG, {"a": 1})
        rows = workdir.growing(METRICS)
        rows.begin("1\n")
        rows.append("2")
        events = workdir.folder(TENSORBOARD)
        events.mkdir()
        (events / "events.1").write_bytes(b"a")
        assert workdir.read(METRICS) == "1\n2\n" and not Workdir.at(place).has(METRICS)
        workdir.upload()
        uploaded = Bucket(place).list()
        workdir.upload()
        assert Bucket(place).list() == uploaded  # what has not changed is not uploaded
        rows.append("3")
        workdir.upload()
    there = Workdir.at(place)
    assert there.is_there() and there.read_json(CONFIG) == {"a": 1} and there.read(METRICS) == "1\n2\n3\n"
    with there.locked(print):  # on another machine
        assert (there.folder(TENSORBOARD) / "events.1").read_bytes() == b"a"
        with pytest.raises(
            WorkdirError, match=rf"^--workdir={place} is in use by another run \(process {os.getpid()} on "
        ):
            other = Workdir.at(place)
            other._lease = Lease(Bucket(place), LOCK)
            there._lease._renew()
            threading.Timer(0.3, there._lease._renew).start()
            with other.locked(print):
                pass
    assert sorted(Bucket(place).list()) == [CONFIG, METRICS, f"{TENSORBOARD}/events.1"]


def written(workdir, step, **content):
    """Begins a checkpoint; what Orbax writes."""
    workdir.checkpoints.begin(step)
    state = Bucket(workdir.checkpoints.new_state(step))
    for name, value in (content or {"weights": b"0123456789"}).items():
        state.write(f"d/{name}", value)
    return state


def test_checkpoints(place):
    workdir = Workdir.at(place)
    places = workdir.checkpoints
    assert places.steps() == [] and not places.exist() and not places.have_manifests()
    with workdir.locked(print):
        places.prepare()
        places.mark_manifests()
        assert places.exist() and places.have_manifests() and places.steps() == []
        for step in (5, 40, 300):
            state = written(workdir, step)
        assert places.steps() == [5, 40, 300] and places.is_unfinished(40) and not places.is_sealed(40)
        places.seal(40, {"top1": 1.5})
        assert places.is_sealed(40) and not places.is_unfinished(40) and places.facts(40) == {"top1": 1.5}
        assert Workdir.at(place).checkpoints.state(40) == places.new_state(40)
        places.check(40)
        places.seal(300, {})
        for name in ("1.discarded", "300/x"):
            Bucket(f"{place}/checkpoints").write(name, b"")
        places.check(300)  # an object that the manifest does not name
        state.write("d/weights", b"012345678x")
        with pytest.raises(
            DamageError, match=rf"{place}/checkpoints/300/default-\w+/d/weights is not what was written"
        ):
            places.check(300)
        state.write("d/weights", b"01")
        with pytest.raises(DamageError, match=r"/d/weights has 2 bytes and was written with 10$"):
            places.check(300)
        state.delete("d/weights")
        with pytest.raises(DamageError, match=r"/d/weights does not exist any more$"):
            places.check(300)
        assert places.set_aside(300) == "300.damaged" and not places.has(300) and places.has_vanished(300)
        written(workdir, 300)
        assert places.set_aside(300) == "300.damaged.damaged"
        places.abandon(5)
        assert places.steps() == [40]
        Bucket(f"{place}/checkpoints").write(f"40/{MANIFEST}", b"{}")
        with pytest.raises(DamageError, match=rf"{place}/checkpoints/40/manifest.json is damaged \(KeyError\)$"):
            places.check(40)


def test_a_process_that_is_killed_while_it_removes_a_checkpoint(place, monkeypatch):
    workdir, deleted = Workdir.at(place), []
    places, delete = workdir.checkpoints, Bucket.delete
    for left in range(6):
        with workdir.locked(print):
            written(workdir, 8, weights=b"a", more=b"b")
            places.seal(8, {})

            def killed(self, name, left=left, **condition):
                if "checkpoints" in self.address and len(deleted) == left:
                    raise KeyboardInterrupt
                if "checkpoints" in self.address:
                    deleted.append(name)
                delete(self, name, **condition)

            deleted.clear()
            with monkeypatch.context() as patch:
                patch.setattr(Bucket, "delete", killed)
                try:
                    places.discard(8)
                except KeyboardInterrupt:
                    assert places.is_unfinished(8) or (places.is_sealed(8) and left == 0)
                    assert places.has_vanished(8) or left == 0
            places.prepare()
            assert places.steps() == []


def test_what_a_stopped_run_still_writes_is_not_in_the_checkpoint_of_the_next(place):
    one, two = Workdir.at(place), Workdir.at(place)
    one._lease = one.checkpoints._lease = Lease(Bucket(place), LOCK, seconds=0.3, renew=1e9)
    with one.locked(print):
        late = written(one, 4, a=b"1", b=b"2")
        time.sleep(0.4)
        with two.locked(print):
            two.checkpoints.discard(4)
            written(two, 4, a=b"1", b=b"2")
            late.write("d/a", b"3")
            two.checkpoints.seal(4, {"top1": 2.0})
            late.write("d/b", b"4")
            with pytest.raises(LostLockError):
                one.checkpoints.seal(4, {})
            two.checkpoints.check(4)
            assert Bucket(two.checkpoints.state(4)).read("d/a") == b"1" and two.checkpoints.facts(4) == {"top1": 2.0}


class OrbaxError(Exception):
    """An error of a library by which Orbax writes."""

    __module__ = "gcsfs.retry"


def test_an_error_of_orbax_is_explained_by_the_store(place):
    places = Workdir.at(place).checkpoints
    reason = places.fault(OrbaxError("Cannot connect\nto host"))
    assert reason == "the store has failed for a while: Cannot connect to host"
    assert "UNAVAILABLE" in places.fault(RuntimeError(f'UNAVAILABLE: Error writing "{place}/checkpoints/3/d"'))
    assert places.fault(OSError(28, "No space left on device")) == "No space left on device"
    assert places.fault(ValueError("a shape that does not fit")) is None


def test_an_error_of_orbax_in_a_bucket_that_refuses_access(answering):
    answering(403, "x does not have storage.objects.list access")
    with pytest.raises(BucketError, match=r"^gs://some/run/checkpoints: access is denied \(x does not have"):
        Workdir.at("gs://some/run").checkpoints.fault(OrbaxError("403"))
