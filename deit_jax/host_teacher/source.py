"""A teacher on the host as a function of images on a mesh, for the recorder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deit_jax.host_teacher.teacher import HostTeacher
from deit_jax.parallel.sharding import split_rows


class HostSource:
    """Calls a `HostTeacher` with the rows of a batch that are on this process's devices.

    Attributes:
        identity: the identity of the teacher, in JSON types, for the fingerprint of the answers.
        description: a description of the teacher for users.
        num_classes: the number of logits.
    """

    def __init__(self, teacher: HostTeacher, mesh: Mesh, identity: Mapping[str, Any] | None = None) -> None:
        """identity: the recorded one, if the folder has answers of this teacher; None: its own."""
        self.identity = dict(identity or teacher.identity)
        self.description, self.num_classes = teacher.description, teacher.num_classes
        self._teacher, self._rows = teacher, split_rows(mesh)

    def logits(self, images: jax.Array) -> jax.Array:
        """Returns float32[B, num_classes], sharded like the images float32[B, S, S, 3], whose rows are split over the mesh."""
        shards = images.addressable_shards
        logits = self._teacher.logits(np.concatenate([np.asarray(shard.data) for shard in shards]))
        ends = np.cumsum([len(shard.data) for shard in shards])
        parts = np.split(logits, ends[:-1])
        arrays = [jax.device_put(part, shard.device) for part, shard in zip(parts, shards, strict=True)]
        return jax.make_array_from_single_device_arrays((len(images), self.num_classes), self._rows, arrays)
