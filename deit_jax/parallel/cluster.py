"""What a process's surroundings say of the others of its run: that there are some, and which GPUs of the machine are its own."""

from __future__ import annotations

import importlib.util
import os
import re
import urllib.request
from collections.abc import Mapping

# On Compute Engine no environment variable says that a TPU host is one of several; its metadata server does.
_SERVER = "metadata.google.internal"
_SECONDS = 5  # it answers at once where it is


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of several that were started together."""

    def more_than_one(name: str) -> bool:
        return environment.get(name, "").isdigit() and int(environment[name]) > 1

    def a_list(name: str) -> bool:
        value = environment.get(name, "")
        return "," in value and " " not in value  # without a TPU, libtpu leaves a sentence there

    return (
        more_than_one("SLURM_STEP_NUM_TASKS")  # set by srun only, not in the shell of an allocation
        or more_than_one("OMPI_COMM_WORLD_SIZE")
        or a_list("TPU_WORKER_HOSTNAMES")
        or a_list("TPU_PROCESS_ADDRESSES")
        or "MEGASCALE_COORDINATOR_ADDRESS" in environment
        or ("JOB_COMPLETION_INDEX" in environment and "KUBERNETES_SERVICE_HOST" in environment)
    )


def what_jax_lacks(environment: Mapping[str, str]) -> str:
    """What is missing for JAX to find the other processes of a recognised cluster; "" if nothing is."""
    if "OMPI_COMM_WORLD_SIZE" in environment and "OMPI_MCA_orte_hnp_uri" not in environment:
        return "Open MPI from version 5 on does not tell its processes where the first one is"
    by_itself = ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    by_cluster = "JOB_COMPLETION_INDEX" in environment and not any(name in environment for name in by_itself)
    if by_cluster and importlib.util.find_spec("kubernetes") is None:
        return "in a Kubernetes Job JAX asks the cluster for the other processes, which takes pip install kubernetes"
    return ""


def one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the machine belongs to a TPU slice of several hosts, or to one of several slices. To be asked on a TPU host.

    A machine without such a server is on its own. TPU_SKIP_MDS_QUERY, which libtpu and JAX heed too, forbids to ask;
    GCE_METADATA_IP is another server than Compute Engine's.
    """
    if "TPU_SKIP_MDS_QUERY" in environment:
        return False
    server = environment.get("GCE_METADATA_IP", _SERVER)
    if "," in _attribute(server, "worker-network-endpoints"):
        return True
    slices = re.search(r"^\s*MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _attribute(server, "tpu-env"), re.MULTILINE)
    return slices is not None and int(slices[1]) > 1


def _attribute(server: str, name: str) -> str:
    """An attribute of the machine; "" where there is none, or nobody to ask."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        # Not through a proxy: the server answers this machine alone.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_SECONDS) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def devices_of_process(environment: Mapping[str, str]) -> list[int] | None:
    """The numbers of the visible GPUs that this process takes; [] is all of them, None leaves it to JAX.

    By itself JAX takes the one whose number is the process's on its machine, in every case: where a machine has one process,
    all GPUs but one would idle, and a process that Slurm gave a GPU of its own would look for another. Here the visible GPUs
    are shared evenly, and those that a process has for itself are all its own.

    environment: what srun or mpirun gave the process; elsewhere, or where JAX_LOCAL_DEVICE_IDS is set, the answer is None.
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
        return []  # others see others: --gpus-per-task, --gpu-bind, or a wrapper
    share = count // processes
    return list(range(process * share, (process + 1) * share))


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" as [2, 2, 2, 1]."""
    return [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]
