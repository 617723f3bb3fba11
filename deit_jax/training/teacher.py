"""The frozen teacher of a run: as it was found, and as the train step takes it."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
from jax.sharding import Mesh

from deit_jax.models.protocol import classify, has_field, inference_form, on_mesh, with_dtype
from deit_jax.training.network_identity import NetworkIdentity
from deit_jax.training.state import Variables, count_parameters


@functools.partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["model"])
@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
    """The teacher as an argument of the train step: a pytree of its variables, its model a static part of the tree.

    The step asks for `logits` alone. A teacher of another kind is another pytree with this method.
    """

    model: nn.Module
    variables: Variables

    def logits(self, images: jax.Array) -> jax.Array:
        """The teacher's answer to normalised images float[B, H, W, 3]: float32[B, K], in the student's classes."""
        return classify(self.model, self.variables, images).logits


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen network whose logits the student learns from."""

    model: nn.Module
    variables: Variables  # {"params", and unless there is none "batch_stats"}
    description: str  # its name and where its weights come from, for people
    num_parameters: int = 0  # of the network as trained
    networks: tuple[NetworkIdentity, ...] = ()  # which networks these are, for the record of a run

    def for_step(self, mesh: Mesh) -> FrozenTeacher:
        """What the train step on `mesh` takes. The variables are those here: the caller puts them on the mesh."""
        return FrozenTeacher(on_mesh(self.model, mesh), self.variables)


def freeze(model: nn.Module, variables: Variables, description: str, *, compute_dtype: str) -> Teacher:
    """Prepare a frozen teacher for inference: fold BatchNorm, compute in `compute_dtype`, and keep kernels in that type."""
    count = count_parameters(variables)
    model, variables = inference_form(with_dtype(model, compute_dtype), variables)
    if has_field(model, "dtype"):
        variables = jax.tree.map(lambda leaf: leaf.astype(compute_dtype) if leaf.ndim > 1 else leaf, variables)
    return Teacher(model, variables, description, count)
