import subprocess
import sys

import pytest

# In a process of its own: one that has loaded libtpu to compile for TPUs, as other tests do, cannot start JAX's profiler where
# libtpu is newer than jaxlib (their profilers' tables differ in size, and the process dies of a segmentation fault).
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
    return folder, " ".join(done.stdout.split())  # a console folds long lines


def test_the_steps_asked_for_are_traced(profiled):
    folder, told = profiled
    assert list((folder / "two").rglob("*.xplane.pb"))
    assert "a profile of steps 11 to 12 is in" in told


def test_a_run_that_ends_within_the_steps_keeps_what_was_traced(profiled):
    folder, told = profiled
    assert list((folder / "ended").rglob("*.xplane.pb"))
    assert "a profile of steps 1 to 3 is in" in told


def test_no_steps_leave_nothing(profiled):
    assert not (profiled[0] / "none").exists()
