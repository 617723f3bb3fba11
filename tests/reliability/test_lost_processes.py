"""A run that loses one of its processes, or a process that reads images."""

import os
import signal
import subprocess
import time

import pytest

from deit_jax.data.loading import train_batches
from deit_jax.data.registry import open_source, train_crop
from deit_jax.data.sources import DataError
from deit_jax.training.checkpointing import load_state
from deit_jax.training.plan import resolve
from tests.end_to_end.commands import ROOT, TINY, command, environment, free_port, run_processes
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"a loader process has ended \(exit code -9;"),
        (signal.SIGBUS, r"exit code -7: shared memory is full; .* free in /dev/shm\): .*--shm-size"),
    ],
)
def test_a_reading_process_that_is_killed_is_reported(number, words):
    config = tiny_config()
    source = open_source(config.data, "train")
    plan = resolve(config, num_images=len(source), data_classes=10)
    crop = train_crop(config.data, plan.image_size)
    options = {"start_step": 0, "stop_step": 10_000, "num_workers": 1, "num_threads": 1}
    batches = train_batches(source, plan.order, crop, **options)
    next(batches)
    children = subprocess.run(["pgrep", "-a", "-P", str(os.getpid())], capture_output=True, text=True).stdout
    workers = [int(line.split()[0]) for line in children.splitlines() if "spawn_main" in line]
    assert workers
    os.kill(workers[0], number)
    with pytest.raises(DataError, match=words):
        for _ in batches:
            pass


def start_two(workdir, steps=100_000):
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--config.parallel.heartbeat_seconds=10"]
    flags += ["--config.distillation.kind=labels", "--config.teacher.weights=", f"--config.train.max_steps={steps}"]
    flags += ["--config.checkpoint.every_steps=3"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            command(TINY, f"--workdir={workdir}", *flags, f"--process_id={number}"),
            cwd=ROOT,
            env=environment(),
            **pipes,
        )
        for number in range(2)
    ]


def wait_for_checkpoint(workdir, processes):
    while not list((workdir / "checkpoints").glob("[0-9]*/manifest.json")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_stop_when_one_is_killed(tmp_path, victim):
    processes = start_two(tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[victim].send_signal(signal.SIGKILL)
    _, output = processes[1 - victim].communicate(timeout=120)  # the bound: a heartbeat of 10 s and a busy machine
    processes[victim].communicate()
    if processes[1 - victim].returncode != -signal.SIGABRT or victim != 0:
        assert processes[1 - victim].returncode == 75, output[-2000:]
        assert "error: another process of this run has ended" in output
    # Otherwise JAX noticed first that process 0, its coordinator, is gone, and aborted: 134 in a shell, to be rerun like 75.
    assert load_state(tmp_path / "run")[1] >= 3


@pytest.mark.long
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    """Rules 4 and 8 of deit_jax/training/loop.py."""
    processes = start_two(tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[1].send_signal(signal.SIGTERM)
    output = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75]
    step = load_state(tmp_path / "run")[1]
    assert all(f"stopped after step {step}, which is saved" in text for text in output)


@pytest.mark.long
def test_a_workdir_in_use_is_refused_by_all_processes(tmp_path):
    from deit_jax.training.lock import hold

    with hold(tmp_path / "run"):
        all_done = run_processes([(TINY, f"--workdir={tmp_path / 'run'}")] * 2)
    assert [done.returncode for done in all_done] == [2, 2]
    assert all("is in use by another run" in done.stderr for done in all_done)
