"""Detects from a process's environment whether it is one of several, and which GPUs of the machine it uses."""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.request
from collections.abc import Mapping

# On Compute Engine no environment variable shows that a TPU host is one of several; the metadata server does.
_SERVER = "metadata.google.internal"
_SECONDS = 5  # where it exists, it answers at once


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment shows that this process is one of several that were started together."""

    def more_than_one(name: str) -> bool:
        return environment.get(name, "").isdigit() and int(environment[name]) > 1

    def a_list(name: str) -> bool:
        value = environment.get(name, "")
        return "," in value and " " not in value  # without a TPU, libtpu sets it to a sentence

    return (
        more_than_one("SLURM_STEP_NUM_TASKS")  # set by srun only, not in the shell of an allocation
        or more_than_one("OMPI_COMM_WORLD_SIZE")
        or a_list("TPU_WORKER_HOSTNAMES")
        or a_list("TPU_PROCESS_ADDRESSES")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or ("JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in environment)
    )


def missing_requirement(environment: Mapping[str, str]) -> str:
    """Says what JAX lacks to find the other processes of a recognised cluster; "" if nothing."""
    if "OMPI_COMM_WORLD_SIZE" in environment and "OMPI_MCA_orte_hnp_uri" not in environment:
        return "Open MPI 5 and newer do not set the address of the first process"
    by_itself = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    by_cluster = "JOB_COMPLETION_INDEX" in environment and not any(name in environment for name in by_itself)
    if by_cluster and importlib.util.find_spec("kubernetes") is None:
        return "in a Kubernetes Job JAX asks the cluster for the other processes, which needs pip install kubernetes"
    return ""


def is_multi_host(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a TPU host belongs to a slice of several hosts, or to one of several slices.

    A machine without a metadata server is on its own. TPU_SKIP_MDS_QUERY disables the query, as in libtpu and JAX;
    GCE_METADATA_IP replaces Compute Engine's server.
    """
    if "TPU_SKIP_MDS_QUERY" in environment:
        return False
    server = environment.get("GCE_METADATA_IP", _SERVER)
    if "," in _attribute(server, "worker-network-endpoints"):
        return True
    slices = re.search(r"^\s*MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _attribute(server, "tpu-env"), re.MULTILINE)
    return slices is not None and int(slices[1]) > 1


def _attribute(server: str, name: str) -> str:
    """Returns an attribute of the machine; "" if it does not exist or no server answers."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        # Not through a proxy: the server answers only this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def devices_of_process(environment: Mapping[str, str]) -> list[int] | None:
    """Returns the numbers of the visible GPUs that this process uses: [] means all of them, None leaves the choice to JAX.

    JAX always picks the GPU whose number is the process's number on its machine. So with one process per machine all GPUs but
    one are idle, and a process with a dedicated GPU from Slurm looks for a different one. This function shares the visible GPUs
    evenly, and gives a process all GPUs that only it sees. Without srun's or mpirun's variables in `environment`, or if
    JAX_LOCAL_DEVICE_IDS is set, the result is None.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if "SLURM_STEP_TASKS_PER_NODE" in environment and "SLURM_LOCALID" in environment:
        node = int(environment.get("SLURM_NODEID", "0"))
        processes = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
        process = int(environment["SLURM_LOCALID"])
    elif "OMPI_COMM_WORLD_LOCAL_SIZE" in environment:
        processes = int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
        process = int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])
    else:
        return None
    if processes == 1:
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    count = len([device for device in visible.split(",") if device])
    on_machine = environment.get("SLURM_GPUS_ON_NODE", "")
    if count < processes or (on_machine.isdigit() and count < int(on_machine)):
        return []  # the processes see different GPUs: --gpus-per-task, --gpu-bind, or a wrapper
    share = count // processes
    return list(range(process * share, (process + 1) * share))


def _tasks_per_node(text: str) -> list[int]:
    """Parses Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    return [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
