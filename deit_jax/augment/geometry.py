"""Horizontal flips of a batch, and Pillow's rotation, shears and translations of one planar uint8 image [C, H, W].

They are bicubic and as Pillow makes them, to within one grey level: `warping` and `shifts` say how.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deit_jax.augment.shifts import shift_columns, shift_rows
from deit_jax.augment.warping import rotation, warp


def flip_horizontally(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Mirrors each image left to right with the given probability.

    Args:
        keys: keys[B], one an image.
        images: [B, H, W, C] of any dtype.
        probability: in [0, 1].

    Returns:
        [B, H, W, C].
    """
    flipped = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def rotate(image: jax.Array, degrees: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Rotates one uint8[C, H, W] image about its centre, counter-clockwise.

    `fill` has C grey levels for the pixels that the image leaves, here and below.
    """
    return warp(image, rotation(degrees, *image.shape[1:]), fill)


def shear_x(image: jax.Array, factor: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shears one uint8[C, H, W] image horizontally: output (x, y) is input (x + factor * y, y)."""
    return shift_rows(image, factor, jnp.float32(0), fill)


def shear_y(image: jax.Array, factor: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shears one uint8[C, H, W] image vertically: output (x, y) is input (x, y + factor * x)."""
    return shift_columns(image, factor, jnp.float32(0), fill)


def translate_x(image: jax.Array, fraction: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shifts one uint8[C, H, W] image to the left by a fraction of its width."""
    return shift_rows(image, jnp.float32(0), fraction * image.shape[2], fill)


def translate_y(image: jax.Array, fraction: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shifts one uint8[C, H, W] image up by a fraction of its height."""
    return shift_columns(image, jnp.float32(0), fraction * image.shape[1], fill)
