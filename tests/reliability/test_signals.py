"""After SIGTERM or Ctrl-C the run saves, reports it and exits with the documented status; rerunning the command resumes it."""

import os
import signal
import subprocess
import threading
import time

import jax
import numpy as np
import pytest

from benchmarks.chaos import CLOCK
from deit_jax.errors import Stopped
from deit_jax.reporting.run_log import read_metrics
from deit_jax.training.checkpointing import load_state
from deit_jax.training.interruption import Interruption
from deit_jax.training.loop import train
from tests.end_to_end.commands import ROOT, TINY, command, environment
from tests.tiny import STUDENT, tiny_config


def run(workdir):
    config = tiny_config(
        distillation__kind="none", teacher__weights="", model__name="deit_tiny_patch16_224", train__max_steps=50,
        evaluation__every_epochs=0, log__every_steps=3, checkpoint__every_steps=10,
    )  # fmt: skip
    with config.unlocked():
        config.model.overrides = STUDENT | {"depth": 1}
    return train(config, workdir)


def signal_when(condition, number):
    """Sends this process a signal once a condition holds."""

    def wait():
        while not condition():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def last_step(workdir):
    rows = read_metrics(workdir)
    return rows[-1]["step"] if rows else 0


def history(workdir):
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_metrics(workdir)]


@pytest.fixture
def heard():
    """Handles signals as in a terminal; under nohup they are ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_sighup_and_sigusr1_stop_the_run_and_may_be_repeated(heard, number, capfd):
    with Interruption() as interruption:
        assert not interruption.asked(1)
        os.kill(os.getpid(), number)
        assert interruption.asked(2)
        os.kill(os.getpid(), number)  # like a closed terminal; it must not end the process before it has saved
        assert interruption.asked(3)
    assert signal.getsignal(number) == signal.SIG_DFL
    assert capfd.readouterr().err.count(f"{number.name}: saving after this step") == 1


def test_signals_ignored_by_nohup_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.asked(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.long
def test_a_run_that_was_stopped_twice_ends_like_an_uninterrupted_one(heard, tmp_path, capfd):
    """Rules 2, 3 and 4 of deit_jax/training/loop.py."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    saved = []
    for number, name, after in ((signal.SIGHUP, "SIGHUP", 6), (signal.SIGINT, "Ctrl-C", 21)):
        signal_when(lambda after=after: last_step(tmp_path / "parts") >= after, number)
        with pytest.raises(Stopped, match=r"stopped after step \d+, which is saved"):
            run(tmp_path / "parts")
        state, step = load_state(tmp_path / "parts")
        assert after <= step < 50 and int(state["step"]) == step
        assert f"{name}: saving after this step" in capfd.readouterr().err
        saved.append(step)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert saved[0] < saved[1]
    run(tmp_path / "parts")
    run(tmp_path / "whole")
    (parts, step), (whole, _) = load_state(tmp_path / "parts"), load_state(tmp_path / "whole")
    assert step == 50 and jax.tree.structure(parts) == jax.tree.structure(whole)
    for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


@pytest.fixture
def as_in_a_terminal():
    """Makes Ctrl-C raise KeyboardInterrupt; in the background of a script it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_handlers_exist_only_inside_the_block_and_on_the_main_thread(as_in_a_terminal):
    with Interruption() as interruption:
        assert not interruption.asked(1)
        signal.raise_signal(signal.SIGINT)  # no KeyboardInterrupt
        assert interruption.asked(1) and interruption.asked(2)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.long
def test_the_command_exits_with_the_documented_statuses(tmp_path):
    """Rule 4 of deit_jax/training/loop.py."""
    arguments = [
        TINY,
        f"--workdir={tmp_path}/run",
        "--config.train.max_steps=3000",
        "--config.distillation.kind=labels",
    ]
    arguments += ["--config.teacher.weights=", "--config.checkpoint.every_steps=20"]

    def start():
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )  # fmt: skip

    def wait_for(step):
        while last_step(tmp_path / "run") < step:
            assert process.poll() is None
            time.sleep(0.01)

    process = start()
    wait_for(20)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 75 and "is saved; rerun the same command" in output
    first = load_state(tmp_path / "run")[1]

    process = start()
    wait_for(first + 20)
    process.send_signal(signal.SIGSTOP)  # so that both signals are pending before it runs
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, output = process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM) and "again: exiting at once" in output
    assert load_state(tmp_path / "run")[1] >= first
