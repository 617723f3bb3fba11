"""Several frozen networks as one, and adapters for other normalisations or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax.models.protocol import (
    Features,
    ModelOutput,
    call,
    call_with_features,
    feature_names,
    fused_form,
    on_mesh,
)


class Ensemble(nn.Module):
    """Maps normalised images float[B, H, W, 3] to the combined `ModelOutput` of all members, float32[B, K]; frozen.

    With several members, `logits` is log(mean(softmax(member logits))), the log of a mixture of classifiers: its argmax is the
    mixture's decision, and softmax(logits / tau) the mixture softened by temperature tau. With one, it is that member's logits.

    members: any models (models/protocol.py). classes: the K classes to select from each member's, in order, so that
    probabilities are among these only; None: all. scale, shift: members receive images * scale + shift; None: the images.
    """

    members: tuple[nn.Module, ...]
    classes: tuple[int, ...] | None = None
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.members[0].num_classes) if self.classes is None else len(self.classes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Those of a single member; several members give none."""
        return feature_names(self.members[0]) if len(self.members) == 1 else ()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        positions: jax.Array | None = None,
        features: tuple[str, ...] = (),
    ) -> ModelOutput | tuple[ModelOutput, Features]:
        """Raises ValueError if `train` is True. features: of `feature_names`, returned by name as a second value."""
        if train:
            raise ValueError("an ensemble is frozen: train its members")
        if self.scale is not None:
            images = images * jnp.asarray(self.scale, images.dtype) + jnp.asarray(self.shift, images.dtype)
        found: Features = {}
        if features:
            output, found = call_with_features(self.members[0], images, features)
            outputs = [output.logits]
        else:
            outputs = [call(member, images).logits for member in self.members]
        if self.classes is not None:
            outputs = [output[:, jnp.asarray(self.classes)] for output in outputs]
        logits = outputs[0]
        if len(outputs) > 1:
            logits = jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(output) for output in outputs]), axis=0)
            logits = logits - jnp.log(float(len(outputs)))
        combined = ModelOutput(logits, logits, None)
        return (combined, found) if features else combined

    @nn.nowrap
    def on_mesh(self, mesh: Mesh) -> Ensemble:
        """Returns the ensemble with every member specialised for `mesh`."""
        return self.clone(members=tuple(on_mesh(member, mesh) for member in self.members))

    @nn.nowrap
    def fused_form(self) -> Ensemble:
        """Returns the ensemble with the fused form of every member."""
        return self.clone(members=tuple(fused_form(member) for member in self.members))


def joined_variables(variables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the variables of an `Ensemble` from those of its members, in order."""
    collections = {name: None for each in variables for name, tree in each.items() if tree}
    return {
        name: {f"members_{i}": each[name] for i, each in enumerate(variables) if each.get(name)} for name in collections
    }


def renormalisation(
    given: tuple[Sequence[float], Sequence[float]], wanted: tuple[Sequence[float], Sequence[float]]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns (scale, shift) that convert images normalised by (mean, std) `given` to `wanted`; None if they are equal."""
    (mean, std), (new_mean, new_std) = given, wanted
    if tuple(mean) == tuple(new_mean) and tuple(std) == tuple(new_std):
        return None
    scale = tuple(a / b for a, b in zip(std, new_std, strict=True))
    shift = tuple((a - b) / c for a, b, c in zip(mean, new_mean, new_std, strict=True))
    return scale, shift
