"""Checkpoints that Orbax writes to a folder and a thread uploads to S3, by moto's server on loopback."""

import tempfile
import threading

import jax
import numpy as np
import pytest

from deit_jax.storage import amazon_store
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.checkpoints import MANIFEST
from deit_jax.storage.lease import LostLockError
from deit_jax.storage.store import BucketError
from deit_jax.storage.workdir import LOCK, Workdir
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import Checkpoints, load_state
from tests.bucket_server import address, server
from tests.training.test_checkpointing import assert_equal, make_state


@pytest.fixture(scope="module")
def running():
    with server("s3") as it:
        yield it


@pytest.fixture
def workdir(running, request, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = Workdir.at(address(request.node.name.partition("[")[0], "s3"))
    with workdir.locked(print):
        yield workdir


def test_a_state_is_saved_restored_and_read(workdir, tmp_path):
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), top1=float(step))
        assert_equal(checkpoints.restore(jax.eval_shape(lambda: make_state(0))), make_state(3))
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 3 and checkpoints.best() == (3, 3.0)
        with pytest.raises(CheckpointError, match=r"/3 does not hold this configuration's state .*\[2, 5\] here"):
            checkpoints.restore(jax.eval_shape(lambda: make_state(0, width=5)))
    state, step = load_state(str(workdir), "2")
    np.testing.assert_array_equal(state["params"]["head"]["kernel"], make_state(2).params["head"]["kernel"])
    assert step == 2 and workdir.checkpoints.steps() == [2, 3]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # copies of states


def test_training_does_not_wait_for_the_upload(workdir, monkeypatch):
    allowed, upload = threading.Event(), amazon_store.AmazonStore.upload

    def slow(self, key, path):
        assert allowed.wait(60)
        return upload(self, key, path)

    monkeypatch.setattr(amazon_store.AmazonStore, "upload", slow)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(make_state(1))
        assert not workdir.checkpoints.is_sealed(1) and workdir.checkpoints.is_unfinished(1)
        allowed.set()
        checkpoints.wait()
        assert workdir.checkpoints.is_sealed(1)


def refused(self, key, path):
    import botocore.exceptions

    answer = {
        "Error": {"Code": "AccessDenied", "Message": "no s3:PutObject"},
        "ResponseMetadata": {"HTTPStatusCode": 403},
    }
    raise botocore.exceptions.ClientError(answer, "PutObject")


def test_an_upload_that_is_refused_leaves_the_checkpoint_before(workdir, monkeypatch):
    with (
        pytest.raises(
            BucketError, match=r"/checkpoints: access is denied \(no s3:PutObject\); what it holds is intact$"
        ),
        Checkpoints(workdir) as checkpoints,
    ):
        checkpoints.save(make_state(1))
        checkpoints.wait()
        monkeypatch.setattr(amazon_store.AmazonStore, "upload", refused)
        checkpoints.save(make_state(2))
        checkpoints.wait()
    monkeypatch.undo()
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert_equal(checkpoints.restore(jax.eval_shape(lambda: make_state(0))), make_state(1))


def test_a_file_that_s3_does_not_take(workdir, monkeypatch):
    monkeypatch.setattr(amazon_store, "_LARGEST", 10)
    with (
        pytest.raises(BucketError, match=r"^s3://.* bytes, and S3 takes 10 at most in one request: use a gs:// bucket"),
        Checkpoints(workdir) as checkpoints,
    ):
        checkpoints.save(make_state(1))
        checkpoints.wait()


def test_a_lock_that_is_lost_during_the_upload(workdir, monkeypatch):
    upload = amazon_store.AmazonStore.upload

    def late(self, key, path):
        Bucket(str(workdir)).write(LOCK, b"{}")  # another run's
        return upload(self, key, path)

    monkeypatch.setattr(amazon_store.AmazonStore, "upload", late)
    with pytest.raises(LostLockError, match="was taken over by another run"), Checkpoints(workdir) as checkpoints:
        checkpoints.save(make_state(1))
        checkpoints.wait()
    assert f"checkpoints/1/{MANIFEST}" not in Bucket(str(workdir)).list()
