import importlib.metadata
import subprocess
import sys

import jax
import pytest
from packaging.requirements import Requirement

from deit_jax.reporting import profile as module
from deit_jax.reporting.profile import profiler_fault

# In a separate process: one that has loaded libtpu to compile for TPUs, as other tests do, cannot start JAX's profiler if the
# libtpu does not match jaxlib (their profilers' tables differ in size, which causes a segmentation fault).
PROGRAM = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from deit_jax.reporting.profile import Profile

folder = Path(sys.argv[1])

profile = Profile(folder / "two", start=10, steps=2)
work = jax.jit(lambda x: x @ x)
for step in range(11, 15):
    profile.before(step)
    profile.after(step, work(jnp.ones((8, 8))))

with Profile(folder / "ended", start=0, steps=50) as profile:
    for step in (1, 2, 3):
        profile.before(step)
        profile.after(step, jnp.ones(3))

profile = Profile(folder / "none", start=0, steps=0)
for step in (1, 2):
    profile.before(step)
    profile.after(step, jnp.ones(3))
"""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profiles")
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, " ".join(done.stdout.split())  # the console wraps long lines


def test_the_configured_steps_are_traced(profiled):
    folder, output = profiled
    assert list((folder / "two").rglob("*.xplane.pb"))
    assert "a profile of steps 11 to 12 is in" in output


def test_a_run_that_ends_early_keeps_its_trace(profiled):
    folder, output = profiled
    assert list((folder / "ended").rglob("*.xplane.pb"))
    assert "a profile of steps 1 to 3 is in" in output


def test_without_steps_nothing_is_written(profiled):
    assert not (profiled[0] / "none").exists()


LOADS_LIBTPU = """
import os, sys
from pathlib import Path

from deit_jax.aot.compiling import topology_devices
from deit_jax.aot.topologies import find_topology

topology_devices(find_topology("v5e-4"))
import jax.numpy as jnp
from deit_jax.reporting.profile import Profile

with Profile(Path(sys.argv[1]), start=0, steps=1) as profile:
    profile.before(1)
    profile.after(1, jnp.ones(3))
print("still here")
"""


def test_with_a_mismatched_libtpu_only_the_profile_is_lost(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu, the compiler for TPUs, is not installed")
    done = subprocess.run([sys.executable, "-c", LOADS_LIBTPU, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "still here" in done.stdout, done.stderr
    asked = [Requirement(text) for text in importlib.metadata.requires("jax")]
    (fitting,) = [requirement.specifier for requirement in asked if requirement.name == "libtpu"]
    fits = fitting.contains(importlib.metadata.version("libtpu"))
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == fits
    assert ("warning: no profile is taken: this process has loaded libtpu" in done.stdout) != fits


@pytest.mark.parametrize(
    ("mapped", "version", "fault"),
    [("libtpu.so", "0.0.52", True), ("libtpu.so", "0.0.42.1", False), ("libc.so", "0.0.52", False)],
)
def test_the_matching_libtpu_is_the_one_that_jax_requires(tmp_path, monkeypatch, mapped, version, fault):
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 00000000 08:01 1 /env/{mapped}\n")
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(
        module.importlib.metadata, "requires", lambda name: ['libtpu==0.0.42.*; extra == "tpu"', "numpy>=2"]
    )
    found = profiler_fault(maps)
    assert (found is not None) == fault
    if fault:
        assert f"libtpu 0.0.52, but jax {jax.__version__} requires libtpu==0.0.42.*" in found and "\n" not in found
