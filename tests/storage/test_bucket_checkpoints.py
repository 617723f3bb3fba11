"""Checkpoints in a bucket, by servers on loopback."""

import json
import tempfile
import time
from pathlib import Path

import pytest

from deit_jax.storage.bucket import Bucket
from deit_jax.storage.checkpoints import MANIFEST, DamageError, manifest_text
from deit_jax.storage.lease import Lease, LostLockError
from deit_jax.storage.store import BucketError, checksum
from deit_jax.storage.workdir import LOCK, Workdir


def written(workdir, step, **content):
    """Begins a checkpoint, and writes what Orbax would write; returns where it is in the bucket once it is sealed."""
    places = workdir.checkpoints
    places.begin(step)
    state = places.new_state(step)
    for name, value in (content or {"weights": b"0123456789"}).items():
        if isinstance(state, Path):
            (state / "d").mkdir(parents=True, exist_ok=True)
            (state / "d" / name).write_bytes(value)
        else:
            Bucket(state).write(f"d/{name}", value)
    return Bucket(f"{places.address(step)}/default-{places._lease.holder()}")


def read(places, step, name):
    with places.state(step) as state:
        return (state / name).read_bytes() if isinstance(state, Path) else Bucket(state).read(name)


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
        assert read(Workdir.at(place).checkpoints, 40, "d/weights") == b"0123456789"
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
            assert read(two.checkpoints, 4, "d/a") == b"1" and two.checkpoints.facts(4) == {"top1": 2.0}


class OrbaxError(Exception):
    """An error of a library by which Orbax writes."""

    __module__ = "gcsfs.retry"


def test_an_error_of_orbax_is_explained_by_the_store(place):
    places = Workdir.at(place).checkpoints
    assert places.fault(ValueError("a shape that does not fit")) is None
    disk = places.fault(OSError(28, "No space left on device"))
    if place.startswith("s3:"):
        assert disk == f"No space left on device in the temporary folder {tempfile.gettempdir()}"
        assert places.fault(BucketError(f"{place}: access is denied (Permission denied)")) is None
        return
    assert disk == "No space left on device"
    reason = places.fault(OrbaxError("Cannot connect\nto host"))
    assert reason == "the store has failed for a while: Cannot connect to host"
    assert "UNAVAILABLE" in places.fault(RuntimeError(f'UNAVAILABLE: Error writing "{place}/checkpoints/3/d"'))


# --- What differs between the stores --------------------------------------------------------------------------------------------


def manifest(place, step):
    return json.loads(Bucket(f"{place}/checkpoints").read(f"{step}/{MANIFEST}"))["content"]["files"]


def rewrite(place, step, change):
    """Replaces what the manifest says about each file."""
    bucket = Bucket(f"{place}/checkpoints")
    content = json.loads(bucket.read(f"{step}/{MANIFEST}"))["content"]
    for facts in content["files"].values():
        change(facts)
    bucket.write(f"{step}/{MANIFEST}", manifest_text(content).encode())


def test_a_manifest_says_what_is_known_of_each_file(place):
    workdir = Workdir.at(place)
    with workdir.locked(print):
        written(workdir, 1)
        workdir.checkpoints.seal(1, {})
    (facts,) = manifest(place, 1).values()
    kinds = {"gs": {"crc32c", "md5"}, "s3": {"sha256"}}[place[:2]]
    assert facts.keys() == {"bytes", *kinds} and facts["bytes"] == 10
    algorithm = next(kind for kind in ("sha256", "md5") if kind in kinds)
    assert facts[algorithm] == checksum(algorithm, b"0123456789")


def test_without_a_common_checksum_the_content_is_read(place):
    workdir = Workdir.at(place)
    places = workdir.checkpoints
    other = {"gs": "sha256", "s3": "md5"}[place[:2]]  # as of a run that was copied from the other store
    with workdir.locked(print):
        state = written(workdir, 1)
        places.seal(1, {})

        def of_another_store(facts):
            facts.clear()
            facts.update({"bytes": 10, other: checksum(other, b"0123456789")})

        rewrite(place, 1, of_another_store)
        places.check(1)
        state.write("d/weights", b"012345678x")
        with pytest.raises(DamageError, match=r"/d/weights is not what was written \(its checksum differs\)$"):
            places.check(1)
        rewrite(place, 1, lambda facts: facts.pop(other))
        with pytest.raises(
            DamageError, match=r"cannot be compared with what was written \(the manifest has no checksum"
        ):
            places.check(1)


def test_a_checkpoint_of_a_folder_is_refused_in_a_bucket(place):
    Bucket(f"{place}/checkpoints").write(f"3/{MANIFEST}", manifest_text({"step": 3, "files": {}}).encode())
    with pytest.raises(
        BucketError, match=r"/checkpoints/3/manifest.json was written by a run in a folder, which cannot"
    ):
        Workdir.at(place).checkpoints.check(3)


@pytest.fixture
def in_s3(running, place):
    if running.scheme == "gs":
        pytest.skip("Orbax writes to gs:// by itself")
    return Workdir.at(place)


def test_the_local_copies_of_a_state_are_removed(in_s3, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = in_s3.checkpoints
    with in_s3.locked(print):
        for step in (1, 2):
            written(in_s3, step)
        assert list(tmp_path.rglob("weights"))
        places.seal(1, {})
        places.abandon(2)
        assert not list(tmp_path.rglob("weights")) and places.steps() == [1]
        with places.state(1) as state:
            assert (state / "d/weights").is_relative_to(tmp_path)
        assert not list(tmp_path.rglob("weights"))


def test_a_download_that_differs_from_the_manifest_is_refused(in_s3):
    with in_s3.locked(print):
        state = written(in_s3, 1)
        in_s3.checkpoints.seal(1, {})
        state.write("d/weights", b"012345678x")
        with pytest.raises(DamageError, match=r"/d/weights is not what was written"), in_s3.checkpoints.state(1):
            pass
        state.delete("d/weights")
        with pytest.raises(DamageError, match=r"/d/weights does not exist any more$"), in_s3.checkpoints.state(1):
            pass


def test_a_disk_without_room_for_a_download(in_s3, monkeypatch):
    with in_s3.locked(print):
        written(in_s3, 1)
        in_s3.checkpoints.seal(1, {})

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "mkdir", full)
        line = r"/d/weights cannot be copied to /.* \(No space left on device\): make room, or set TMPDIR$"
        with pytest.raises(BucketError, match=line), in_s3.checkpoints.state(1):
            pass


def test_a_name_outside_of_the_checkpoint_is_not_written(in_s3, place, tmp_path):
    files = {f"default-a/../..{tmp_path}/x": {"bytes": 1, "sha256": checksum("sha256", b"1")}}
    text = manifest_text({"state": "default-a", "files": files})
    Bucket(f"{place}/checkpoints").write(f"1/{MANIFEST}", text.encode())
    with pytest.raises(DamageError, match=r"is not a name in a checkpoint$"), in_s3.checkpoints.state(1):
        pass
    assert not list(tmp_path.iterdir())


def test_several_processes_cannot_write_to_s3(place):
    places = Workdir.at(place).checkpoints
    places.check_writers(1)
    if place.startswith("gs:"):
        places.check_writers(2)
        return
    with pytest.raises(
        BucketError, match=rf"^--workdir={place} cannot be used by a run of 2 processes, .* use a gs:// "
    ):
        places.check_writers(2)
