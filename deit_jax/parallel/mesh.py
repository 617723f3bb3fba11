"""The devices of a run as one mesh."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deit_jax.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)  # batches are split over both axes, parameters only over the second


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """Creates a mesh [data, fsdp] over `devices` (default: all devices of all processes); `fsdp` neighbors share the parameters.

    With fsdp=1 the devices of a process are neighbors, so its rows of a batch are one stretch; exchanges then involve all
    devices, for which the order does not matter. Otherwise the order follows the links between the devices.

    Raises UserError if `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % fsdp:
        raise UserError(f"config.parallel.fsdp={fsdp} does not divide the {len(devices)} devices of this run")
    # Auto: the compiler propagates shardings. Linen modules fail with Explicit axes, jax.make_mesh's default.
    axis_types = (AxisType.Auto,) * len(BATCH_AXES)
    mesh = jax.make_mesh((len(devices) // fsdp, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)
    if fsdp > 1:
        return mesh
    in_order = sorted(mesh.devices.flat, key=lambda device: device.process_index)
    return Mesh(np.asarray(in_order).reshape(mesh.devices.shape), BATCH_AXES, axis_types=axis_types)
