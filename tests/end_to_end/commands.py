"""run.py as a user types it, in processes of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from deit_jax.reporting.metrics import read_rows

ROOT = Path(__file__).parents[2]
TINY = "--config=tests/tiny.py"


def command(*arguments):
    return [sys.executable, "run.py", *map(str, arguments)]


def environment(devices=1):
    # The processes of this file compile the same programs: one compiles, the others read.
    return os.environ | {
        "XLA_FLAGS": re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"]),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def run(*arguments, devices=1):
    return subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=1200
    )


def succeed(*arguments, devices=1):
    done = run(*arguments, devices=devices)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def refused(*arguments) -> str:
    """The one line of a refused command."""
    done = run(*arguments)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


def train_rows(workdir):
    return [row for row in read_rows(Path(workdir) / "metrics.jsonl") if "train/loss" in row]
