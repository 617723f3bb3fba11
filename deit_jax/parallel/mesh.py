"""The devices of a run as one mesh."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis "data" over `devices` (default: all of all processes); batches are split along it."""
    devices = jax.devices() if devices is None else list(devices)
    # Auto: the compiler propagates shardings. With Explicit axes, jax.make_mesh's default, Linen modules fail.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
