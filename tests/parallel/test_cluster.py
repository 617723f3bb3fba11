"""Environments of real Slurm 22.05 tasks, on nodes with two simulated GPUs, and of Open MPI 4.1."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deit_jax.parallel.cluster import devices_of_process, in_cluster, is_multi_host, missing_requirement


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, False),  # the shell of an allocation, before srun
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t1k-w-0,t1k-w-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "WARNING: could not determine names, please set them"}, False),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
    ],
)
def test_cluster_is_detected_from_the_environment(environment, expected):
    assert in_cluster(environment) is expected


KUBERNETES = {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34911"}, ""),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI 5 and newer"),
        (KUBERNETES, "pip install kubernetes"),
        (KUBERNETES | {"TPU_WORKER_HOSTNAMES": "a-0,a-1"}, ""),  # GKE configures TPU pods itself
        (KUBERNETES | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:34911"}, ""),
    ],
)
def test_missing_requirement(environment, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)  # as if not installed
    assert expected in missing_requirement(environment) if expected else missing_requirement(environment) == ""


@pytest.fixture
def metadata():
    """A loopback server in place of Compute Engine's: its attributes, and the environment that points to it."""
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
def test_metadata_server_shows_multiple_hosts(metadata, attributes, expected):
    served, environment = metadata
    served.update(attributes)
    assert is_multi_host(environment) is expected
    assert not is_multi_host(environment | {"TPU_SKIP_MDS_QUERY": "1"})


def test_host_without_metadata_server_is_alone():
    assert not is_multi_host({"GCE_METADATA_IP": "127.0.0.1:1"})


def slurm(tasks, number, visible, node=0, on_node=2):
    return {
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(number),
        "CUDA_VISIBLE_DEVICES": visible,
        "SLURM_GPUS_ON_NODE": str(on_node),
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (slurm("1(x2)", 0, "0,1"), []),  # srun -N2 --ntasks-per-node=1 --gpus-per-node=2: all of the node
        (slurm("2(x2)", 0, "0,1"), [0]),  # --ntasks-per-node=2 --gres=gpu:2: one each
        (slurm("2(x2)", 1, "0,1"), [1]),
        (slurm("2(x2)", 1, "1"), []),  # --ntasks-per-node=2 --gpus-per-task=1: the only one that it sees
        (slurm("2", 1, "2,3", on_node=4), []),  # --gpus-per-task=2
        (slurm("4", 1, "0,1,2,3,4,5,6,7", on_node=8), [2, 3]),  # four tasks share eight
        (slurm("2(x2),1", 0, "0,1", node=2), []),  # the node with one task fewer
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}, None),  # no GPUs
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "1"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (slurm("2", 1, "0,1") | {"JAX_LOCAL_DEVICE_IDS": "0"}, None),  # set by the user
    ],
)
def test_process_gets_its_share_of_visible_devices(environment, expected):
    assert devices_of_process(environment) == expected
