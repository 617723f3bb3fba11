"""A workdir that version 0.1.0 left after five steps (tests/golden/record_workdir.py) goes on in this version, on this JAX."""

import hashlib
import json
import platform
import tarfile
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest

from deit_jax.reporting.metrics import read_rows
from deit_jax.training.checkpointing import load_state
from tests.end_to_end.commands import ROOT, run

ARCHIVE = ROOT / "tests/golden/workdir_0.1.0.tar.xz"
METRICS = (
    "step",
    "train/loss",
    "train/class_loss",
    "train/distillation_loss",
    "train/grad_norm",
    "train/learning_rate",
)
# Recorded and repeated as one device, with the compiler's quick options: bits depend on both.
RUN_FLAGS = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
}


def digests(workdir, step):
    """The SHA-256 of every leaf of a checkpoint, by name, its type and shape in front."""
    state, _ = load_state(workdir, step)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {hashlib.sha256(leaf.tobytes()).hexdigest()}"
        for name, leaf in leaves.items()
    }


def processor():
    """The processor's name and what it computes with, on which the last bit of a sum depends."""
    if not Path("/proc/cpuinfo").exists():
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in reversed(lines) if line.startswith(("model name", "flags")))
    return " ".join(sorted(name.strip() + value for name, value in facts.items()))


@pytest.fixture
def recorded(tmp_path):
    """(the workdir, what its run went on to)"""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "workdir", json.loads((tmp_path / "expected.json").read_text())


def test_a_workdir_of_version_0_1_0_is_restored_to_the_bit_and_goes_on(recorded):
    workdir, expected = recorded
    assert json.loads((workdir / "config.json").read_text())["version"] == "0.1.0"
    found = digests(workdir, "5")
    assert {name.split("/")[0] for name in found} == {"step", "params", "opt_state", "ema"}
    assert found == expected["digests"]["5"]

    done = run(f"--config=tests/golden/workdir_config.py:{workdir}", f"--workdir={workdir}", **RUN_FLAGS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "resuming after step 5" in done.stdout
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 11))
    after, last = rows[5:], digests(workdir, "10")
    if version("jax") == expected["jax"] and processor() == expected["processor"]:
        assert [{name: row[name] for name in METRICS} for row in after] == expected["rows"]
        assert last == expected["digests"]["10"]
    else:
        assert last.keys() == expected["digests"]["10"].keys()
        for name in METRICS:
            values, wanted = ([row[name] for row in some] for some in (after, expected["rows"]))
            np.testing.assert_allclose(values, wanted, rtol=2e-4, err_msg=name)
