"""Compiles programs for absent devices."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies

from deit_jax.aot.topologies import Topology
from deit_jax.errors import UserError

# Without these, libtpu queries a metadata server that is not there, logs the failures, and takes a single-process lock.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# Without a GPU to time kernels on: no autotuning, and no kernels that need it.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """The compiler reports that a program needs more memory than the device has, both in bytes; None if it gives no figure."""

    def __init__(self, message: str) -> None:
        super().__init__(message.splitlines()[0])
        self.needed, self.available = parse_out_of_memory(message)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for absent devices, and the seconds spent on lowering and compiling."""

    executable: jax.stages.Compiled
    lower_seconds: float
    compile_seconds: float


def stay_off_devices() -> None:
    """Restricts the process to the CPU, so that it leaves accelerators alone. Call it before anything uses a device."""
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: Topology) -> list[Any]:
    """Returns the devices of `topology`, from which to make a mesh; programs can only be compiled for them.

    Raises UserError, with the command that installs it, if the compiler is not installed.
    """
    if topology.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology={topology.name} needs libtpu, the TPU compiler: pip install 'jax[tpu]' (no TPU is needed)"
            )
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    else:
        jax.devices("cpu")  # makes JAX discover the plugins
    try:
        description = topologies.get_topology_desc(platform=topology.platform, **topology.arguments)
    except (NotImplementedError, RuntimeError) as error:
        if topology.platform == "cuda" and "not implemented for cuda" in str(error):
            raise UserError(
                f'--topology={topology.name} needs the CUDA plugin and compiler: pip install "jax[cuda12]" (several GB; no GPU '
                "is needed)"
            ) from error
        raise UserError(
            f"--topology={topology.name}: the {topology.platform} compiler rejects it ({str(error).splitlines()[0]})"
        ) from error
    return list(description.devices)


def number_of_hosts(devices: list[Any]) -> int:
    """Returns the number of machines, and so of processes, that the devices belong to."""
    return len({device.process_index for device in devices})


def compile_for(topology: Topology, function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function of abstract arguments whose shardings are on `topology_devices(topology)`.

    Raises DoesNotFit if the compiler finds that the program needs more memory than available.
    """
    start = time.monotonic()
    lowered = function.lower(*arguments)
    lowered_at = time.monotonic()
    try:
        with _no_compilation_cache():
            executable = lowered.compile(_GPU_OPTIONS if topology.platform == "cuda" else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise DoesNotFit(str(error)) from error
        raise
    return Compiled(executable, lowered_at - start, time.monotonic() - lowered_at)


def parse_out_of_memory(message: str) -> tuple[int | None, int | None]:
    """Parses the compiler's out-of-memory message: (needed, available) in bytes; None for a missing figure."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"Used {number} of {number}", rf"\({number}\) exceeds available \w+ \({number}\)"):
        if match := re.search(pattern, message):
            needed, needed_unit, available, available_unit = match.groups()
            return int(float(needed) * _UNITS[needed_unit]), int(float(available) * _UNITS[available_unit])
    return None, None


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Disables the cache: JAX can write such programs to it but not read them back, and would warn about it.

    JAX checks for a cache once per process, but the minimum compile time for caching each time.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    try:
        yield
    finally:
        jax.config.update(name, before)
