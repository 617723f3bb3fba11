"""Colour operations: normalisation of a batch, and Pillow's operations on one planar uint8 RGB image [3, H, W].

The operations reproduce Pillow's ImageOps and ImageEnhance bit for bit, save `auto_contrast` (at most one grey level).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x / 255 - mean) / std.

    Args:
        images: uint8[..., C].
        mean: C values, of pixels in [0, 1].
        std: C values, of pixels in [0, 1].

    Returns:
        float32[..., C].
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


def invert(image: jax.Array) -> jax.Array:
    """255 - x, on uint8[3, H, W]."""
    return 255 - image


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` bits (int in 0..8) of uint8[3, H, W]; 0 bits give a black image.

    Pillow 13 refuses 0 bits, which RandAugment asks for at magnitude 10; earlier versions return black.
    """
    mask = (0xFF00 >> jnp.asarray(bits, jnp.int32)) & 0xFF
    return image & mask.astype(jnp.uint8)


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values of uint8[3, H, W] at or above `threshold` (int in 0..256)."""
    # 256 does not fit uint8.
    return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image: jax.Array, add: jax.Array, threshold: int = 128) -> jax.Array:
    """Adds `add` (int >= 0), capped at 255, to the values of uint8[3, H, W] below `threshold`."""
    values = image.astype(jnp.int32)
    return jnp.where(values < threshold, jnp.minimum(values + add, 255), values).astype(jnp.uint8)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Saturation: blends uint8[3, H, W] with its grey version; factor 0 is grey, 1 the image."""
    return _blend(_luminance(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends uint8[3, H, W] with its mean grey level; factor 0 is uniform grey, 1 the image."""
    grey = _luminance(image)
    mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)  # rounded half up
    return _blend(mean, image, factor)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies uint8[3, H, W] by factor; 0 is black, 1 the image."""
    return _blend(jnp.int32(0), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends uint8[3, H, W] with its smoothed version; factor 0 is smooth, 1 the image, above 1 sharper.

    Smooth is the 3 x 3 kernel [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay as they are.
    """
    _, height, width = image.shape
    values = image.astype(jnp.int32)
    lines = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:] + 4 * values[:, 1:-1, 1:-1]
    rounded = jax.lax.div(2 * total + 13, 26)  # total / 13; nothing is negative, so no floor is needed
    smooth = jnp.pad(rounded, ((0, 0), (1, 1), (1, 1)))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return _blend(jnp.where(border, values, smooth), image, factor)


def auto_contrast(image: jax.Array) -> jax.Array:
    """Stretches each channel of uint8[3, H, W] to 0..255; a channel of one value stays as it is.

    Pillow rounds in double and is now and then one level darker (its brightest level is often 254).
    """
    low, high = (f(image, (1, 2), keepdims=True).astype(jnp.int32) for f in (jnp.min, jnp.max))
    # The half keeps a quotient that is whole from falling below it in float32.
    scaled = (255 * (image - low) + 0.5).astype(jnp.float32) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.floor(scaled).astype(jnp.uint8), image)


def equalize(image: jax.Array) -> jax.Array:
    """Equalises each channel's histogram of uint8[3, H, W]."""
    values = image.astype(jnp.int32)
    offset = 256 * jnp.arange(3)[:, None, None]
    histogram = jnp.zeros(3 * 256, jnp.int32).at[values + offset].add(1).reshape(3, 256)
    last = jnp.max(values, (1, 2))
    step = (jnp.sum(histogram, 1) - jnp.take_along_axis(histogram, last[:, None], 1)[:, 0]) // 255
    before = jnp.cumsum(histogram, 1) - histogram
    table = (step[:, None] // 2 + before) // jnp.maximum(step, 1)[:, None]
    table = jnp.where(step[:, None] == 0, jnp.arange(256), jnp.clip(table, 0, 255)).astype(jnp.uint8)
    return table.reshape(-1)[values + offset]


def _luminance(image: jax.Array) -> jax.Array:
    """Pillow's RGB to L: int32[H, W]."""
    red, green, blue = image.astype(jnp.int32)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend: base + factor * (image - base) in float32, clipped and truncated."""
    values = base.astype(jnp.float32) + factor * (image.astype(jnp.int32) - base).astype(jnp.float32)
    return jnp.clip(values, 0, 255).astype(jnp.uint8)
