"""Tokens and attention of a transformer: cosines by layer, attention maps, position embeddings at other resolutions.

Tokens and attention weights are recomputed from the parameters: models do not record them, so that training does not pay for
them, and their last block computes only what the heads read. Here all tokens of all blocks are computed in float32, independent
of the model's attention, scan and remat options.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from deit_jax.augment.pipeline import prepare_for_evaluation
from deit_jax.models.layers import LayerNorm
from deit_jax.models.protocol import feature_widths, is_distilled, num_prefix_tokens, resize_variables
from deit_jax.models.vit import Block, PatchEmbed, VisionTransformer
from deit_jax.models.vit_parameters import unstack_blocks


class Inspection(NamedTuple):
    """Activations of a transformer of L blocks, H heads and N tokens of width D, for B images. Under jit unused ones are free.

    tokens: L + 1 arrays float32[B, N, D]: the first block's input (position embedding added), then each block's output.
    normed: float32[B, N, D]: the last tokens after the final LayerNorm; the heads read the first of them.
    attention: L arrays float32[B, H, N, N]: each block's weights; a row is a query and sums to 1.
    """

    tokens: tuple[jax.Array, ...]
    normed: jax.Array
    attention: tuple[jax.Array, ...]


def can_inspect(model: nn.Module) -> bool:
    """Whether `inspect` supports a model: this package's transformers, with class token and patches."""
    return isinstance(model, VisionTransformer)


def inspect(model: nn.Module, variables: dict[str, Any], images: jax.Array) -> Inspection:
    """Returns activations in evaluation for normalised float[B, H, W, 3] images. Raises ValueError unless `can_inspect`."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"a {type(model).__name__} has no tokens to look at")
    params = unstack_blocks(variables["params"])
    f32 = jnp.float32
    x = _apply(PatchEmbed(model.patch_size, model.embed_dim, f32), params["patch_embed"], images.astype(f32))
    names = ("cls_token", "dist_token")[: model.num_prefix_tokens]
    prefix = [jnp.broadcast_to(params[name], (x.shape[0], 1, model.embed_dim)) for name in names]
    x = jnp.concatenate([*prefix, x], axis=1) + params["pos_embed"]

    block = Block(model.num_heads, model.mlp_ratio, 0.0, "float32", "xla", f32)
    tokens, attention = [x], []
    for i in range(model.depth):
        block_params = params[f"blocks_{i}"]
        attention.append(attention_weights(block_params, x, model.num_heads))
        x = _apply(block, block_params, x, 0.0, None, False, None)
        tokens.append(x)
    return Inspection(tuple(tokens), _apply(LayerNorm(), params["norm"], x), tuple(attention))


def _apply(module: nn.Module, params: Any, *arguments: Any) -> Any:
    return module.apply({"params": params}, *arguments)


def attention_weights(block: dict[str, Any], x: jax.Array, num_heads: int) -> jax.Array:
    """Returns softmax weights float32[B, H, N, N] of a block from its parameters (norm1, attn) and input float32[B, N, D]."""
    width = x.shape[-1]
    y = _apply(LayerNorm(), block["norm1"], x)
    qkv = _apply(nn.Dense(3 * width), block["attn"]["qkv"], y)
    q, k, _ = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * (width // num_heads) ** -0.5, k)
    return jax.nn.softmax(scores, axis=-1)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the cosine over the last axis of float32[..., D]: float32[...]."""
    return jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def token_cosines(
    model: nn.Module,
    variables: Any,
    batches: Iterable[dict[str, jax.Array]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Any]:
    """Returns cosines of the class and distillation tokens from input to heads (section 4), averaged over images.

    Returns:
      learned: of the two parameters (the paper's 0.06); with_position: with position embeddings, the first block's input;
      after_block: a list, one per block (the paper's 0.93 is the last); after_norm: after the final LayerNorm, the heads'
      input; images: their number.

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
    """Float32[2 + blocks], summed over the images where `mask` is True."""
    activations = inspect(model, variables, images)
    by_layer = jnp.stack([cosine(x[:, 0], x[:, 1]) for x in (*activations.tokens, activations.normed)])
    return jnp.sum(jnp.where(mask, by_layer, 0.0), axis=1)


def position_norms(model: nn.Module, variables: Any) -> np.ndarray:
    """Returns the l2 norm of each patch's position embedding, float32[rows, columns]."""
    patches = np.asarray(variables["params"]["pos_embed"])[0, num_prefix_tokens(model) :]
    side = math.isqrt(len(patches))
    return np.linalg.norm(patches, axis=-1).reshape(side, side)


def at_resolution(
    model: nn.Module, variables: Any, image_size: int, *, method: str
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model for images of `image_size` pixels and its variables, with the position embedding resized (section 6).

    method: "bicubic" (the paper's, because it nearly keeps the norms) or "bilinear" (which reduces them). Raises ValueError
    unless the patch size divides `image_size`.
    """
    other = model.clone(image_size=image_size)
    return other, resize_variables(other, variables, method)


class AttentionMaps(NamedTuple):
    """Attention in B images, for P prefix tokens (the class token, then the distillation token) and a grid of h x w patches.

    maps: float32[B, L, H, P, h, w]: the weight that a prefix token gives each patch, by block and head. The rest up to a sum of 1
    goes to the prefix tokens.
    rollout: float32[B, P, h, w]: see `rollout`.
    """

    maps: jax.Array
    rollout: jax.Array


def rollout(attention: Sequence[jax.Array]) -> jax.Array:
    """Attention rollout (Abnar & Zuidema 2020) of the blocks' weights float32[B, H, N, N], first block first: float32[B, N, N].

    Each block's weights are averaged over the heads and, for the residual connection, with the identity: 0.5 A + 0.5 I, whose
    rows are rescaled to sum to 1; the matrices are multiplied, the last block leftmost. A row estimates how much of each input
    token reaches a token after the last block.
    """
    identity = jnp.eye(attention[0].shape[-1])
    result = jnp.broadcast_to(identity, (attention[0].shape[0], *identity.shape))
    for weights in attention:
        mixed = 0.5 * jnp.mean(weights, axis=1) + 0.5 * identity
        result = (mixed / jnp.sum(mixed, axis=-1, keepdims=True)) @ result
    return result


@functools.partial(jax.jit, static_argnums=0)
def attention_maps(model: nn.Module, variables: Any, images: jax.Array) -> AttentionMaps:
    """Returns the maps of normalised float[B, H, W, 3] images. Raises ValueError for a model that is not a transformer."""
    attention = inspect(model, variables, images).attention
    prefix = num_prefix_tokens(model)
    to_patches = jnp.stack([weights[:, :, :prefix, prefix:] for weights in attention], axis=1)
    side = math.isqrt(to_patches.shape[-1])
    return AttentionMaps(
        rearrange(to_patches, "b l heads p (h w) -> b l heads p h w", h=side),
        rearrange(rollout(attention)[:, :prefix, prefix:], "b p (h w) -> b p h w", h=side),
    )
