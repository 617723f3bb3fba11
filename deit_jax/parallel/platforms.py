"""Decides which devices JAX looks for."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jax

from deit_jax.errors import UserError


class DeviceError(UserError):
    """JAX is configured to use devices that it does not find. The message is one line."""


# Patterns under /dev. A TPU host has the first (v2 to v4) or the second; Windows Subsystem for Linux shows its GPUs as dxg.
_TPU_DEVICES = ("accel*", "vfio/[0-9]*")
_NVIDIA_DEVICES = ("nvidia[0-9]*", "dxg")
_AMD_DEVICES = ("kfd",)
_GPU_PLUGINS = ("xla_cuda", "xla_rocm")  # prefixes of their entry points' names
_ACCELERATORS = (
    (_NVIDIA_DEVICES, "an NVIDIA GPU", "pip install 'jax[cuda13]' (driver 580 or newer) or 'jax[cuda12]' (525 or newer)"),
    (_AMD_DEVICES, "an AMD GPU", "install JAX's ROCm plugin"),
    (_TPU_DEVICES, "a TPU", "pip install 'jax[tpu]'"),
)  # fmt: skip


def jax_option(name: str) -> Any:
    """Returns the value of a JAX option; these are attributes that type checkers do not see."""
    return getattr(jax.config, name)


def default_to_cpu(devices: Path = Path("/dev")) -> None:
    """Restricts JAX to the CPU if there is no TPU and no plugin for other devices, unless JAX_PLATFORMS is set.

    libtpu may be installed on a machine without a TPU, to compile for one. JAX would then look for the TPU at every start, and
    print what it did not find. Call this before JAX is asked for devices.
    """
    if jax_option("jax_platforms") or entry_points(group="jax_plugins"):
        return
    if not has_tpu(devices):
        jax.config.update("jax_platforms", "cpu")


def will_compute_on_cpu(devices: Path = Path("/dev")) -> bool:
    """Whether JAX will use the CPU: by JAX_PLATFORMS or `default_to_cpu`, or because it only has plugins for absent GPUs.

    Call this after `default_to_cpu` and before JAX is asked for devices.
    """
    if wanted := jax_option("jax_platforms"):
        return str(wanted).split(",")[0] == "cpu"
    for_gpus = all(plugin.name.startswith(_GPU_PLUGINS) for plugin in entry_points(group="jax_plugins"))
    return for_gpus and not _has(devices, (*_TPU_DEVICES, *_NVIDIA_DEVICES, *_AMD_DEVICES))


def has_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether this is a TPU host, by the chips' device files."""
    return _has(devices, _TPU_DEVICES)


def _has(devices: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(devices.glob(pattern)) for pattern in patterns)


def unused_accelerator(devices: Path = Path("/dev")) -> str | None:
    """Returns a line that names an accelerator which JAX does not use and how to enable it; None if JAX uses an accelerator.

    Call this after JAX has been asked for devices (`require_devices`).
    """
    if jax.default_backend() != "cpu":
        return None
    for patterns, name, install in _ACCELERATORS:
        if _has(devices, patterns):
            wanted = os.environ.get("JAX_PLATFORMS")
            fix = install if wanted is None else f"unset JAX_PLATFORMS={wanted} to use it"
            return f"JAX computes on the CPU and does not use {name} of this machine: {fix}"
    return None


def require_devices() -> None:
    """Asks JAX for its devices; raises DeviceError if JAX_PLATFORMS names absent ones. Call it after `distributed.start`."""
    wanted = jax_option("jax_platforms")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError if the plugin for CUDA is not installed
        if not wanted:
            raise
        reason = (str(error).splitlines() or ["no plugin for them is installed"])[0].partition(" (set JAX_PLATFORMS")[0]
        raise DeviceError(
            f"JAX_PLATFORMS={wanted}: there are no such devices ({reason}); unset it to use the available ones, or install what "
            "they need, e.g. pip install 'jax[cuda13]' for NVIDIA GPUs"
        ) from error
