"""Which devices JAX should look for."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import jax

_TPU_DEVICES = ("accel*", "vfio/[0-9]*")  # under /dev on a TPU host: v2 to v4, and later ones


def look_for_nothing_that_is_not_here(devices: Path = Path("/dev")) -> None:
    """Tell JAX to stay on the CPU where there is no TPU and no plugin for other devices, unless JAX_PLATFORMS says something.

    TPU's compiler (libtpu) may be installed without a TPU, to compile for one. JAX would then look for the TPU at every start,
    and print what it did not find. To be called before JAX is asked for devices.
    """
    if jax.config.jax_platforms or entry_points(group="jax_plugins"):
        return
    if not has_tpu(devices):
        jax.config.update("jax_platforms", "cpu")


def has_tpu(devices: Path = Path("/dev")) -> bool:
    """Whether this is a TPU host, by the chips' device files."""
    return any(any(devices.glob(pattern)) for pattern in _TPU_DEVICES)
