"""launch/, as far as it can be tested without clusters."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from deit_jax.reporting.run_log import read_metrics
from tests.end_to_end.commands import ROOT, TINY, environment, free_port


def start(script, *arguments, **settings):
    return subprocess.Popen(
        ["bash", str(ROOT / "launch" / script), *map(str, arguments)],
        cwd=ROOT, env=environment() | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """Substitutes for Slurm: `srun` exits with STATUS, and `scontrol` records its arguments."""
    for name, body in (("srun", "exit $STATUS"), ("scontrol", f'echo "$@" >>{tmp_path}/calls'), ("sleep", ":")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(status, restarts):
        process = start(
            "slurm.sh", "--workdir=x", PATH=f"{tmp_path}:{os.environ['PATH']}", STATUS=str(status), SLURM_JOB_ID="7",
            SLURM_RESTART_COUNT=str(restarts), MOST_RESTARTS="3",
        )  # fmt: skip
        printed, _ = process.communicate(timeout=60)
        calls = tmp_path / "calls"
        requeued = calls.read_text() if calls.exists() else ""
        calls.unlink(missing_ok=True)
        return process.returncode, requeued, printed

    return run


@pytest.mark.parametrize("status", [75, 134, 137, 143])
def test_slurm_requeues_runs_that_can_resume(slurm, status):
    assert slurm(status, restarts=2)[:2] == (status, "requeue 7\n")
    code, requeued, printed = slurm(status, restarts=3)
    assert (code, requeued) == (status, "") and "after 3 restarts: not requeued" in printed


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_slurm_does_not_requeue_finished_or_failed_runs(slurm, status):
    assert slurm(status, restarts=0) == (status, "", "")


def test_the_gpus_of_a_machine_are_split_evenly_or_refused():
    process = start("local_processes.sh", 3, "--workdir=x", GPUS="8")
    assert "8 GPUs cannot be shared evenly by 3 processes" in process.communicate(timeout=60)[0]
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [("0 0", 0), ("0 75", 75), ("2 75", 2), ("134 2", 2), ("75 134", 75), ("137 75", 75), ("3 2", 3), ("0 134", 134)],
)
def test_the_exit_status_of_several_processes_is_the_decisive_one(tmp_path, statuses, expected):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nread -ra statuses <<<"$STATUSES"\nexit "${statuses[${!#/--process_id=/}]}"\n')
    python.chmod(0o755)
    process = start("local_processes.sh", 2, "--workdir=x", PYTHON=str(python), STATUSES=statuses, GPUS="0")
    process.communicate(timeout=60)
    assert process.returncode == expected


def test_tpu_hosts_use_the_open_port(tmp_path):
    (tmp_path / "gcloud").write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    (tmp_path / "gcloud").chmod(0o755)
    settings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "deit", "ZONE": "a"}
    process = start("tpu_vm.sh", "run", "--workdir=a folder", **settings)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--worker=all" in printed
    assert re.search(r"&& export JAX_COORDINATOR_PORT=8476 &&\s+exec \S+python run\.py --workdir=a\\ folder$", printed)


@pytest.mark.long
def test_processes_of_one_machine_start_stop_and_resume(tmp_path):
    arguments = [2, TINY, f"--workdir={tmp_path}", "--config.evaluation.every_epochs=0"]
    arguments += ["--config.distillation.kind=labels", "--config.teacher.weights="]
    settings = {"PYTHON": sys.executable, "PORT": str(free_port()), "GPUS": "0"}
    process = start("local_processes.sh", *arguments, "--config.train.max_steps=100000", **settings)
    deadline = time.monotonic() + 600
    while len(read_metrics(tmp_path)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 75, printed[-3000:]
    step = int(re.findall(r"stopped after step (\d+), which is saved", printed)[0])
    process = start("local_processes.sh", *arguments, f"--config.train.max_steps={step + 2}", **settings)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and f"resuming after step {step}" in printed, printed[-3000:]
