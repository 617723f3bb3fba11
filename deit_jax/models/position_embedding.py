"""Position embeddings for another image size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


def resize_position_embedding(
    pos_embed: jax.Array | np.ndarray, grid: tuple[int, int], *, num_prefix_tokens: int, method: str = "bicubic"
) -> jax.Array:
    """`pos_embed` float32[1, prefix + n*n, D] resized to `grid` = (rows, columns): float32[1, prefix + rows*columns, D].

    The class and distillation tokens' embeddings are kept. "bicubic" is the reference's: PyTorch's kernel (a = -0.75), edges
    clamped, no antialiasing; an exact identity at equal size. "bilinear" is there for the paper's comparison (section 6).

    Raises:
      ValueError: the patch part is no square grid (a plain checkpoint given as a distilled one, say), or the method is unknown.
    """
    methods = {"bicubic": jax.image.ResizeMethod.CUBIC_PYTORCH, "bilinear": jax.image.ResizeMethod.LINEAR}
    if method not in methods:
        raise ValueError(f"method={method!r} is not one of {', '.join(methods)}")
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    side = round(patches.shape[1] ** 0.5)
    if side < 1 or side * side != patches.shape[1]:
        raise ValueError(
            f"a position embedding of {pos_embed.shape[1]} tokens has no square grid behind {num_prefix_tokens} prefix token(s)"
        )
    if (side, side) == tuple(grid):
        return jnp.asarray(pos_embed)
    patches = rearrange(patches, "1 (h w) d -> h w d", h=side)
    patches = jax.image.resize(patches, (*grid, patches.shape[-1]), methods[method], antialias=False)
    return jnp.concatenate([prefix, rearrange(patches, "h w d -> 1 (h w) d")], axis=1)
