"""Class and distillation token compared layer by layer, and position embeddings at another resolution (sections 4 and 6)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.models.inspection import can_inspect, inspect
from deit_jax.models.protocol import feature_widths, is_distilled, num_prefix_tokens, resize_variables


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosine over the last axis of float32[..., D]: float32[...]."""
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def token_cosines(
    model: nn.Module,
    variables: Any,
    batches: Iterable[dict[str, jax.Array]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    """The cosine of the class and the distillation token, from the input to the heads, each a mean over the images of `batches`.

    Returns:
      learned: of the two parameters, the same for every image (the paper's 0.06); with_position: their position embeddings
      added, what enters the first block; after_block: a list, one for each block (the paper's 0.93 is the last layer's);
      after_norm: after the final LayerNorm, what the heads read; images: how many.

    Raises ValueError for a model without a distillation token.
    """
    if not (can_inspect(model) and is_distilled(model)):
        raise ValueError("the model has no distillation token to compare its class token with")
    total, count = np.zeros(len(feature_widths(model)) + 2), 0
    for batch in batches:
        images = _normalize(batch["image"], tuple(mean), tuple(std))
        total += np.asarray(_cosine_sums(model, variables, images, batch["mask"]), np.float64)
        count += int(np.sum(jax.device_get(batch["mask"])))
    means = [float(value) for value in total / count]
    params = variables["params"]
    return {
        "learned": float(cosine(params["cls_token"], params["dist_token"])[0, 0]),
        "with_position": means[0],
        "after_block": means[1:-1],
        "after_norm": means[-1],
        "images": count,
    }


_normalize = functools.partial(jax.jit, static_argnums=(1, 2))(prepare_for_evaluation)


@functools.partial(jax.jit, static_argnums=0)
def _cosine_sums(model: nn.Module, variables: Any, images: jax.Array, mask: jax.Array) -> jax.Array:
    """Float32[2 + blocks], summed over the images where `mask` holds."""
    inside = inspect(model, variables, images)
    by_layer = jnp.stack([cosine(x[:, 0], x[:, 1]) for x in (*inside.tokens, inside.normed)])
    return jnp.sum(jnp.where(mask, by_layer, 0.0), axis=1)


def position_norms(model: nn.Module, variables: Any) -> np.ndarray:
    """The l2 norm of each patch's position embedding, float32[rows, columns]."""
    patches = np.asarray(variables["params"]["pos_embed"])[0, num_prefix_tokens(model) :]
    side = math.isqrt(len(patches))
    return np.linalg.norm(patches, axis=-1).reshape(side, side)


def at_resolution(
    model: nn.Module, variables: Any, image_size: int, *, method: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The model for images of `image_size` pixels and its variables: the position embedding resized, nothing trained.

    method: "bicubic" (what the paper takes, because it nearly keeps the norms) or "bilinear" (which makes them smaller).
    Raises ValueError if the patch size does not divide `image_size`.
    """
    other = model.clone(image_size=image_size)
    return other, resize_variables(other, variables, method)
