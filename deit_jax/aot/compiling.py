"""Compiling for devices that are not there."""

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

# libtpu asks the cloud's metadata server for these, in vain and aloud, unless they are there; and locks itself to one process.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# Without a GPU to time kernels on: no autotuning, and none of the kernels that need it.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """The compiler says that a program needs more memory than the device has, both in bytes; None where it does not say."""

    def __init__(self, message: str) -> None:
        super().__init__(message.splitlines()[0])
        self.needed, self.available = parse_out_of_memory(message)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program for devices that are not there, and the seconds that lowering and compiling took."""

    executable: jax.stages.Compiled
    lower_seconds: float
    compile_seconds: float


def stay_off_devices() -> None:
    """Leave this machine's accelerators alone: the process computes on CPU. Call it before anything touches a device."""
    jax.config.update("jax_platforms", "cpu")


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of `topology`, to make a mesh of; one can compile for them and nothing else.

    Raises UserError if the compiler for them is not installed, with the command that installs it.
    """
    if topology.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology={topology.name} needs libtpu, TPU's compiler: pip install 'jax[tpu]' (no TPU is needed)"
            )
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    else:
        jax.devices("cpu")  # has the plugins found
    try:
        description = topologies.get_topology_desc(platform=topology.platform, **topology.arguments)
    except (NotImplementedError, RuntimeError) as error:
        if topology.platform == "cuda" and "not implemented for cuda" in str(error):
            raise UserError(
                f'--topology={topology.name} needs CUDA\'s plugin and compiler: pip install "jax[cuda12]" (several GB; no GPU '
                "is needed)"
            ) from error
        raise UserError(
            f"--topology={topology.name}: the {topology.platform} compiler refuses it ({str(error).splitlines()[0]})"
        ) from error
    return list(description.devices)


def number_of_hosts(devices: list[Any]) -> int:
    """Machines, and so processes, that the devices are spread over."""
    return len({device.process_index for device in devices})


def compile_for(topology: Topology, function: Any, *arguments: Any) -> Compiled:
    """Compile a jitted function of abstract arguments whose shardings are on `topology_devices(topology)`.

    Raises DoesNotFit if the compiler finds that the program needs more memory than there is.
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
    """(needed, available) in bytes of the compiler's out-of-memory message; None for what it does not say."""
    number = r"([\d.]+)([KMGT]?)i?B?"
    for pattern in (rf"Used {number} of {number}", rf"\({number}\) exceeds available \w+ \({number}\)"):
        if match := re.search(pattern, message):
            needed, needed_unit, available, available_unit = match.groups()
            return int(float(needed) * _UNITS[needed_unit]), int(float(available) * _UNITS[available_unit])
    return None, None


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Such programs can be written to JAX's cache but not read back, which it would complain of.

    Whether there is a cache is decided once a process; how long a compilation must take to be kept is asked each time.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    try:
        yield
    finally:
        jax.config.update(name, before)
