import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import jax
import pytest

from deit_jax.parallel import platforms
from deit_jax.parallel.platforms import default_to_cpu, unused_accelerator, will_compute_on_cpu


@pytest.fixture
def plugins(monkeypatch):
    """The list of installed plugins, to be filled; JAX_PLATFORMS is not set."""
    found = []
    monkeypatch.setattr(platforms, "entry_points", lambda group: found if group == "jax_plugins" else [])
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield found
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_tpu_host_is_unchanged(plugins, tmp_path, device):
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    default_to_cpu(tmp_path)
    assert jax.config.jax_platforms is None


def test_host_with_a_plugin_or_jax_platforms_is_unchanged(plugins, tmp_path):
    plugins.append("xla_cuda12")
    default_to_cpu(tmp_path)
    assert jax.config.jax_platforms is None
    plugins.clear()
    jax.config.update("jax_platforms", "tpu")
    default_to_cpu(tmp_path)
    assert jax.config.jax_platforms == "tpu"


def test_other_hosts_default_to_cpu(plugins, tmp_path):
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # the driver's node exists without a device
    default_to_cpu(tmp_path)
    assert jax.config.jax_platforms == "cpu"


@pytest.mark.parametrize(
    ("wanted", "installed", "device", "cpu"),
    [
        ("cpu", [], None, True),
        ("cuda,cpu", ["xla_cuda13"], None, False),
        (None, ["xla_cuda13"], "nvidia0", False),
        (None, ["xla_cuda12"], None, True),  # a login node
        (None, ["xla_rocm7"], "kfd", False),
        (None, ["of_another_kind"], None, False),
        (None, [], "accel0", False),
    ],
)
def test_will_compute_on_cpu(plugins, tmp_path, wanted, installed, device, cpu):
    plugins.extend(EntryPoint(name, "", "jax_plugins") for name in installed)
    jax.config.update("jax_platforms", wanted)
    if device:
        (tmp_path / device).touch()
    assert will_compute_on_cpu(tmp_path) == cpu


@pytest.mark.parametrize(
    ("device", "found", "install"),
    [
        ("nvidia0", "an NVIDIA GPU", r"pip install 'jax\[cuda13\]' \(driver 580 or newer\) or 'jax\[cuda12\]'"),
        ("dxg", "an NVIDIA GPU", r"'jax\[cuda13\]'"),
        ("kfd", "an AMD GPU", "ROCm"),
        ("accel0", "a TPU", r"pip install 'jax\[tpu\]'"),
        ("vfio/3", "a TPU", r"pip install 'jax\[tpu\]'"),
    ],
)
def test_unused_accelerator_is_named_with_the_fix(tmp_path, monkeypatch, device, found, install):
    monkeypatch.delenv("JAX_PLATFORMS")
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    line = unused_accelerator(tmp_path)
    assert re.search(rf"does not use {found} of this machine: .*{install}", line) and "\n" not in line
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS=cpu to use it" in unused_accelerator(tmp_path)
    monkeypatch.setattr(platforms.jax, "default_backend", lambda: "gpu")
    assert unused_accelerator(tmp_path) is None


def test_no_accelerator_no_message(tmp_path):
    (tmp_path / "nvidiactl").touch()  # the driver without a device
    assert unused_accelerator(tmp_path) is None


@pytest.mark.parametrize("wanted", ["cuda", "nonsense"])
def test_missing_devices_raise_one_line(wanted):
    # In another process, because JAX looks for devices only once.
    program = (
        "from deit_jax.parallel.platforms import DeviceError, require_devices\n"
        "try:\n    require_devices()\nexcept DeviceError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": wanted},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        done.stdout.startswith(f"JAX_PLATFORMS={wanted}: there are no such devices (") and done.stdout.count("\n") == 1
    )
