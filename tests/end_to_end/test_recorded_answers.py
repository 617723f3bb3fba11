"""Recorders and trainings as real processes: killed, at the same time, and several as one."""

import re
import subprocess
import time

import jax
import numpy as np
import pytest

from deit_jax.training.checkpointing import load_variables

from .commands import ROOT, TINY, command, environment, refused, run_together, succeed, train_rows

pytestmark = pytest.mark.long
LONG = ("--config.train.max_steps=1400", "--config.checkpoint.every_steps=200")  # six shards


def started(*arguments):
    return subprocess.Popen(
        command(TINY, *arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def killed_when(process, ready):
    """Kill a process as soon as `ready`; whether it still ran."""
    while process.poll() is None and not ready():
        time.sleep(0.05)
    running = process.poll() is None
    process.kill()
    process.communicate()
    return running


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def assert_same_run(one, other):
    rows = [
        [{name: value for name, value in row.items() if name.startswith(("train/", "step"))} for row in train_rows(it)]
        for it in (one, other)
    ]
    assert rows[0] == rows[1] and rows[0]
    for which in ("raw", "ema"):
        jax.tree.map(np.testing.assert_array_equal, *(load_variables(it, which)[0] for it in (one, other)))


def test_killed_recorders_and_trainings_end_with_the_bits_of_an_undisturbed_live_run(tmp_path):
    live, answers = tmp_path / "live", tmp_path / "answers"
    succeed(TINY, *LONG, f"--workdir={live}", f"--config.teacher.record={tmp_path / 'of_live'}")
    kills = 0
    for _ in range(5):
        shards = len(list(answers.glob("*.bin")))
        process = started("--mode=record", *LONG, f"--output={answers}")
        kills += killed_when(process, lambda shards=shards: len(list(answers.glob("*.bin"))) > shards)
    assert kills >= 4
    # The training runs behind the recorder, and is killed, too.
    recorder = started("--mode=record", *LONG, f"--output={answers}")
    student = (
        *LONG,
        f"--workdir={tmp_path / 'run'}",
        f"--config.teacher.answers={answers}",
        "--config.teacher.weights=",
    )
    assert killed_when(started(*student), (tmp_path / "run" / "checkpoints" / "400" / "manifest.json").exists)
    assert "resuming after step" in succeed(TINY, *student).stdout
    out, _ = recorder.communicate(timeout=300)
    assert recorder.returncode == 0, out
    assert contents(answers) == contents(tmp_path / "of_live") and len(contents(answers)) == 7
    assert_same_run(tmp_path / "run", live)


def test_two_processes_record_and_learn_as_one_does_with_two_devices(tmp_path):
    block = ["--config.augment.group_size=8"]  # one block of 32 rows, which both processes share
    student = [*block, f"--config.teacher.answers={tmp_path / 'two'}", "--config.teacher.weights="]
    run_together(tmp_path / "live", *block, f"--config.teacher.record={tmp_path / 'of_live'}", processes=2)
    printed = run_together(None, "--mode=record", *block, f"--output={tmp_path / 'two'}", processes=2)
    succeed(TINY, "--mode=record", *block, f"--output={tmp_path / 'one'}", devices=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "of_live") == contents(tmp_path / "one")
    assert re.search(r"the answers to 4 steps are in", printed[0]) and "steps" not in printed[1]
    run_together(tmp_path / "run", *student, processes=2)
    assert_same_run(tmp_path / "run", tmp_path / "live")


def test_faults_are_one_line(tmp_path):
    answers = tmp_path / "answers"
    succeed(TINY, "--mode=record", f"--output={answers}")
    student = (TINY, f"--workdir={tmp_path / 'run'}", f"--config.teacher.answers={answers}")
    assert "augment.mixup_alpha: the answers have 0.8, this run 0.5" in refused(
        *student, "--config.augment.mixup_alpha=0.5"
    )
    assert "seed: the answers have 0, this run 1" in refused(
        TINY, "--mode=record", f"--output={answers}", "--config.seed=1"
    )
    shard = answers / "shard-000000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3] + b"xyz")
    assert "shard-000000.bin is damaged" in refused(*student)
    shard.unlink()
    assert "do not come" in refused(*student, "--config.teacher.answers_timeout=1")
    shard.write_bytes(whole)
    assert "resuming" not in succeed(*student).stdout
