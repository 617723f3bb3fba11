"""A server on loopback stands for Compute Engine's, and answers in its forms."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deit_jax.parallel.tpu_hosts import one_of_several


@pytest.fixture
def metadata():
    """The attributes that the server answers, and the environment that leads to it."""
    attributes = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            known = self.headers["Metadata-Flavor"] == "Google" and name in attributes
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield attributes, {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"}, True),
        ({"worker-network-endpoints": "t1v-n-1-w-0,t1v-n-1-w-1"}, True),
        ({"worker-network-endpoints": "unknown:unknown:10.0.0.1", "tpu-env": "TYPE: 'V5LITE_POD'\n"}, False),
        ({"worker-network-endpoints": "t-0", "tpu-env": "TYPE: 'V4'\nMEGASCALE_NUM_SLICES: '2'\n"}, True),
        ({"worker-network-endpoints": "t-0", "tpu-env": "MEGASCALE_NUM_SLICES: '1'\n"}, False),
        ({}, False),  # a virtual machine without a TPU's attributes
    ],
)
def test_the_metadata_server_tells_of_the_other_hosts(metadata, attributes, expected):
    served, environment = metadata
    served.update(attributes)
    assert one_of_several(environment) is expected
    assert not one_of_several(environment | {"TPU_SKIP_MDS_QUERY": "1"})


def test_where_no_server_answers_the_host_is_alone():
    assert not one_of_several({"GCE_METADATA_IP": "127.0.0.1:1"})
