"""Several frozen networks as one, and one whose images or classes are not those at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax.models.output import ModelOutput
from deit_jax.models.protocol import call, on_mesh


class Ensemble(nn.Module):
    """Normalised images float[B, H, W, 3] to the answer of all members, float32[B, K]; frozen.

    With several members `logits` is log(mean of softmax(member's logits)), the logarithm of a mixture of classifiers: its argmax
    is the mixture's decision, and softmax(logits / tau) the mixture softened by a temperature tau. With one they are that
    member's logits.

    members: any models (models/protocol.py). classes: which of a member's classes are the K asked for, in their order, so that a
    member's probabilities are those among them; None: all. scale, shift: images * scale + shift is what the members are given;
    None: the images.
    """

    members: tuple[nn.Module, ...]
    classes: tuple[int, ...] | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, positions: jax.Array | None = None) -> ModelOutput:
        """Raises ValueError if it is to be trained."""
        if train:
            raise ValueError("an ensemble is frozen: train its members")
        if self.scale is not None:
            images = images * jnp.asarray(self.scale, images.dtype) + jnp.asarray(self.shift, images.dtype)
        answers = [call(member, images).logits for member in self.members]
        if self.classes is not None:
            answers = [answer[:, jnp.asarray(self.classes)] for answer in answers]
        logits = answers[0]
        if len(answers) > 1:
            logits = jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(answer) for answer in answers]), axis=0)
            logits = logits - jnp.log(float(len(answers)))
        return ModelOutput(logits, logits, None)

    @nn.nowrap
    def on_mesh(self, mesh: Mesh) -> Ensemble:
        """The same with every member as it suits the mesh."""
        return self.clone(members=tuple(on_mesh(member, mesh) for member in self.members))


def joined_variables(variables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The variables of an `Ensemble` from those of its members, in order."""
    collections = {name: None for each in variables for name, tree in each.items() if tree}
    return {
        name: {f"members_{i}": each[name] for i, each in enumerate(variables) if each.get(name)} for name in collections
    }


def renormalisation(
    given: tuple[Sequence[float], Sequence[float]], wanted: tuple[Sequence[float], Sequence[float]]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(scale, shift) from images normalised by (mean, std) `given` to images normalised by those `wanted`; None if equal."""
    (mean, std), (new_mean, new_std) = given, wanted
    if tuple(mean) == tuple(new_mean) and tuple(std) == tuple(new_std):
        return None
    scale = tuple(a / b for a, b in zip(std, new_std, strict=True))
    shift = tuple((a - b) / c for a, b, c in zip(mean, new_mean, new_std, strict=True))
    return scale, shift
