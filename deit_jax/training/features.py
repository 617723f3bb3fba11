"""Feature distillation: projections of the student's features, and their distance from the teacher's.

The projections are dense layers from the student's channels to the teacher's. They are trained with the student, and are part of
the train state but not of the model: `FeatureTrainState.projections`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deit_jax.config import ConfigError, needs_logits
from deit_jax.config_features import Giver, Pair, feature_pairs, feature_weights, resolved_pairs
from deit_jax.models.layers import uniform_init
from deit_jax.models.protocol import Features, classify_with_features, feature_names, initial_variables
from deit_jax.training.losses import Metrics
from deit_jax.training.state import PROJECTIONS

# By pair: {"kernel": float32[D, C], "bias": float32[C]}, from the student's D channels to the teacher's C.
Projections = dict[str, dict[str, jax.Array]]
_LAYER_NORM_EPSILON, _COSINE_EPSILON = 1e-6, 1e-8


def mse(projected: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error to the normalised target, a float32 scalar. Both float32[..., C] of one shape.

    Normalised: each position's channels to mean 0 and variance 1, like a LayerNorm without parameters, as in feature distillation
    by whitened targets (arXiv 2205.14141).
    """
    centred = target - jnp.mean(target, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return jnp.mean(jnp.square(projected - centred * jax.lax.rsqrt(variance + _LAYER_NORM_EPSILON)))


def cosine(projected: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of 1 - cosine similarity over the last axis, a float32 scalar. Both float32[..., C] of one shape."""

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _COSINE_EPSILON**2))

    return 1 - jnp.mean(jnp.sum(unit(projected) * unit(target), axis=-1))


def local_guidance(projected: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean squared error, a float32 scalar (arXiv 2207.10026). Both float32[..., C] of one shape."""
    return jnp.mean(jnp.square(projected - target))


_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mse": mse,
    "cosine": cosine,
    "local_guidance": local_guidance,
}


def aligned(projected: jax.Array, target: jax.Array, *, larger: bool) -> tuple[jax.Array, jax.Array]:
    """Returns both features on one grid, for maps [B, h, w, C] or vectors [B, C]. A map is averaged if the other is a vector.

    larger: on the larger grid of both maps, else on the student's. Bilinear, half-pixel centres, antialiased where it shrinks.
    """
    if projected.ndim != target.ndim:
        projected, target = (jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x for x in (projected, target))
    if projected.ndim == 2:
        return projected, target
    rows, columns = projected.shape[1:3]
    if larger:
        rows, columns = max(rows, target.shape[1]), max(columns, target.shape[2])
    return _resized(projected, rows, columns), _resized(target, rows, columns)


def _resized(x: jax.Array, rows: int, columns: int) -> jax.Array:
    if x.shape[1:3] == (rows, columns):
        return x
    return jax.image.resize(x, (x.shape[0], rows, columns, x.shape[3]), "bilinear")


@dataclasses.dataclass(frozen=True)
class FeatureMatching:
    """The feature loss of a configuration: the weighted sum of the losses, each the mean over the pairs."""

    pairs: tuple[Pair, ...]
    widths: tuple[tuple[int, int], ...]  # by pair: channels of the student's and of the teacher's feature
    weights: dict[str, float]  # by name, all above 0
    alone: bool  # the rest of the loss does not read the teacher's logits
    multiply_adds: int  # of the projections, per image

    @property
    def of_student(self) -> tuple[str, ...]:
        """The names of the student's features, each once."""
        return tuple(dict.fromkeys(pair.student for pair in self.pairs))

    @property
    def of_teacher(self) -> tuple[str, ...]:
        """The names of the teacher's features, each once."""
        return tuple(dict.fromkeys(pair.teacher for pair in self.pairs))

    @property
    def num_parameters(self) -> int:
        """The number of parameters of all projections."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.widths)

    def initial(self, seed: jax.Array | int) -> Projections:
        """Returns random projections, uniform as PyTorch's dense layers and 1x1 convolutions."""
        projections: Projections = {}
        for pair, (inputs, outputs) in zip(self.pairs, self.widths, strict=True):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(_name(pair).encode()))
            of_kernel, of_bias = jax.random.split(key)
            init = uniform_init(inputs)
            projections[_name(pair)] = {
                "kernel": init(of_kernel, (inputs, outputs), jnp.float32),
                "bias": init(of_bias, (outputs,), jnp.float32),
            }
        return projections

    def __call__(self, projections: Projections, student: Features, teacher: Features) -> tuple[jax.Array, Metrics]:
        """Returns the weighted loss, a float32 scalar, and each loss without its weight, "feature_<name>"."""
        values: dict[str, list[jax.Array]] = {name: [] for name in self.weights}
        for pair in self.pairs:
            target = teacher[pair.teacher]
            target = target.astype(jnp.promote_types(target.dtype, jnp.float32))
            projected = _projected(projections[_name(pair)], student[pair.student])
            for name, found in values.items():
                found.append(_LOSSES[name](*aligned(projected, target, larger=name == "local_guidance")))
        means = {name: sum(found[1:], found[0]) / len(found) for name, found in values.items()}
        terms = [self.weights[name] * mean for name, mean in means.items()]
        return sum(terms[1:], terms[0]), {f"feature_{name}": mean for name, mean in means.items()}


def projection_flops(matching: FeatureMatching | None) -> int:
    """Returns the model FLOPs of the projections per image, forward and backward; 0 without features."""
    return 0 if matching is None else 3 * 2 * matching.multiply_adds


def _projected(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Returns x, float[..., D] of any type, through a dense layer; products in x's type, sums in float32: float32[..., C]."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = jnp.einsum("...d,dc->...c", x, layer["kernel"].astype(x.dtype), preferred_element_type=wide)
    return product + layer["bias"]


def _name(pair: Pair) -> str:
    """The name of a pair's projection in the state."""
    return f"{pair.student}-{pair.teacher}"


def build_matching(
    config: ConfigDict, student: nn.Module, teacher: nn.Module, teacher_variables: Any, image_size: int
) -> FeatureMatching:
    """Builds the feature loss of a configuration with features.pairs. Only traces; teacher_variables may be shapes.

    Raises ConfigError for a feature that a model does not have, and ModelError for a registered model that violates the protocol.
    """
    givers = (
        Giver("student", config.model.name, feature_names(student)),
        Giver("teacher", config.teacher.name, feature_names(teacher)),
    )
    pairs = resolved_pairs(feature_pairs(config), *givers)
    image: Any = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(initial_variables, student), key, image)

    if PROJECTIONS in variables["params"]:
        raise ConfigError(f"config.features.pairs: {config.model.name} has parameters in {PROJECTIONS!r}: rename them")

    def shapes(model: nn.Module, variables: Any, names: tuple[str, ...]) -> Features:
        def features(variables: Any, image: jax.Array) -> Features:
            return classify_with_features(model, variables, image, names)[1]

        return jax.eval_shape(features, variables, image)

    own = shapes(student, variables, tuple(dict.fromkeys(pair.student for pair in pairs)))
    others = shapes(teacher, teacher_variables, tuple(dict.fromkeys(pair.teacher for pair in pairs)))
    widths = tuple((own[pair.student].shape[-1], others[pair.teacher].shape[-1]) for pair in pairs)
    return FeatureMatching(
        pairs,
        widths,
        feature_weights(config),
        alone=not needs_logits(config),
        multiply_adds=sum(own[pair.student].size * outputs for pair, (_, outputs) in zip(pairs, widths, strict=True)),
    )
