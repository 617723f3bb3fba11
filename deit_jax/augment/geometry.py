"""Geometric operations: horizontal flips of a batch, and Pillow's affine maps of one planar uint8 image [C, H, W].

The maps reproduce `PIL.Image.transform(size, AFFINE, matrix, BICUBIC, fillcolor)`: the matrix maps output to input
coordinates, pixel centres lie at .5, a pixel whose source lies outside the image gets the fill colour, taps are clamped
to the border, the cubic has a = -1 (Pillow's resize uses -0.5), and the result is truncated, not rounded. Pillow computes
in double, here it is float32: about one pixel in 10 000 differs, by one grey level. Planes come first because the
innermost loops then run along rows: three times as fast on a CPU.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange


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


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix float32[6] of a rotation about the centre, counter-clockwise, as `PIL.Image.rotate`."""
    angle = -jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    c, s = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack([c, s, x - c * x - s * y, -s, c, y + s * x - c * y])


def shearing_x(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix float32[6] of a horizontal shear: x moves by factor * y."""
    return _matrix(1, factor, 0, 0, 1, 0)


def shearing_y(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix float32[6] of a vertical shear: y moves by factor * x."""
    return _matrix(1, 0, 0, factor, 1, 0)


def translation_x(fraction: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix float32[6] of a shift by a fraction of the width; positive moves the content to the left."""
    return _matrix(1, 0, fraction * width, 0, 1, 0)


def translation_y(fraction: jax.Array, height: int, width: int) -> jax.Array:
    """Matrix float32[6] of a shift by a fraction of the height; positive moves the content up."""
    return _matrix(1, 0, 0, 0, 1, fraction * height)


def rotate(image: jax.Array, degrees: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Rotates one uint8[3, H, W] image about its centre, counter-clockwise; see `warp` for `fill`."""
    return warp(image, rotation(degrees, *image.shape[1:]), fill)


def shear_x(image: jax.Array, factor: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shears one uint8[3, H, W] image horizontally; see `warp` for `fill`."""
    return warp(image, shearing_x(factor, *image.shape[1:]), fill)


def shear_y(image: jax.Array, factor: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shears one uint8[3, H, W] image vertically; see `warp` for `fill`."""
    return warp(image, shearing_y(factor, *image.shape[1:]), fill)


def translate_x(image: jax.Array, fraction: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shifts one uint8[3, H, W] image to the left by a fraction of its width; see `warp` for `fill`."""
    return warp(image, translation_x(fraction, *image.shape[1:]), fill)


def translate_y(image: jax.Array, fraction: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Shifts one uint8[3, H, W] image up by a fraction of its height; see `warp` for `fill`."""
    return warp(image, translation_y(fraction, *image.shape[1:]), fill)


def warp(image: jax.Array, matrix: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Bicubic affine map of one image, after Pillow's `ImagingGenericTransform`.

    Args:
        image: uint8[C, H, W].
        matrix: float32[6], (a, b, c, d, e, f): output (x, y) reads the input at (a x + b y + c, d x + e y + f).
        fill: C grey levels for pixels whose source lies outside the image.

    Returns:
        uint8[C, H, W].
    """
    _, height, width = image.shape
    column, du, inside_x = _source(matrix[:3], height, width, width)
    row, dv, inside_y = _source(matrix[3:], height, width, height)
    # One gather of 4 C words a pixel: a gather for each of the 16 C taps is several times slower.
    table = _neighbourhoods(image)[((row + 1) * (width + 1) + column + 1).reshape(-1)]
    words = rearrange(table, "(h w) (k c) -> k c h w", h=height, k=4)
    taps = [((words >> (8 * k)) & 255).astype(jnp.float32) for k in range(4)]
    values = jnp.clip(_cubic(*_cubic(*taps, du), dv), 0, 255).astype(jnp.uint8)  # truncated, as in Pillow
    return jnp.where(inside_x & inside_y, values, jnp.asarray(fill, jnp.uint8)[:, None, None])


def _source(coefficients: jax.Array, height: int, width: int, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where every output pixel reads along one axis: (second of the four taps, how far past it, whether inside).

    The coefficients are split in two so that the large part is exact in float32 (for images up to 1024 pixels): plain
    float32 is off by 1e-5 pixels, and a pixel at the border then gets the fill colour where Pillow reads the image.
    """
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    a, b, c = coarse = jnp.round(coefficients * 2**12) / 2**12
    exact = a * x + b * y + c
    a, b, c = coefficients - coarse
    rest = a * x + b * y + c
    tap = jnp.floor(exact + rest - 0.5)
    inside = (exact + rest >= 0) & (exact + rest < size)
    return jnp.clip(tap, -1, size - 1).astype(jnp.int32), exact - 0.5 - tap + rest, inside


def _neighbourhoods(image: jax.Array) -> jax.Array:
    """Table uint32[(H+1)(W+1), 4C]: the 4 x 4 taps around a pixel, the four of a row and channel packed in one word.

    Rows and columns start at -1, the lowest second tap that a pixel inside the image has.
    """
    _, height, width = image.shape
    padded = jnp.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge").astype(jnp.uint32)
    words = sum(padded[:, :, k : k + width + 1] << (8 * k) for k in range(4))
    lines = jnp.stack([words[:, k : k + height + 1] for k in range(4)])
    return rearrange(lines, "k c h w -> (h w) (k c)")


def _cubic(v1, v2, v3, v4, d):
    """Pillow's cubic through four taps, d of the way from the second to the third; exact where all taps are equal."""
    return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (-v1 + v2 - v3 + v4)))


def _matrix(*entries) -> jax.Array:
    return jnp.stack([jnp.asarray(entry, jnp.float32) for entry in entries])
