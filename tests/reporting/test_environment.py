"""What `--version` prints."""

from importlib.metadata import version

from deit_jax.parallel.platforms import DeviceError
from deit_jax.reporting import environment
from deit_jax.version import __version__
from tests.end_to_end.commands import run


def test_the_version_page_names_software_and_devices():
    done = run("--version", devices=2)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == f"deit_jax {__version__}" and lines[1].startswith("Python 3.")
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        assert f"{package} {version(package)}" in lines[2]
    assert "JAX_PLATFORMS=cpu" in lines and any(line.startswith("XLA_FLAGS=") for line in lines)
    assert "backend cpu: 2 x cpu" in lines


def test_versions_are_printed_if_devices_are_missing(monkeypatch):
    def refuse():
        raise DeviceError("JAX_PLATFORMS=tpu: there are no such devices")

    monkeypatch.setattr(environment, "require_devices", refuse)
    lines = environment.version_page().splitlines()
    assert f"jax {version('jax')}" in lines[2] and lines[-1] == "error: JAX_PLATFORMS=tpu: there are no such devices"
