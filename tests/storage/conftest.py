"""A bucket of each store, by a server on loopback; tests/reliability/test_bucket_runs.py trains in one."""

import json

import pytest

from deit_jax.storage.bucket import Bucket
from tests.bucket_server import address, server


@pytest.fixture(scope="module", params=["gs", "s3"])
def running(request):
    with server(request.param) as it:
        yield it


@pytest.fixture
def place(running, request):
    return address(request.node.name.partition("[")[0], running.scheme)


@pytest.fixture
def bucket(place):
    return Bucket(place)


@pytest.fixture
def taken_over():
    """Another run takes the lock of a workdir, as after the end of the lease."""

    def take(workdir):
        Bucket(str(workdir)).write("lock", json.dumps({"host": "b", "pid": 7, "token": "other"}).encode())

    return take
