"""What happens inside a transformer: its tokens after every block and its attention, computed again from its parameters.

The models themselves keep nothing of it, so that training pays nothing, and compute of the last block only what their heads
read. Here all tokens of all blocks are computed, in float32, whatever attention, scan or recomputation the model is built with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from deit_jax.models.layer_norm import LayerNorm
from deit_jax.models.stacking import unstack_blocks
from deit_jax.models.vit import Block, PatchEmbed, VisionTransformer


class Inspection(NamedTuple):
    """The inside of a transformer of L blocks, H heads and N tokens of width D, for B images. Under jit the unused costs nothing.

    tokens: L + 1 arrays float32[B, N, D]: what enters the first block (position embedding added), then each block's result.
    normed: float32[B, N, D]: the last of them after the final LayerNorm, of which the heads read the first tokens.
    attention: L arrays float32[B, H, N, N]: each block's weights; a row is a query and sums to 1.
    """

    tokens: tuple[jax.Array, ...]
    normed: jax.Array
    attention: tuple[jax.Array, ...]


def can_inspect(model: nn.Module) -> bool:
    """Whether `inspect` knows the inside of a model: that of this package's transformers, with class token and patches."""
    return isinstance(model, VisionTransformer)


def inspect(model: nn.Module, variables: dict[str, Any], images: jax.Array) -> Inspection:
    """The inside of `model` in evaluation for normalised float[B, H, W, 3] images. Raises ValueError unless `can_inspect`."""
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
        inside = params[f"blocks_{i}"]
        attention.append(attention_weights(inside, x, model.num_heads))
        x = _apply(block, inside, x, 0.0, None, False, None)
        tokens.append(x)
    return Inspection(tuple(tokens), _apply(LayerNorm(), params["norm"], x), tuple(attention))


def _apply(module: nn.Module, params: Any, *arguments: Any) -> jax.Array:
    answer = module.apply({"params": params}, *arguments)
    assert isinstance(answer, jax.Array)
    return answer


def attention_weights(block: dict[str, Any], x: jax.Array, num_heads: int) -> jax.Array:
    """Softmax of queries and keys float32[B, H, N, N] from a block's parameters (norm1, attn) and its input float32[B, N, D]."""
    width = x.shape[-1]
    y = _apply(LayerNorm(), block["norm1"], x)
    qkv = _apply(nn.Dense(3 * width), block["attn"]["qkv"], y)
    q, k, _ = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q * (width // num_heads) ** -0.5, k)
    return jax.nn.softmax(scores, axis=-1)
