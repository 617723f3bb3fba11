"""Dropout and stochastic depth, drawn per image.

Each image's draw is keyed by its position in the global batch, so that it does not depend on how the batch is split into
microbatches (`train.accumulation_steps`): that is why models take `positions`. flax's nn.Dropout would not depend on the devices
either, because JAX's random bits are those of the global array.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

RNG_NAME = "dropout"  # the one random stream that models use: apply(..., rngs={"dropout": key})
DIVISIONS = ("compute", "float32")


class Dropout(nn.Module):
    """Inverted dropout of x, float[B, ...]; identity when `train` is False or `rate` is 0.

    With `whole_images` the draw is one per image: stochastic depth (Huang et al. 2016) as timm's DropPath, in which the kept
    branches are divided by the keep probability. A rate that is an array is not checked.

    division: the type in which what is kept is divided by the keep probability, one of `DIVISIONS`. "float32" is exact to x's
    type, as PyTorch is; "compute", x's own type, rounds the probability as well: 0.4 % at most in bfloat16.
    """

    rate: float | jax.Array
    whole_images: bool = False
    division: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rate, jax.Array) and not 0 <= self.rate < 1:
            raise ValueError(f"a dropout or stochastic depth rate must be at least 0 and below 1, not {self.rate}")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, positions: jax.Array | None = None) -> jax.Array:
        """positions: int32[B], the images' positions in the global batch; None: 0 to B-1."""
        if not train or (not isinstance(self.rate, jax.Array) and self.rate == 0.0):
            return x
        keep = 1.0 - self.rate
        positions = jnp.arange(x.shape[0]) if positions is None else positions
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self.make_rng(RNG_NAME), positions)
        shape = (1,) * (x.ndim - 1) if self.whole_images else x.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(keys)
        dtype = x.dtype if self.division == "compute" else jnp.promote_types(x.dtype, jnp.float32)
        scaled = (x.astype(dtype) / jnp.asarray(keep, dtype)).astype(x.dtype)
        return jnp.where(kept, scaled, jnp.zeros_like(x))
