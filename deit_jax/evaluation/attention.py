"""Where the class and the distillation token look: attention maps and attention rollout."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from deit_jax.models.inspection import inspect
from deit_jax.models.protocol import num_prefix_tokens


class AttentionMaps(NamedTuple):
    """Of B images, P prefix tokens (the class token, then the distillation token) and a grid of h x w patches.

    maps: float32[B, L, H, P, h, w]: the weight that a prefix token gives each patch, by block and head. What is missing to a sum
    of 1 goes to the prefix tokens themselves.
    rollout: float32[B, P, h, w]: see `rollout`.
    """

    maps: jax.Array
    rollout: jax.Array


def rollout(attention: Sequence[jax.Array]) -> jax.Array:
    """Attention rollout (Abnar & Zuidema 2020) of the blocks' weights float32[B, H, N, N], first block first: float32[B, N, N].

    Each block's weights are averaged over the heads and, for the residual connection, with the identity: 0.5 A + 0.5 I, whose
    rows are made to sum to 1 again; the blocks' matrices are multiplied, the last one leftmost. A row tells how much of each
    input token reaches a token behind the last block, by this account.
    """
    identity = jnp.eye(attention[0].shape[-1])
    result = jnp.broadcast_to(identity, (attention[0].shape[0], *identity.shape))
    for weights in attention:
        mixed = 0.5 * jnp.mean(weights, axis=1) + 0.5 * identity
        result = (mixed / jnp.sum(mixed, axis=-1, keepdims=True)) @ result
    return result


def attention_maps(model: nn.Module, variables: Any, images: jax.Array) -> AttentionMaps:
    """The maps of normalised float[B, H, W, 3] images. Raises ValueError for a model that is not a transformer."""
    return _attention_maps(model, variables, images)


@functools.partial(jax.jit, static_argnums=0)
def _attention_maps(model: nn.Module, variables: Any, images: jax.Array) -> AttentionMaps:
    attention = inspect(model, variables, images).attention
    prefix = num_prefix_tokens(model)
    to_patches = jnp.stack([weights[:, :, :prefix, prefix:] for weights in attention], axis=1)
    side = math.isqrt(to_patches.shape[-1])
    return AttentionMaps(
        rearrange(to_patches, "b l heads p (h w) -> b l heads p h w", h=side),
        rearrange(rollout(attention)[:, :prefix, prefix:], "b p (h w) -> b p h w", h=side),
    )
