"""Files of a workdir in a bucket, by servers on loopback."""

import os
import threading

import pytest

from deit_jax.storage.bucket import Bucket
from deit_jax.storage.lease import Lease, LostLockError
from deit_jax.storage.workdir import CONFIG, LOCK, METRICS, TENSORBOARD, Workdir, WorkdirError
from deit_jax.training.lock import _is_held


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
        assert (there.folder(TENSORBOARD) / "events.1").read_bytes() == b""  # only the names are needed
        there.upload()
        assert Bucket(place).read(f"{TENSORBOARD}/events.1") == b"a"
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


def test_a_renewed_lock_has_the_same_holder(place):
    """As the other processes of a run see it."""
    workdir, other = Workdir.at(place), Workdir.at(place)
    assert other.holder() == ""
    with workdir.locked(print):
        holder, text = workdir.holder(), other.read(LOCK)
        workdir._lease._renew()
        assert other.read(LOCK) != text and _is_held(other, holder) and holder


def test_a_run_that_lost_its_lock_writes_nothing(place, taken_over):
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
        if place.startswith("s3:"):  # what Orbax has written, and has not been uploaded
            places.new_state(3).mkdir()
            (places.new_state(3) / "weights").write_bytes(b"1")
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


def test_an_upload_after_a_long_stop_does_not_replace_what_another_run_wrote(place, taken_over, monkeypatch):
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
