"""Commands of run.py, each in its own process."""

import json
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import deit_jax
from deit_jax.training.checkpointing import load_variables
from tests.tiny import STUDENT

from .commands import ROOT, TINY, command, environment, refused, run_together, succeed, train_rows


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """A finished run on one device: (workdir, output)."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, succeed(TINY, f"--workdir={workdir}", "--config.log.peak_tflops=0.2").stdout


def test_a_run_prints_its_settings_progress_and_results(one_device):
    workdir, printed = one_device
    for fact in (
        "parameters",
        "RANDOM weights",
        "mesh",
        "Fashion-MNIST",
        "mixup 0.8, cutmix 1 in groups of 4",
        "hard, alpha 0.5",
    ):
        assert fact in printed, fact
    assert re.search(
        r"step 3/4 +epoch +0\.01 +loss \d\.\d{4} +lr \S+ +[\d,]+ images/s, MFU [\d.]+ %"
        r"( \(\d+ % of the time waiting for data\))? +ETA \d",
        printed,
    )
    for head in ("class head", "distillation head", "both, mean of logits", "both, mean of softmax"):
        assert printed.count(head) >= 4, head  # the evaluation line and the table, each raw and EMA
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 4 and results["eval_images"] == 90
    assert set(results["scores"]) == {"raw", "ema"}
    rows = train_rows(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["mfu"] == pytest.approx(rows[2]["model_tflops_per_second"] / 0.2)


@pytest.mark.long
def test_eight_devices_give_the_same_losses(one_device, tmp_path):
    done = succeed(TINY, f"--workdir={tmp_path}/run", devices=8)
    assert "8 x cpu" in done.stdout
    assert_same_losses(tmp_path / "run", one_device[0])


def test_two_processes_give_the_same_losses(one_device, tmp_path):
    """Rule 8 of deit_jax/training/loop.py."""
    printed = run_together(tmp_path / "run", "--config.evaluation.teacher=False", processes=2)
    assert "2 process(es)" in printed[0] and "distillation head" in printed[0]
    assert "step" not in printed[1]  # only one of them prints
    assert_same_losses(tmp_path / "run", one_device[0])


def assert_same_losses(workdir, other):
    found, expected = train_rows(workdir), train_rows(other)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("train/loss", "train/class_loss", "train/distillation_loss"):
        np.testing.assert_allclose(
            [row[name] for row in found], [row[name] for row in expected], rtol=1e-4, err_msg=name
        )


def test_a_finished_run_is_reported_with_its_table(one_device):
    before = (one_device[0] / "metrics.jsonl").read_bytes()
    done = succeed(TINY, f"--workdir={one_device[0]}")
    assert (
        "has finished config.train.max_steps=4 of the" in " ".join(done.stdout.split())
        and "distillation head" in done.stdout
    )
    assert (one_device[0] / "metrics.jsonl").read_bytes() == before


def test_eval_reproduces_the_scores_of_the_run(one_device):
    done = succeed(TINY, f"--workdir={one_device[0]}", "--mode=eval")
    results = json.loads((one_device[0] / "results.json").read_text())
    assert f"{results['scores']['ema']['fused_softmax']['top1']:.2f}" in done.stdout
    assert f"{results['scores']['raw']['class']['loss']:.4f}" in done.stdout


def test_extra_sets_can_be_given_on_the_command_line(one_device, tmp_path):
    workdir, _ = one_device
    scored = "--config.evaluation.extra.held_out.split=test[:30]", "--checkpoint=best", f"--output={tmp_path}/e.json"
    done = succeed(TINY + ":extra", f"--workdir={workdir}", "--mode=eval", *scored)
    assert "held_out, 30 images" in done.stdout
    assert "config.evaluation.extra.missing is skipped: source=folder needs a path" in done.stdout
    assert json.loads((tmp_path / "e.json").read_text())["extra"]["held_out"]["images"] == 30
    for argument, name in ((":extra", "hold_out"), ("", "held_out")):
        line = refused(TINY + argument, "--mode=eval", f"--config.evaluation.extra.{name}.split=test")
        assert f"config.evaluation.extra has no set '{name}'" in line
    assert "nothing to evaluate" in refused(TINY, "--mode=eval")


def test_a_killed_run_resumes_bit_exactly(tmp_path):
    """Rules 2, 3 and 4 of deit_jax/training/loop.py."""
    # Enough steps that the kill comes before the end, in the first epoch of 312 steps.
    changes = ["--config.train.max_steps=80", "--config.checkpoint.every_steps=10", "--config.log.every_steps=5"]
    succeed(TINY, *changes, f"--workdir={tmp_path}/whole")

    process = subprocess.Popen(
        command(TINY, *changes, f"--workdir={tmp_path}/killed"),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not any(
        (tmp_path / "killed" / "checkpoints").glob("1[0-9]/manifest.json")
    ):  # after the checkpoint of step 10, far from the end of the epoch
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = train_rows(tmp_path / "killed")[-1]["step"]
    assert interrupted < 80

    done = succeed(TINY, *changes, f"--workdir={tmp_path}/killed")
    resumed = int(re.search(r"resuming after step (\d+)", done.stdout)[1])
    assert 10 <= resumed <= interrupted and resumed % 10 == 0
    for which in ("raw", "ema"):
        (whole, step), (killed, other_step) = (load_variables(tmp_path / name, which) for name in ("whole", "killed"))
        assert step == other_step == 80
        assert jax.tree.structure(whole) == jax.tree.structure(killed)
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(killed), strict=True):
            np.testing.assert_array_equal(one, other)
    assert optimizer_state(tmp_path / "whole") == optimizer_state(tmp_path / "killed")
    losses = [[(row["step"], row["train/loss"]) for row in train_rows(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1] and len(losses[0]) == 17


def optimizer_state(workdir) -> list[bytes]:
    """Returns the bytes of every leaf of the optimizer state in the newest checkpoint."""
    from deit_jax.training.checkpointing import load_state

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load_state(workdir)[0]["opt_state"])]


def test_teacher_and_student_in_one_command(tmp_path):
    done = succeed(f"{TINY}:both", f"--workdir={tmp_path}/run", "--config.train.max_steps=3")
    assert "training the teacher first" in done.stdout
    assert f"raw weights of {tmp_path}/run/teacher after step 4".replace(" ", "") in "".join(
        done.stdout.split()
    )  # lines are folded
    assert "teacher's top-1" in done.stdout and "RANDOM" not in done.stdout


@pytest.mark.long
def test_another_student_uses_a_teacher_from_its_workdir(tmp_path):
    succeed(f"{TINY}:teacher", f"--workdir={tmp_path}/teacher", "--config.train.max_steps=1")
    weights = f"--config.teacher.weights={tmp_path}/teacher"
    done = succeed(TINY, weights, "--config.train.max_steps=1", f"--workdir={tmp_path}/student")
    assert "teacher regnety_002" in done.stdout


@pytest.mark.long
def test_the_configurations_of_the_paper_run_locally(tmp_path):
    done = succeed("--config=configs/deit.py:small,distilled,runlocal", f"--workdir={tmp_path}/run")
    for fact in ("22,436,432", "83,590,140", "RANDOM", "224 px", "rand-m9-mstd0.5-inc1", "3 repeat(s)"):
        assert fact in done.stdout, fact


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config=configs/quickstart.py", "--config.trian.epochs=3"],
            ["config.trian.epochs", "--config.train.epochs"],
        ),
        (["--config=configs/quickstart.py", "--config.train.epochs=many"], ["epochs", "many"]),
        (["--config=configs/quickstart.py", "--config.train.epochs=0"], ["config.train.epochs=0", "at least 1"]),
        (
            ["--config=configs/quickstart.py", "--config.model.name=deit_tiny_destilled_patch16_224"],
            ["deit_tiny_distilled_patch16_224"],
        ),
        (["--config=configs/quickstart.py", "--config.distillation.kind=firm"], ["'firm'", "soft", "hard"]),
        (
            ["--config=configs/quickstart.py", "--config.train.batch_size=50", "--config.augment.group_size=4"],
            ["config.train.batch_size=50", "augment.group_size=4"],
        ),
        (["--config=configs/deit.py:small,distilled"], ["config.teacher.weights"]),
        (["--config=configs/deit.py:huge"], ["'huge'", "tiny | small | base"]),
        (["--config=configs/nothing.py"], ["configs/nothing.py"]),
        (["--config", "deit_jax/errors.py"], ["deit_jax/errors.py has no function get_config"]),
        ([TINY, "--config.teacher.weights=/nowhere"], ["/nowhere"]),
        ([TINY, "--config.data.source=npz"], ["data.path"]),
        ([TINY, "--config.model.overrides.depht=3"], ["depht", "depth"]),
        ([TINY, "--wrkdir=x"], ["wrkdir"]),
        ([TINY, "--config.optimizer.betas=0.9,nan"], ["betas", "finite"]),
        ([f"{TINY}:teacher", "--config.model.scan_blocks"], ["config.model.scan_blocks=True", "regnety_002"]),
        ([TINY, "--config.distillation.kind=none", "--config.teacher.weights="], ["distillation token", "labels"]),
        ([], ["--config"]),
    ],
)
def test_mistakes_are_reported_in_one_line(tmp_path, arguments, words):
    line = refused(*arguments, f"--workdir={tmp_path}/run")
    for word in words:
        assert word in line, line


def test_a_workdir_of_another_configuration_is_not_changed(one_device):
    line = refused(TINY, f"--workdir={one_device[0]}", "--config.train.batch_size=16", "--config.optimizer.eps=1e-7")
    assert "train.batch_size" in line and "optimizer.eps" in line


def test_a_trained_model_is_exported(one_device, tmp_path):
    workdir, _ = one_device
    out = tmp_path / "out"
    printed = succeed("--mode=export", f"--workdir={workdir}", f"--output={out}", "--layout=hf", "--weights=ema").stdout
    assert "ema weights of deit_tiny_distilled_patch16_224 after step 4, hf layout" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    model = deit_jax.create_model("deit_tiny_distilled_patch16_224", num_classes=10, image_size=28, **STUDENT)
    found, (expected, _) = deit_jax.load_weights(out, model), load_variables(workdir, "ema")
    for one, other in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(expected["params"]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_invalid_exports_are_refused_in_one_line(one_device, tmp_path):
    workdir, _ = one_device
    assert "--output is missing" in refused("--mode=export", f"--workdir={workdir}")
    assert "is not the --workdir of a training run" in refused(
        "--mode=export", f"--workdir={tmp_path}", f"--output={tmp_path}/out"
    )
    line = refused("--mode=export", f"--workdir={workdir}", f"--output={tmp_path}/out", "--layout=mmpretrain")
    assert "mmpretrain reads files, not folders" in line
    line = refused(TINY, f"--workdir={tmp_path}/run", f"--config.teacher.weights={tmp_path}/gone.safetensors")
    assert "gone.safetensors: there is no such file" in line
