"""Conversions of a transformer's parameters: stacked or separate blocks, and position embeddings for other image sizes."""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

_BLOCK = re.compile(r"blocks_(\d+)")


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Turns blocks_0/..., blocks_1/... into blocks/... with a new first axis for the block; keeps other parameters."""
    blocks = {int(match[1]): tree for name, tree in params.items() if (match := _BLOCK.fullmatch(name))}
    rest = {name: tree for name, tree in params.items() if not _BLOCK.fullmatch(name)}
    if not blocks:
        return rest
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[i] for i in range(len(blocks))))
    return rest | {"blocks": stacked}


def unstack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_blocks`."""
    if "blocks" not in params:
        return dict(params)
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return rest | {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}


def stacked_for(model: nn.Module, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with separate blocks as `model` keeps them: stacked if it scans its blocks."""
    return stack_blocks(params) if getattr(model, "scan_blocks", False) else params


def resize_position_embedding(
    pos_embed: jax.Array | np.ndarray, grid: tuple[int, int], *, num_prefix_tokens: int, method: str = "bicubic"
) -> jax.Array:
    """Resizes `pos_embed` float32[1, prefix + n*n, D] to `grid` = (rows, columns): float32[1, prefix + rows*columns, D].

    Keeps the embeddings of the class and distillation tokens. "bicubic" is the reference's: PyTorch's kernel (a = -0.75), edges
    clamped, no antialiasing; an exact identity at equal size. "bilinear" exists for the paper's comparison (section 6).

    Raises:
      ValueError: the patch part is not a square grid (e.g. a plain checkpoint given as a distilled one), or the method is
        unknown.
    """
    methods = {"bicubic": jax.image.ResizeMethod.CUBIC_PYTORCH, "bilinear": jax.image.ResizeMethod.LINEAR}
    if method not in methods:
        raise ValueError(f"method={method!r} is not one of {', '.join(methods)}")
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    side = round(patches.shape[1] ** 0.5)
    if side < 1 or side * side != patches.shape[1]:
        raise ValueError(
            f"a position embedding of {pos_embed.shape[1]} tokens has no square grid after {num_prefix_tokens} prefix token(s)"
        )
    if (side, side) == tuple(grid):
        return jnp.asarray(pos_embed)
    patches = rearrange(patches, "1 (h w) d -> h w d", h=side)
    patches = jax.image.resize(patches, (*grid, patches.shape[-1]), methods[method], antialias=False)
    return jnp.concatenate([prefix, rearrange(patches, "h w d -> 1 (h w) d")], axis=1)
