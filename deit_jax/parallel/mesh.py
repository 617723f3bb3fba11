"""The devices of a run as one mesh."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from deit_jax.errors import UserError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)  # batches are split over both, parameters over the second only


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh [data, fsdp] over `devices` (default: all of all processes), `fsdp` neighbours sharing the parameters.

    With fsdp=1 the devices of a process are neighbours, so that its rows of a batch are a single stretch. Exchanges then go among
    all devices at once, for which their order does not matter. Else the order is that of the devices' links.

    Raises UserError if `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % fsdp:
        raise UserError(f"config.parallel.fsdp={fsdp} does not divide the {len(devices)} devices of this run")
    # Auto: the compiler propagates shardings. With Explicit axes, jax.make_mesh's default, Linen modules fail.
    axis_types = (AxisType.Auto,) * len(BATCH_AXES)
    mesh = jax.make_mesh((len(devices) // fsdp, fsdp), BATCH_AXES, axis_types=axis_types, devices=devices)
    if fsdp > 1:
        return mesh
    in_order = sorted(mesh.devices.flat, key=lambda device: device.process_index)
    return Mesh(np.asarray(in_order).reshape(mesh.devices.shape), BATCH_AXES, axis_types=axis_types)
