"""Records a workdir of version 0.1.0 and how its run went on, for tests/reliability/test_earlier_version.py.

    git checkout 3ac9af2 -- deit_jax          # version 0.1.0
    python3.11 tests/golden/record_workdir.py   # with jax 0.10.2

With the word "bfloat16", by revision 84f67b4 and jax 0.12.0.1, it writes tests/golden/workdir_0.1.0_bfloat16.json: how the
workdir of the archive went on in bfloat16 before stochastic depth divided in float32. Without that word it rewrites
tests/golden/workdir_0.1.0.tar.xz:

  workdir/        after step 5 of tests/tiny.py: config.json, metrics.jsonl, checkpoints/5
  expected.json   "rows": what metrics.jsonl got in steps 6 to 10 of the same run; "digests": {"5", "10": the SHA-256 of every
                  leaf of the state}; "jax" and "processor": where that was computed
"""

import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from deit_jax.reporting.run_log import read_metrics
from deit_jax.version import __version__
from tests.reliability.test_earlier_version import (
    ARCHIVE,
    IN_BFLOAT16,
    METRICS,
    ROOT,
    RUN_FLAGS,
    digests,
    make_bfloat16,
    processor,
)


def record_bfloat16():
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        workdir = Path(folder) / "workdir"
        make_bfloat16(workdir)
        command = [
            sys.executable,
            "run.py",
            f"--config=tests/golden/workdir_config.py:{workdir}",
            f"--workdir={workdir}",
        ]
        subprocess.run(command, cwd=ROOT, env=os.environ | RUN_FLAGS, check=True)
        rows = [row for row in read_metrics(workdir) if "train/loss" in row]
    rows = [{name: row[name] for name in METRICS} for row in rows[5:]]
    recorded = {"rows": rows, "jax": version("jax"), "processor": processor()}
    IN_BFLOAT16.write_text(json.dumps(recorded, indent=1) + "\n")


def main():
    assert __version__ == "0.1.0" and version("jax") == "0.10.2", "not the versions that the name of the archive says"
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "workdir"
        command = [sys.executable, "run.py", "--config=tests/tiny.py", f"--workdir={workdir}"]
        changes = ["--config.train.max_steps=10", "--config.checkpoint.every_steps=5"]
        subprocess.run(command + changes, cwd=ROOT, env=os.environ | RUN_FLAGS, check=True)
        rows = [row for row in read_metrics(workdir) if "train/loss" in row]
        expected = {
            "rows": [{name: row[name] for name in METRICS} for row in rows[5:]],
            "digests": {step: digests(workdir, step) for step in ("5", "10")},
            "jax": version("jax"),
            "processor": processor(),
            "python": platform.python_version(),
        }
        # As a run leaves it that is killed after step 5.
        shutil.rmtree(workdir / "checkpoints" / "10")
        (workdir / "results.json").unlink()
        (workdir / "lock").unlink()
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        (workdir / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 5))
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(workdir, "workdir")
            content = json.dumps(expected, indent=1).encode()
            described = tarfile.TarInfo("expected.json")
            described.size = len(content)
            archive.addfile(described, io.BytesIO(content))
    print(f"{ARCHIVE.stat().st_size:8} {ARCHIVE.name}")


if __name__ == "__main__":
    record_bfloat16() if "bfloat16" in sys.argv[1:] else main()
