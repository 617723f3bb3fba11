"""Full and unwritable disks, and workdirs in use by another run."""

import json
import signal
import subprocess
import sys
import time

import jax
import pytest

from deit_jax.reporting.run_log import LogError, RunLog, read_metrics
from deit_jax.storage.files import UnreadableError
from deit_jax.storage.workdir import WorkdirError
from deit_jax.training.checkpoint_folder import CheckpointError
from deit_jax.training.checkpointing import Checkpoints, load_state
from deit_jax.training.lock import hold
from deit_jax.training.plan import resolve
from deit_jax.training.results import closing_table, finished_results, read_results
from tests.end_to_end.commands import ROOT, TINY, command, environment, refused, succeed
from tests.tiny import tiny_config
from tests.training.test_checkpointing import assert_equal, make_state

from .small_disk import fill, remount, small_disk


def test_a_full_disk_fails_a_save_and_keeps_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(CheckpointError) as error, Checkpoints(disk) as checkpoints:
            checkpoints.save(make_state(1))
            checkpoints.wait()
            filler = fill(disk, leave=100_000)
            checkpoints.save(make_state(2, width=100_000))  # 2.4 MB
        line = str(error.value)
        assert "checkpoints/2: the checkpoint cannot be written (No space left on device)" in line
        assert "the one of step 1 is intact" in line and "\n" not in line
        assert load_state(disk)[1] == 1
        filler.unlink()
        with Checkpoints(disk) as checkpoints:
            assert_equal(checkpoints.restore(jax.eval_shape(lambda: make_state(0))), make_state(1))
            checkpoints.save(make_state(2))
        assert load_state(disk)[1] == 2


def test_a_full_disk_that_refuses_even_the_metadata_of_orbax_is_reported_once(tmp_path):
    for left in (0, 2048):
        with (
            small_disk(tmp_path / f"disk{left}") as disk,
            pytest.raises(CheckpointError, match="the one of step 1 is intact"),
            Checkpoints(disk) as checkpoints,
        ):
            checkpoints.save(make_state(1))
            checkpoints.wait()
            fill(disk, leave=left)
            checkpoints.save(make_state(2))
            checkpoints.wait()  # the error leaves the block, and closing meets a second one


def test_on_a_full_disk_the_log_ends_with_a_complete_row(tmp_path):
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        with (
            pytest.raises(LogError, match=r"metrics cannot be written \(No space left on device\)"),
            RunLog(tiny_config(log__tensorboard=True), disk) as log,
        ):
            log.begin(0)
            filler = fill(disk, leave=8192)
            for step in range(1, 100_000):
                log.write(step, {f"train/{number}": float(step) for number in range(30)})
        filler.unlink()
        rows = read_metrics(disk)
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        with RunLog(tiny_config(), disk) as log:
            log.begin(2)
            log.write(3, {"train/loss": 1.0})
        assert [row["step"] for row in read_metrics(disk)] == [1, 2, 3]


def test_an_unwritable_disk_is_reported(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        with Checkpoints(disk) as checkpoints:
            checkpoints.save(make_state(1))
            checkpoints.wait()
            remount(disk, "ro")
            with pytest.raises(CheckpointError, match=r"\(Read-only file system\); the one of step 1 is intact"):
                checkpoints.save(make_state(2))
                checkpoints.wait()
        with pytest.raises(WorkdirError, match=r"cannot be written \(Read-only file system\)"), hold(disk / "run"):
            pass
        with pytest.raises(LogError, match="Read-only file system"):
            RunLog(tiny_config(), disk).begin(0)
        assert load_state(disk)[1] == 1  # reading still works


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    with hold(tmp_path / "run"):
        with (
            pytest.raises(WorkdirError, match=r"is in use by another run \(process \d+ on .+\)"),
            hold(tmp_path / "run"),
        ):
            pass
        with hold(tmp_path / "other"):
            pass
    with hold(tmp_path / "run"):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from deit_jax.training.lock import hold\n"
        "with hold(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(100)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkdirError, match=rf"process {holder.pid} on"), hold(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path):
        pass


RESULTS = {"step": 4, "eval_images": 9, "teacher": None, "scores": {"raw": {"class": {"top1": 1.0, "top5": 2.0}}}}


@pytest.mark.parametrize(
    "content",
    ['{"step": 4, "sco', "5", "[1]", "{}", '{"step": 4}', *(json.dumps(RESULTS | {name: "x"}) for name in RESULTS)],
)
def test_damaged_results_are_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UnreadableError, match=r"/results\.json is damaged"):
        read_results(tmp_path)


def test_results_of_a_finished_run(tmp_path):
    plan = resolve(tiny_config(), num_images=10_000, data_classes=10)
    assert finished_results(tmp_path, plan) is None
    for results, expected in ((RESULTS, RESULTS), (RESULTS | {"step": 3}, None)):
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert finished_results(tmp_path, plan) == expected
    closing_table(tiny_config(), RESULTS)  # needs no more


@pytest.mark.long
def test_a_run_ends_with_one_line_on_a_full_disk_and_resumes_later(tmp_path):
    """Rules 2 and 4 of deit_jax/training/loop.py."""
    arguments = [
        TINY,
        "--config.distillation.kind=labels",
        "--config.teacher.weights=",
        "--config.checkpoint.every_steps=3",
    ]
    arguments += ["--config.train.max_steps=400"]
    with small_disk(tmp_path / "disk", megabytes=20) as disk:
        arguments += [f"--workdir={disk}/run"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), **pipes)
        while not list((disk / "run").glob("checkpoints/[0-9]*/manifest.json")):
            assert process.poll() is None
            time.sleep(0.05)
        filler = fill(disk)
        _, output = process.communicate(timeout=300)
        assert process.returncode == 2, output
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "cannot be written (No space left on device)" in lines[0] and "intact" in lines[0]
        saved = load_state(disk / "run")[1]
        filler.unlink()
        done = succeed(*arguments, "--config.train.max_steps=400")
        assert f"resuming after step {saved}" in done.stdout and load_state(disk / "run")[1] == 400


def test_a_command_on_a_full_disk_ends_with_one_line(tmp_path):
    flags = ["--config.checkpoint.every_steps=1", "--config.evaluation.every_epochs=0", "--config.train.max_steps=99"]
    with small_disk(tmp_path / "disk", megabytes=0.74) as disk:
        line = refused(TINY + ":teacher", f"--workdir={disk}/run", *flags)  # without output of libraries
        assert "(No space left on device)" in line and "rerun the command" in line
