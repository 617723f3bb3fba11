"""Shared by all tests: eight virtual CPU devices, quick compilation, and one cache of compiled programs for a whole run."""

import gc
import importlib
import importlib.util
import os
import sys
import tempfile

import pytest

# Before jax is imported. Tests of one device take a mesh of the first.
# Most of the tests' time was LLVM's: without its optimizations code is made in a third of the time. XLA's own passes, so the
# operations and their order, are the same. `make test-short` asks for the usual level.
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in _flags:
    _flags += " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = _flags + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same programs. Set in the first process; its workers and the commands that tests run inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="deit_jax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Traces make millions of objects that live long. To look for cycles as often as Python does by default took a sixth of the time.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish():
    """What was imported stays: leave it out of every later search for cycles."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def timm_python():
    """An interpreter that has timm, torch and torchvision: this one, or the one named by the environment's TIMM_PYTHON."""
    python = os.environ.get("TIMM_PYTHON") or (sys.executable if importlib.util.find_spec("timm") else None)
    if python is None:
        pytest.skip("timm is not installed here, and TIMM_PYTHON does not name an interpreter that has it")
    return python


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules that can be imported (package__name="code"), returns their folder; what they register goes again."""
    from deit_jax import loss_kinds, plugins
    from deit_jax.data import registry
    from deit_jax.models import registry as models

    folder = tmp_path / "importable"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    for holder, name in (
        (loss_kinds, "_KINDS"),
        (registry, "_SOURCES"),
        (models, "_MODELS"),
        (plugins, "_imported"),
        (plugins, "_printed"),
    ):
        monkeypatch.setattr(holder, name, getattr(holder, name).copy())

    def write(**files):
        for name, code in files.items():
            path = folder / f"{name.replace('__', '/', 1)}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
        importlib.invalidate_caches()
        return folder

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
