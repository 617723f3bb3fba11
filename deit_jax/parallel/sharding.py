"""Where arrays lie on the mesh, and the way of a host's batch to it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deit_jax.parallel.mesh import DATA_AXIS


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: parameters, optimizer state, the teacher, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def split_microbatch_rows(mesh: Mesh) -> NamedSharding:
    """The second axis split over the devices: batches cut into microbatches, [microbatch, row, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """The sharding of each leaf of a (possibly abstract) train state: replicated, so that data parallelism is all there is."""
    return jax.tree.map(lambda _: replicated(mesh), state)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch to global arrays [B, ...] split over the mesh.

    Raises ValueError if the global batch does not divide among the devices.
    """
    rows = {name: len(array) * jax.process_count() for name, array in batch.items()}
    for name, count in rows.items():
        if count % mesh.size:
            raise ValueError(f"a batch of {count} rows ({name}) does not divide among {mesh.size} devices")
    return {name: jax.make_array_from_process_local_data(split_rows(mesh), array) for name, array in batch.items()}
