"""A model whose code is a `jax.export` program: any JAX function from images to logits, with its weights inside."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export as jax_export
from jax.sharding import Mesh, PartitionSpec

from deit_jax.models.protocol import ModelOutput


@dataclasses.dataclass(frozen=True)
class Program:
    """A deserialized program; equal to another one if the files are equal, so that a compiled step can be reused."""

    exported: jax_export.Exported = dataclasses.field(compare=False, repr=False)
    digest: str  # of the file: 32 hexadecimal digits


class ProgramModel(nn.Module):
    """Computes a program's logits float32[B, num_classes] from normalised images float32[B, S, S, 3]. It has no parameters.

    program: takes float32[b, S, S, 3] for any b, and returns float[b, num_classes], or a dictionary with "logits". mesh: the
    devices that the batch is split over; each runs the program on its own rows. None: one device.
    """

    program: Program
    num_classes: int
    image_size: int
    mesh: Mesh | None = None

    @nn.nowrap
    def on_mesh(self, mesh: Mesh) -> ProgramModel:
        """Returns the same model for batches split over all axes of `mesh`."""
        return self.clone(mesh=mesh if mesh.size > 1 else None)

    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> ModelOutput:
        """Raises ValueError for train=True."""
        if train:
            raise ValueError("a program is frozen: it has no parameters to train")
        run = self._run
        if self.mesh is not None and images.shape[0] % self.mesh.size == 0:
            rows = PartitionSpec(self.mesh.axis_names)
            # The checker cannot see inside a program.
            run = jax.shard_map(run, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False)
        logits = run(images.astype(jnp.float32))
        return ModelOutput(logits, logits, None)

    def _run(self, images: jax.Array) -> jax.Array:
        answer = self.program.exported.call(images)
        return jax.lax.stop_gradient(answer["logits"] if isinstance(answer, dict) else answer)
