"""How arrays are sharded over the mesh, and how a host's batch gets there."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deit_jax.parallel.mesh import BATCH_AXES, FSDP_AXIS

# (regular expression for a leaf's name, "fsdp" or "replicate"); the first match applies
Rules = Sequence[tuple[str, str]]


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device: the teacher, metrics, and the state unless it is split."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices: batches."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def split_microbatch_rows(mesh: Mesh) -> NamedSharding:
    """The second axis split over the devices: batches cut into microbatches, [microbatch, row, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def state_sharding(mesh: Mesh, state: Any, rules: Rules = ((".*", "fsdp"),), min_size: int = 0) -> Any:
    """Returns the sharding of each leaf of a (possibly abstract) train state.

    If the mesh's "fsdp" axis has one device, everything is replicated: plain data parallelism. Otherwise a leaf that a rule maps
    to "fsdp" is split along its longest divisible axis. Leaves with fewer than `min_size` values or without a divisible axis are
    replicated. The names of optimizer moments and moving averages end in their parameter's name, so they get its sharding.
    """
    count = mesh.shape[FSDP_AXIS]

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next((what for pattern, what in rules if re.search(pattern, name)), "replicate")
        axes = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
        if count == 1 or rule == "replicate" or not axes or leaf.size < min_size:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(FSDP_AXIS if i == longest else None for i in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(place, state)


@dataclasses.dataclass(frozen=True)
class GatherOnce:
    """How a step exchanges split parameters once, and splits their gradients again.

    sharding, dtypes: trees like the parameters: how each is split, and the dtype in which it is exchanged, forward and back.
    """

    mesh: Mesh
    sharding: Any
    dtypes: Any

    def gathered(self, params: Any) -> Any:
        """Returns the parameters as full copies on every device."""
        params = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, self.dtypes)
        return jax.lax.with_sharding_constraint(params, replicated(self.mesh))

    def scattered(self, gradients: Any, params: Any) -> Any:
        """Returns the gradients of `gathered` parameters, split and in float32 like the parameters."""
        # Added as a whole first, else TPU's compiler cuts each product into a loop of small ones with an exchange in each.
        gradients = jax.lax.with_sharding_constraint(gradients, replicated(self.mesh))
        gradients = jax.lax.with_sharding_constraint(gradients, self.sharding)
        return jax.tree.map(lambda gradient, leaf: gradient.astype(leaf.dtype), gradients, params)


def rounded_up(rows: int, mesh: Mesh) -> int:
    """Returns the smallest batch of at least `rows` that the number of devices divides."""
    return math.ceil(rows / mesh.size) * mesh.size


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Converts this host's rows of a batch, in ascending order as in `host_rows`, to global arrays [B, ...] split over the mesh.

    Raises ValueError if the number of devices does not divide the global batch.
    """
    rows = {name: len(array) * jax.process_count() for name, array in batch.items()}
    for name, count in rows.items():
        if count % mesh.size:
            raise ValueError(f"a batch of {count} rows ({name}) does not divide among {mesh.size} devices")
    return {name: jax.make_array_from_process_local_data(split_rows(mesh), array) for name, array in batch.items()}
