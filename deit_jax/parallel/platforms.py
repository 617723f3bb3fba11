"""Which devices JAX should look for."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jax

from deit_jax.errors import UserError


class DeviceError(UserError):
    """Devices that JAX is told to use and does not find. The message is one line."""


# Under /dev. A TPU host has the first (v2 to v4) or the second; Windows' Linux shows its GPUs as dxg.
_TPU_DEVICES = ("accel*", "vfio/[0-9]*")
_NVIDIA_DEVICES = ("nvidia[0-9]*", "dxg")
_AMD_DEVICES = ("kfd",)
_GPU_PLUGINS = ("xla_cuda", "xla_rocm")  # beginnings of their entry points' names


def jax_option(name: str) -> Any:
    """The value of one of JAX's options, which are attributes that no type checker sees."""
    return getattr(jax.config, name)


def look_for_nothing_that_is_not_here(devices: Path = Path("/dev")) -> None:
    """Tell JAX to stay on the CPU where there is no TPU and no plugin for other devices, unless JAX_PLATFORMS says something.

    TPU's compiler (libtpu) may be installed without a TPU, to compile for one. JAX would then look for the TPU at every start,
    and print what it did not find. To be called before JAX is asked for devices.
    """
    if jax_option("jax_platforms") or entry_points(group="jax_plugins"):
        return
    if not has_tpu(devices):
        jax.config.update("jax_platforms", "cpu")


def will_compute_on_cpu(devices: Path = Path("/dev")) -> bool:
    """Whether JAX is told to, by JAX_PLATFORMS or `look_for_nothing_that_is_not_here`, or has plugins for absent GPUs alone.

    To be called after that function and before JAX is asked for devices.
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
    """A line that names an accelerator of this machine and how to make JAX use it, where JAX computes on the CPU; else None.

    To be called after JAX has been asked for devices (`require_devices`).
    """
    if jax.default_backend() != "cpu":
        return None
    if _has(devices, _NVIDIA_DEVICES):
        found, install = (
            "an NVIDIA GPU",
            "pip install 'jax[cuda13]' (driver 580 or newer) or 'jax[cuda12]' (525 or newer)",
        )
    elif _has(devices, _AMD_DEVICES):
        found, install = "an AMD GPU", "install JAX's ROCm plugin"
    elif has_tpu(devices):
        found, install = "a TPU", "pip install 'jax[tpu]'"
    else:
        return None
    if "JAX_PLATFORMS" in os.environ:
        install = f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} asks for that; unset it to use what is here"
    return f"JAX computes on the CPU and does not use {found} of this machine: {install}"


def require_devices() -> None:
    """Ask JAX for its devices; raises DeviceError if JAX_PLATFORMS names some that are not here. After `distributed.start`."""
    wanted = jax_option("jax_platforms")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where the plugin for CUDA is not installed
        if not wanted:
            raise
        reason = (str(error).splitlines() or ["no plugin for them is installed"])[0].partition(" (set JAX_PLATFORMS")[0]
        raise DeviceError(
            f"JAX_PLATFORMS={wanted}: there are no such devices ({reason}); unset it to take what is here, or install what they "
            "need, e.g. pip install 'jax[cuda13]' for NVIDIA GPUs"
        ) from error
