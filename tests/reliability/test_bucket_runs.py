"""Runs in a bucket that are killed, stopped, or whose server goes away, compared with a run on a disk."""

import json
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from deit_jax.reporting.run_log import read_metrics
from deit_jax.storage.bucket import Bucket
from deit_jax.storage.checkpoints import MANIFEST, UNFINISHED
from deit_jax.storage.workdir import LOCK
from deit_jax.training.checkpointing import load_state
from tests.bucket_server import address, server
from tests.end_to_end import commands
from tests.end_to_end.commands import TINY, run_here, succeed

pytestmark = pytest.mark.long

STEPS = 60
RUN = (TINY, "--config.distillation.kind=labels", "--config.teacher.weights=", f"--config.train.max_steps={STEPS}",
       "--config.evaluation.every_epochs=0", "--config.data.max_eval_images=40", "--config.model.overrides.depth=1",
       "--config.augment.erase_probability=0", "--config.checkpoint.every_steps=3", "--config.log.tensorboard=True")  # fmt: skip
TIMINGS = ("images_per_second", "data_wait", "tflops", "mfu", "hosts/")


@pytest.fixture(scope="module", params=["gs", "s3"])
def running(request):
    with server(request.param) as it:
        yield it


@pytest.fixture
def new(running):
    """Returns the address of a run that does not exist yet."""
    return lambda name: address(name, running.scheme)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run on a disk."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    succeed(*RUN, f"--workdir={workdir}")
    return workdir


def rows(workdir):
    return [
        {name: value for name, value in row.items() if not any(timing in name for timing in TIMINGS)}
        for row in read_metrics(workdir)
    ]


def assert_same_run(workdir, expected):
    (found, step), (state, last) = load_state(workdir), load_state(expected)
    assert step == last
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert rows(workdir) == rows(expected)


class Started:
    """A command in its own process, with temporary and cache folders of its own, as on another machine."""

    def __init__(self, folder, *arguments):
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("tmp", "cache"):
            (folder / name).mkdir(parents=True)
        self.streams = [folder / "stdout", folder / "stderr"]
        own = {"TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "cache")}
        call = (run_here, tuple(map(str, arguments)), str(commands.ROOT), commands.environment() | own, self.streams)
        self.process = commands._SERVER.Process(target=commands._call, args=call)
        self.process.start()

    def said(self):
        return [path.read_text() if path.exists() else "" for path in self.streams]

    def wait_for(self, text, seconds=300):
        end = time.monotonic() + seconds
        while text not in self.said()[0]:
            assert time.monotonic() < end and self.process.is_alive(), (text, self.said())
            time.sleep(0.01)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def end(self, seconds=600):
        self.process.join(seconds)
        return self.process.exitcode


def finish(folder, *arguments):
    started = Started(folder, *arguments)
    assert started.end() == 0, started.said()
    return started.said()[0]


def step_being_saved(workdir):
    """Returns the step whose checkpoint is begun and not sealed; None if there is none."""
    marks = {}
    for name in Bucket(f"{workdir}/checkpoints").list():
        step, _, rest = name.partition("/")
        marks.setdefault(step, set()).add(rest)
    return next((step for step, names in marks.items() if UNFINISHED in names and MANIFEST not in names), None)


# Kills, and at least how many of them were inside a save; the other ones of every third came after the manifest.
KILLS = {"gs": (10, 2), "s3": (3, 1)}


def test_kills_every_third_of_them_inside_a_save(running, new, undisturbed, tmp_path):
    workdir, draw, inside = new("killed"), random.Random(7), 0
    kills, least = KILLS[running.scheme]
    for number in range(kills):
        started = Started(tmp_path / "machine", *RUN, f"--workdir={workdir}")
        started.wait_for("compiling the train step")
        if number % 3 == 1:  # inside a save
            while step_being_saved(workdir) is None:
                assert started.process.is_alive(), started.said()
            time.sleep(draw.uniform(0, 0.3 if running.scheme == "gs" else 0.05))
            started.signal(signal.SIGKILL)
            started.end()
            inside += step_being_saved(workdir) is not None
        else:
            time.sleep(draw.uniform(0, 2.5))
            started.signal(signal.SIGKILL)
            started.end()
    print(finish(tmp_path / "machine", *RUN, f"--workdir={workdir}"))
    assert inside >= least
    assert_same_run(workdir, undisturbed)
    names = Bucket(workdir).list()
    assert LOCK not in names and not any("damaged" in name for name in names)


def test_a_stopped_run_finds_its_workdir_taken(new, undisturbed, tmp_path):
    workdir = new("stopped")
    first = Started(tmp_path / "one", *RUN, f"--workdir={workdir}")
    first.wait_for("compiling the train step")
    while step_being_saved(workdir) is None:
        assert first.process.is_alive()
    first.signal(signal.SIGSTOP)
    second = Started(tmp_path / "two", *RUN, f"--workdir={workdir}")
    second.wait_for("which may have ended: waiting for the end of its lease")
    second.wait_for("compiling the train step")
    while step_being_saved(workdir) is None and second.process.is_alive():
        pass
    first.signal(signal.SIGCONT)
    assert first.end() == 2, first.said()
    lines = [line for line in first.said()[1].splitlines() if not line.startswith("I1")]
    assert lines[-1].startswith(f"error: --workdir={workdir} was taken over by another run (process "), lines
    assert "Traceback" not in first.said()[1]
    assert second.end() == 0, second.said()
    assert_same_run(workdir, undisturbed)
    assert LOCK not in Bucket(workdir).list()


def test_a_second_run_is_refused_while_the_first_renews_its_lock(new, tmp_path):
    workdir = new("held")
    first = Started(tmp_path / "one", *RUN, "--config.train.max_steps=100000", f"--workdir={workdir}")
    first.wait_for("images/s")
    second = Started(tmp_path / "two", *RUN, f"--workdir={workdir}")
    assert second.end(120) == 2
    assert f"--workdir={workdir} is in use by another run (process {first.process.pid} on " in second.said()[1]
    first.signal(signal.SIGTERM)
    assert first.end() == 75, first.said()
    assert LOCK not in Bucket(workdir).list()


def test_a_server_that_is_killed_and_started_again(running, new, undisturbed, tmp_path):
    workdir = new("restarted")
    started = Started(tmp_path / "machine", *RUN, f"--workdir={workdir}")
    started.wait_for(f"5/{STEPS} ")
    for _ in range(2):
        running.kill()
        time.sleep(4)
        running.start()
        time.sleep(3)
    assert started.end() == 0, started.said()
    assert "Traceback" not in started.said()[1]
    assert_same_run(workdir, undisturbed)


def test_two_processes_write_what_one_resumes(running, tmp_path):
    if running.scheme == "s3":
        pytest.skip("several processes cannot write there")
    more = (f"--config.train.max_steps={STEPS // 10}", "--config.checkpoint.every_steps=3")
    for workdir in (address("together"), tmp_path / "runs" / "together"):
        commands.run_together(workdir, *RUN[1:], *more, processes=2)
        last = workdir
    together = address("again")
    commands.run_together(together, *RUN[1:], *more, processes=2)
    assert_same_run(together, last)
    resume = (*RUN, "--config.train.max_steps=8")
    succeed(*resume, f"--workdir={together}", devices=2)
    succeed(*resume, f"--workdir={last}", devices=2)
    assert_same_run(together, last)


def test_two_processes_read_what_one_has_written(running, new):
    if running.scheme == "gs":
        pytest.skip("test_two_processes_write_what_one_resumes")
    workdir = new("read")
    run = (*RUN[1:], "--config.train.max_steps=3")
    commands.succeed(TINY, *run, f"--workdir={workdir}")
    said = commands.run_together(workdir, *run, "--mode=eval", processes=2)
    assert "top" in said[0]
    alone = json.loads(Bucket(workdir).read("evaluation.json"))
    commands.succeed(TINY, *run, "--mode=eval", f"--workdir={workdir}")
    assert json.loads(Bucket(workdir).read("evaluation.json")) == alone


def test_predict_export_and_a_teacher_from_the_bucket(new, tmp_path):
    workdir = new("used")
    short = (*RUN, "--config.train.max_steps=3", f"--workdir={workdir}", "--config.log.report=True")
    assert f"the report is {workdir}/report.html" in finish(tmp_path / "machine", *short)
    finish(
        tmp_path / "machine", "--mode=export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--layout=timm"
    )
    assert (tmp_path / "out/model.safetensors").stat().st_size > 10_000
    Image.new("L", (28, 28), 80).save(tmp_path / "grey.png")
    answers = tmp_path / "answers.json"
    finish(tmp_path / "machine", "--mode=predict", f"--workdir={workdir}", f"--output={answers}", tmp_path / "grey.png")
    assert len(json.loads(answers.read_text())[0]["predictions"]) == 5
    finish(tmp_path / "machine", "--mode=eval", *RUN, f"--workdir={workdir}")
    assert Bucket(workdir).stat("evaluation.json").size > 100
    finish(tmp_path / "machine", "--mode=analyze", f"--workdir={workdir}")
    assert Bucket(workdir).list("analysis/")
    for field in ("teacher.weights", "model.weights"):
        other = new("from")
        fields = [f"--config.{field}={workdir}", "--config.train.max_steps=1"]
        if field == "teacher.weights":
            fields += ["--config.teacher.name=deit_tiny_distilled_patch16_224", "--config.distillation.kind=hard"]
        finish(tmp_path / "machine", *RUN, *fields, f"--workdir={other}")
        assert rows(other)
