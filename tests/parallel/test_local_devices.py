"""Environments as Slurm 22.05 gave them to real tasks, on nodes with two pretended GPUs, and as Open MPI 4.1 gives them."""

import pytest

from deit_jax.parallel.local_devices import devices_of_process


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
        (slurm("2(x2)", 1, "1"), []),  # --ntasks-per-node=2 --gpus-per-task=1: its own, which is the first that it sees
        (slurm("2", 1, "2,3", on_node=4), []),  # --gpus-per-task=2
        (slurm("4", 1, "0,1,2,3,4,5,6,7", on_node=8), [2, 3]),  # four tasks share eight
        (slurm("2(x2),1", 0, "0,1", node=2), []),  # the node with a task less
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}, None),  # no GPUs
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "1"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        (slurm("2", 1, "0,1") | {"JAX_LOCAL_DEVICE_IDS": "0"}, None),  # the user has said it
    ],
)
def test_a_process_takes_its_share_of_the_visible_devices(environment, expected):
    assert devices_of_process(environment) == expected
