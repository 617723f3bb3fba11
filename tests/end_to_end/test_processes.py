"""Runs with several real processes on this machine."""

import re
import time

import jax
import numpy as np
import pytest
from PIL import Image

from deit_jax.training.checkpointing import load_variables

from .commands import (
    SHORT,
    TINY,
    forked_together,
    free_port,
    refused,
    run_here,
    run_processes,
    run_together,
    succeed,
    train_rows,
)


def assert_same_run(one, other):
    losses = [
        [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in train_rows(it)] for it in (one, other)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    for which in ("raw", "ema"):
        (found, _), (expected, _) = (load_variables(it, which) for it in (one, other))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            # Where a gradient is near 0, Adam amplifies differences in the order of sums.
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.long
def test_four_processes_of_two_devices_share_one_copy_of_the_parameters(tmp_path):
    split = ["--config.parallel.fsdp=4", "--config.parallel.fsdp_min_size=0", "--config.augment.group_size=2"]
    run_together(tmp_path / "four", *split, processes=4, devices=2)
    succeed(TINY, f"--workdir={tmp_path / 'one'}", *split, devices=8)
    assert_same_run(tmp_path / "four", tmp_path / "one")
    # What they saved, one process goes on with.
    done = succeed(TINY, f"--workdir={tmp_path / 'four'}", *split, "--config.train.max_steps=5", devices=8)
    assert "resuming after step 4" in done.stdout


@pytest.mark.long
def test_four_processes_that_share_a_mixing_block_equal_one_process(tmp_path):
    block = ["--config.augment.group_size=8"]  # a block of 32 rows, the whole batch, is distributed in the step
    run_together(tmp_path / "runs" / "four", *block, processes=4)
    succeed(TINY, f"--workdir={tmp_path / 'one'}", *block, devices=4)
    assert_same_run(tmp_path / "runs" / "four", tmp_path / "one")
    # Two processes resume, neither of which has a whole block.
    more = ["--config.train.max_steps=6", "--config.evaluation.batch_size=41"]
    run_together(tmp_path / "runs" / "four", *block, *more, processes=2, devices=2)
    succeed(TINY, f"--workdir={tmp_path / 'one'}", *block, *more, devices=4)
    assert_same_run(tmp_path / "runs" / "four", tmp_path / "one")


@pytest.mark.long
def test_two_processes_with_unlabelled_images_equal_one(tmp_path):
    # The batch is one part of 16 labelled and 16 unlabelled rows, of which each process reads half of both.
    further = ["--config.unlabelled.source=fashion_mnist_10k", "--config.unlabelled.split=train[:500]"]
    run_together(tmp_path / "runs" / "two", *further, processes=2)
    done = succeed(TINY, f"--workdir={tmp_path / 'one'}", *further, devices=2)
    assert re.search(r"unlabelled +fashion_mnist_10k: 500 images.* 16 of 32 rows", done.stdout + done.stderr)
    assert_same_run(tmp_path / "runs" / "two", tmp_path / "one")


def run_with_a_slow_second_process(*arguments):
    if "--process_id=1" in arguments:
        from deit_jax.data import loading

        read = loading._read
        loading._read = lambda *image: time.sleep(0.03) or read(*image)
    run_here(*arguments)


@pytest.mark.long
def test_the_slow_host_is_named(tmp_path):
    flags = [f"--workdir={tmp_path / 'run'}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    short = [*SHORT, "--config.train.max_steps=30", *flags]
    calls = [(*short, f"--process_id={number}") for number in range(2)]
    done = forked_together(run_with_a_slow_second_process, calls)
    assert [it.returncode for it in done] == [0, 0], done[0].stdout[-2000:] + done[0].stderr[-2000:]
    last = train_rows(tmp_path / "run")[-1]
    assert last["hosts/slowest"] == 1
    assert 5 < last["hosts/images_per_second_slowest"] < 1.2 / 0.03 * 3  # repeats: an image is read once for three rows
    assert last["hosts/images_per_second_median"] > 2 * last["hosts/images_per_second_slowest"]
    assert last["hosts/data_wait_slowest"] > 0.3 and last["hosts/data_wait_median"] < last["hosts/data_wait_slowest"]
    assert re.search(r"in the slowest process, median \d+ %; process 1 reads \d+ images/s", done[0].stdout)


@pytest.mark.long
def test_a_workdir_that_the_processes_do_not_share_is_refused_by_both(tmp_path):
    for done in run_processes([(TINY, f"--workdir={tmp_path / str(number)}") for number in range(2)]):
        assert done.returncode == 2, done.stderr[-2000:]
        assert "error: 1 of 2 processes do not see what the first one writes in --workdir=" in done.stderr
    assert not (tmp_path / "0" / "checkpoints").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images: `same`, `other` with other class names, `fewer` with one image less."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("same", "other", "fewer"):
        for label in "ab":
            (root / name / label).mkdir(parents=True)
            for i in range(64 - (name == "fewer" and label == "a")):
                Image.new("L", (28, 28), i).save(root / name / label / f"{i}.png")
    (root / "other/a").rename(root / "other/z")
    return root


@pytest.mark.long
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule.base_learning_rate", "1e-3", r"config\.schedule\.base_learning_rate: 0\.001, not 0\.0005"),
        ("data.path", "{}/other", r"class names: \['b', 'z'\], not \['a', 'b'\]"),
        ("data.path", "{}/fewer", "training images: 101, not 102"),
        ("data.path", "{}/nowhere", "nowhere: no such folder"),
        ("train.batch_size", "-1", r"config\.train\.batch_size=-1 must be at least 1"),
    ],
)
def test_processes_with_different_settings_are_all_refused(folders, tmp_path, field, value, message):
    same = ["--config.data.source=folder", f"--config.data.path={folders}/same", "--config.data.held_out=0.2"]
    call = (TINY + ":teacher", f"--workdir={tmp_path / 'run'}", *same)
    for done in run_processes([call, (*call, f"--config.{field}={value.format(folders)}")]):
        lines = [line for line in done.stderr.splitlines() if "Gloo" not in line]
        assert done.returncode == 2 and len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert not (tmp_path / "run").exists()


def test_incomplete_process_flags_are_refused(tmp_path):
    assert "give all three or none" in refused(TINY, f"--workdir={tmp_path}", "--num_processes=2")


def test_an_address_of_another_kind_is_refused_as_a_workdir():
    assert "--workdir=https://host/run is an address: give a folder, or a" in refused(
        TINY, "--workdir=https://host/run"
    )


def test_several_processes_cannot_train_in_s3():
    for done in run_processes([(TINY, "--workdir=s3://bucket/run")] * 2):
        lines = [line for line in done.stderr.splitlines() if "Gloo" not in line]
        assert done.returncode == 2 and len(lines) == 1, done.stderr
        assert "--workdir=s3://bucket/run cannot be used by a run of 2 processes, which write each" in lines[0]
