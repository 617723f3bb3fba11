"""Runs commands of run.py, each in its own process."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deit_jax.reporting.run_log import read_metrics

ROOT = Path(__file__).parents[2]
TINY = "--config=tests/tiny.py"
TIMEOUT = 1200  # seconds per command
# One step of the smallest student, for tests of everything else. They share one compiled program.
SHORT = (TINY, "--config.distillation.kind=labels", "--config.teacher.weights=", "--config.train.max_steps=1",
         "--config.evaluation.every_epochs=0", "--config.data.max_eval_images=40", "--config.model.overrides.depth=1",
         "--config.augment.erase_probability=0")  # fmt: skip

# Most of the time of a short command goes into importing JAX, Orbax and Grain, so a server imports them once and forks for each
# command. No device is used before the fork. `command` is for processes that a test starts itself.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["deit_jax.main", "deit_jax.modes.train", "tests.end_to_end.commands"])


def command(*arguments):
    return [sys.executable, "run.py", *map(str, arguments)]


def environment(devices=1):
    # The commands share compiled programs.
    return os.environ | {
        "XLA_FLAGS": re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def run(*arguments, devices=1, cwd=ROOT, **settings):
    """Runs a command; returns a `subprocess.CompletedProcess`. `settings` are environment variables, see `forked`."""
    return forked(run_here, *map(str, arguments), cwd=cwd, **environment(devices) | settings)


def run_here(*arguments):
    """Runs the command in this process, which it may end."""
    sys.argv = [str(ROOT / "run.py"), *arguments]
    from deit_jax.main import main

    main()


def forked(function, *arguments, cwd=ROOT, **variables):
    """Runs `function(*arguments)` in its own process; returns a `subprocess.CompletedProcess`.

    function: of a module's top level. variables: the environment, of what is not read when JAX is imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _SERVER.Process(target=_call, args=(function, arguments, str(cwd), variables, streams))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
        stdout, stderr = (path.read_text() for path in streams)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def forked_together(function, calls, devices=1):
    """Runs several calls at the same time; returns the results of `forked`."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: forked(function, *call, **environment(devices)), calls))


def _call(function, arguments, cwd, variables, streams):
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    function(*arguments)


def succeed(*arguments, devices=1):
    done = run(*arguments, devices=devices)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def refused(*arguments) -> str:
    """Runs a command that must be refused; returns its one line."""
    done = run(*arguments)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def run_processes(calls, devices=1):
    """Runs commands as the processes of one run; returns a `subprocess.CompletedProcess` for each."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={len(calls)}"]
    calls = [(*map(str, call), *flags, f"--process_id={number}") for number, call in enumerate(calls)]
    return forked_together(run_here, calls, devices)


def run_together(workdir, *arguments, processes, devices=1):
    """Returns the output of each of the processes of one run. workdir: None for a mode that has none."""
    where = [] if workdir is None else [f"--workdir={workdir}"]
    all_done = run_processes([(TINY, *where, *arguments)] * processes, devices)
    for done in all_done:  # a crash begins with its reason and ends with many lines of the interpreter's stack
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:2000] + done.stderr[-2000:]
    return [done.stdout for done in all_done]


def train_rows(workdir):
    return [row for row in read_metrics(workdir) if "train/loss" in row]
