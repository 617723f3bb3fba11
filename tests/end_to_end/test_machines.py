"""Commands on difficult machines: no home, no terminal, a full disk, control characters in names."""

import itertools
import os
import subprocess
import sys

import pytest
from PIL import Image

from deit_jax.reporting.run_log import read_metrics

from .commands import ROOT, SHORT, TINY, command, environment, forked, refused, run_here, succeed


def run(function, *arguments, **settings):
    return forked(function, *map(str, arguments), **environment() | settings)


def onto_a_full_disk(*arguments):
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    run_here(*arguments)


def into_a_closed_pipe(*arguments):
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (as in a new process)
    run_here(*arguments)


def without_standard_streams(*arguments):
    for number in (0, 1, 2):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None
    run_here(*arguments)


def test_a_run_survives_the_loss_of_its_output(tmp_path):
    done = run(onto_a_full_disk, *SHORT, f"--workdir={tmp_path}/full")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr == "warning: standard output cannot be written (No space left on device); the command continues\n"
    )
    done = run(without_standard_streams, *SHORT, f"--workdir={tmp_path}/none")
    assert done.returncode == 0
    for name in ("full", "none"):
        assert (tmp_path / name / "results.json").exists()
        assert all("printed" not in row for row in read_metrics(tmp_path / name))


def test_a_page_that_cannot_be_printed_is_an_error_but_a_closed_pipe_is_not():
    done = run(onto_a_full_disk, "--list=table8")
    assert done.returncode == 2
    assert (
        done.stderr == "error: standard output cannot be written (No space left on device): the result is incomplete\n"
    )
    done = run(into_a_closed_pipe, "--list=table8")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_can_train_and_leaves_no_other_files(tmp_path):
    done = forked(
        run_here, f"--config={ROOT}/tests/tiny.py", *SHORT[1:], "--workdir=run", "--config.log.report=True",
        cwd=tmp_path, **environment() | {"HOME": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and (tmp_path / "run" / "report.html").exists()
    assert os.listdir(tmp_path) == ["run"]


def test_control_characters_in_names_are_escaped_in_error_messages(tmp_path):
    line = refused("--config=a\x1b[31m\nb\u202e.py", f"--workdir={tmp_path}/run")
    assert r"a\x1b[31m b\u202e.py" in line
    workdir = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert r"caf\xe9: checkpoints need a folder whose path is UTF-8" in refused(TINY, f"--workdir={workdir}")
    assert os.listdir(tmp_path) == []


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def typed(*arguments):
    """Runs a command in a process with the C locale."""
    return subprocess.run(command(*arguments), cwd=ROOT, env=environment() | ASCII, capture_output=True)


def test_a_file_name_that_the_locale_cannot_encode_is_reported_in_one_line(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.tiny import tiny_config\n"
        f"def get_config():\n    return tiny_config(parallel__compilation_cache='{tmp_path}/花/k')\n",
        encoding="utf-8",
    )
    folder = {"JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        command(f"--config={config}", f"--workdir={tmp_path}/run"),
        cwd=ROOT, env=environment() | ASCII | folder, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.decode("ascii").count("\n") == 1 and b"set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stderr


@pytest.mark.long
def test_folders_with_any_name_are_read_and_written_in_the_c_locale(tmp_path):
    for split, name in itertools.product(("train", "val"), ("花", "Köln")):
        for number in range(8):
            path = tmp_path / "Bilder ü" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (28, 28), (30 * number, 0, 0)).save(path)
    data = (
        *SHORT,
        "--config.data.source=folder",
        f"--config.data.path={tmp_path}/Bilder ü",
        "--config.train.batch_size=16",
    )
    done = typed(*data, f"--workdir={tmp_path}/run", "--config.log.report=True", "--config.log.tensorboard=True")
    assert done.returncode == 0, done.stderr
    assert "Bilder \\xfc" in done.stdout.decode("ascii")
    assert "花" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    image = tmp_path / "Bilder ü" / "val" / "花" / "3.png"
    done = typed("--mode=predict", f"--workdir={tmp_path}/run", f"--output={tmp_path}/gefunden ü.csv", image)
    assert done.returncode == 0 and r"\u82b1" in done.stdout.decode("ascii")
    assert "Bilder ü/val/花/3.png" in (tmp_path / "gefunden ü.csv").read_text(encoding="utf-8")


def test_a_run_in_a_folder_with_any_utf8_name(tmp_path):
    workdir = tmp_path / "[red] 花 $x$"
    done = succeed(*SHORT, f"--workdir={workdir}", "--config.log.tensorboard=True", "--config.log.report=True")
    assert "Training in" in done.stdout and "[red] 花 $x$" in done.stdout.replace("\n", "")
