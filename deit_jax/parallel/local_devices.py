"""Which GPUs of its machine a process takes, where Slurm or Open MPI started several processes."""

from __future__ import annotations

import re
from collections.abc import Mapping


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
