import pytest

from deit_jax.parallel.distributed import ClusterError, in_cluster, is_main_process, start, wait_for_all


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
def test_a_cluster_is_recognised_by_its_environment(environment, expected):
    assert in_cluster(environment) is expected


def test_flags_go_together():
    with pytest.raises(ClusterError, match="give all three or none"):
        start("127.0.0.1:1", None, 0)


def test_a_process_on_its_own_is_the_main_one_and_waits_for_nobody():
    start()
    assert is_main_process()
    wait_for_all("nowhere")
