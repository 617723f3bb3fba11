"""Color operations: normalisation of a batch, and Pillow's operations on one planar uint8 RGB image [3, H, W].

The operations reproduce Pillow's ImageOps and ImageEnhance bit for bit, except `auto_contrast` (off by at most one gray level).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: jax.Array | np.ndarray, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (x / 255 - mean) / std as float32[..., C]; images: uint8[..., C], mean and std: C values for pixels in [0, 1]."""
    center, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (jnp.asarray(images).astype(jnp.float32) / 255 - center) / scale


def invert(image: jax.Array) -> jax.Array:
    """255 - x, on uint8[3, H, W]."""
    return 255 - image


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` bits (int in 0..8) of uint8[3, H, W]; 0 bits give a black image.

    Pillow 13 rejects 0 bits, which RandAugment uses at magnitude 10; earlier versions return black.
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
    """Saturation: blends uint8[3, H, W] with its gray version; factor 0 is gray, 1 the image."""
    return blend(luminance(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends uint8[3, H, W] with its mean gray level; factor 0 is uniform gray, 1 the image."""
    return blend(mean_luminance(luminance(image)), image, factor)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies uint8[3, H, W] by factor; 0 is black, 1 the image."""
    return blend(jnp.int32(0), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends uint8[3, H, W] with its smoothed version; factor 0 is smooth, 1 the image, above 1 sharper."""
    return blend(smoothed(image), image, factor)


def smoothed(image: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter: uint8[..., H, W] to int32[..., H, W].

    The 3 x 3 kernel [1 1 1; 1 5 1; 1 1 1] / 13, rounded; border pixels stay unchanged.
    """
    height, width = image.shape[-2:]
    values = image.astype(jnp.int32)
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    lines = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * values
    # (2 total + 13) // 26; the quotient is at least 1 / 26 from an integer, so float32 is precise enough.
    smooth = ((2 * total + 13).astype(jnp.float32) * jnp.float32(1 / 26)).astype(jnp.int32)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    border = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return jnp.where(border, values, smooth)


def auto_contrast(image: jax.Array) -> jax.Array:
    """Stretches each channel of uint8[3, H, W] to 0..255; a constant channel stays unchanged.

    Pillow computes in double precision and is sometimes one level darker (its brightest level is often 254).
    """
    low, high = (f(image, (1, 2), keepdims=True).astype(jnp.int32) for f in (jnp.min, jnp.max))
    # Adding 0.5 keeps a whole quotient from falling below it in float32.
    scaled = ((255 * (image - low)).astype(jnp.float32) + 0.5) / jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.floor(scaled).astype(jnp.uint8), image)


def equalize(image: jax.Array) -> jax.Array:
    """Equalizes each channel's histogram of uint8[3, H, W]."""
    # Flat indices without bounds checks: a check or a second index dimension is ten times slower on a CPU.
    bins = (image.astype(jnp.int32) + 256 * jnp.arange(3)[:, None, None]).reshape(-1)
    histogram = jnp.zeros(3 * 256, jnp.int32).at[bins].add(1, mode="promise_in_bounds").reshape(3, 256)

    def lookup(channel: tuple[jax.Array, jax.Array]) -> jax.Array:
        table, levels = channel
        return table.at[levels].get(mode="promise_in_bounds")

    # A loop, so that XLA does not recompute the table for every pixel.
    return jax.lax.map(lookup, (equalization_table(histogram), image.astype(jnp.int32)))


def equalize_by_nibbles(image: jax.Array) -> jax.Array:
    """`equalize` without gather or scatter, which are slow on accelerators: a level is two nibbles, each one-hot.

    The histogram and the table lookup are products with the one-hot matrices; both are exact.
    """
    levels = image.reshape(3, -1)
    nibbles = jnp.arange(16, dtype=jnp.uint8)
    # The long dimension comes last, where it fills the lanes.
    high = ((levels >> 4)[:, None] == nibbles[:, None]).astype(jnp.bfloat16)
    low = ((levels & 15)[:, None] == nibbles[:, None]).astype(jnp.bfloat16)
    histogram = jnp.einsum("cin,cjn->cij", high, low, preferred_element_type=jnp.float32)
    table = equalization_table(histogram.reshape(3, 256).astype(jnp.int32)).reshape(3, 16, 16)
    rows = jnp.einsum("cij,cin->cjn", table.astype(jnp.bfloat16), high, preferred_element_type=jnp.float32)
    equalized = jnp.sum(rows * low.astype(jnp.float32), 1)
    return equalized.astype(jnp.uint8).reshape(image.shape)


def equalization_table(histogram: jax.Array) -> jax.Array:
    """Maps each old level to the new one: uint8[C, 256] for the counts int32[C, 256]."""
    levels = jnp.arange(256)
    total = jnp.sum(histogram, 1)
    last = jnp.max(jnp.where(histogram > 0, levels, 0), 1)
    count_of_last = jnp.sum(jnp.where(levels == last[:, None], histogram, 0), 1)
    step = ((total - count_of_last) // 255)[:, None]
    before = jnp.cumsum(histogram, 1) - histogram
    table = (step // 2 + before) // jnp.maximum(step, 1)
    return jnp.where(step == 0, levels, jnp.clip(table, 0, 255)).astype(jnp.uint8)


def luminance(image: jax.Array) -> jax.Array:
    """Pillow's RGB to L: uint8[..., 3, H, W] to int32[..., H, W]."""
    red, green, blue = (image[..., c, :, :].astype(jnp.int32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def mean_luminance(gray: jax.Array) -> jax.Array:
    """Mean of int32[..., H, W] over the pixels, rounded half up: int32[...]. For up to 2000 x 2000 pixels."""
    pixels = gray.shape[-2] * gray.shape[-1]
    return (2 * jnp.sum(gray, (-2, -1)) + pixels) // (2 * pixels)


def blend(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's blend: base + factor * (image - base) in float32, clipped and truncated to uint8. base: int32."""
    values = base.astype(jnp.float32) + factor * (image.astype(jnp.int32) - base).astype(jnp.float32)
    return jnp.clip(values, 0, 255).astype(jnp.uint8)
