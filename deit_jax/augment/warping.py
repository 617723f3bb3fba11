"""Affine maps of one planar uint8 image [C, H, W], as in Pillow.

The maps reproduce `PIL.Image.transform(size, AFFINE, matrix, BICUBIC, fillcolor)`: the matrix maps output to input coordinates,
pixel centers lie at .5, a pixel whose source lies outside the image gets the fill color, taps are clamped to the border, the
cubic has a = -1 (Pillow's resize uses -0.5), and the result is truncated, not rounded. Pillow computes in double precision, this
module in float32: about one pixel in 15 000 differs, by one gray level. Planes come first so that the innermost loops run along
rows, which is three times as fast on a CPU.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

_WINDOW_MARGIN = 4  # pixels beyond the distance of a window's outermost sources: four taps, minus one, plus rounding


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the matrix float32[6] of a counter-clockwise rotation about the center, as `PIL.Image.rotate`."""
    angle = -jnp.deg2rad(jnp.asarray(degrees, jnp.float32))
    c, s = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.stack([c, s, x - c * x - s * y, -s, c, y + s * x - c * y])


def warp(image: jax.Array, matrix: jax.Array, fill: Sequence[int]) -> jax.Array:
    """Applies a bicubic affine map to one image uint8[C, H, W] by a gather, as Pillow's `ImagingGenericTransform`.

    matrix: float32[6], (a, b, c, d, e, f): output (x, y) reads the input at (a x + b y + c, d x + e y + f). fill: C gray levels
    for pixels whose source lies outside the image.
    """
    _, height, width = image.shape
    column, du, inside_x = _source(matrix[:3], height, width, width)
    row, dv, inside_y = _source(matrix[3:], height, width, height)
    table = _neighborhoods(image)
    place = 3 * ((row + 1) * (width + 4) + column + 1)

    def block(rows: tuple[jax.Array, ...]) -> jax.Array:
        # One gather of 4 C words per pixel: a gather for each of the 16 C taps is several times slower.
        place, du, dv, inside = rows
        gathered = jax.lax.gather(
            table,
            place.reshape(-1, 1),
            jax.lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,)),
            slice_sizes=(12,),
            mode="promise_in_bounds",
        )
        words = rearrange(gathered, "(h w) (k c) -> k c h w", w=width, k=4)
        lines = [cubic([((word >> (8 * k)) & 255).astype(jnp.float32) for word in words], du) for k in range(4)]
        values = jnp.clip(cubic(lines, dv), 0, 255).astype(jnp.uint8)  # truncated, as in Pillow
        return jnp.where(inside, values, jnp.asarray(fill, jnp.uint8)[:, None, None])

    # In blocks, because the gathered data of all pixels does not fit a CPU's cache.
    blocks = next(n for n in (8, 7, 6, 5, 4, 3, 2, 1) if height % n == 0)
    rows = (rearrange(x, "(n h) w -> n h w", n=blocks) for x in (place, du, dv, inside_x & inside_y))
    return rearrange(jax.lax.map(block, tuple(rows)), "n c h w -> c (n h) w")


def warp_by_tiles(image: jax.Array, matrix: jax.Array, fill: Sequence[int], tile: int = 16) -> jax.Array:
    """`warp` without a gather, for TPUs: matrix products cut each tile's window out of the image and weight its pixels.

    For maps that do not shrink the image (rotations; shears by less than 0.4): a window holds the pixels that a rotated tile
    covers. It sums weights instead of differences, so about one pixel in 6 000 differs from Pillow's by one gray level (with
    `warp`, one in 15 000). tile: side of a tile in pixels.
    """
    _, height, width = image.shape
    rows, columns = -(-height // tile), -(-width // tile)

    def split(x: jax.Array) -> jax.Array:  # [rows * tile, columns * tile] to [tiles, pixels of a tile]
        return rearrange(x, "(r y) (c x) -> (r c) (y x)", y=tile, x=tile)

    def axis(coefficients: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns, for one input axis: each tile's window (0/1), each pixel's weights of its lines, whether pixels are inside."""
        tap, fraction, inside = (split(x) for x in _source(coefficients, rows * tile, columns * tile, size, clip=False))
        length = min(size, int((tile - 1) * 2**0.5) + 1 + _WINDOW_MARGIN)
        start = jnp.clip(jnp.min(tap, 1) - 1, 0, size - length)
        line = start[:, None] + jnp.arange(length)
        window = (line[:, :, None] == jnp.arange(size)).astype(jnp.bfloat16)  # [tiles, length, size]
        d = fraction
        weights = (d * (-1 + d * (2 - d)), 1 + d * d * (d - 2), d * (1 + d * (1 - d)), d * d * (d - 1))
        of_taps = (
            jnp.where(jnp.clip(tap - 1 + k, 0, size - 1)[..., None] == line[:, None], weights[k][..., None], 0)
            for k in range(4)
        )
        of_line = functools.reduce(jnp.add, of_taps)
        return window, of_line, inside  # of_line: float32[tiles, pixels, length]

    window_x, weights_x, inside_x = axis(matrix[:3], width)
    window_y, weights_y, inside_y = axis(matrix[3:], height)
    # Gray levels are exact in bfloat16, and a product with a 0/1 matrix copies them.
    windows = jnp.einsum("tih,chw->tciw", window_y, image.astype(jnp.bfloat16))
    windows = jnp.einsum("tciw,tjw->tcij", windows, window_x).astype(jnp.float32)
    lines = jnp.einsum("tpj,tcij->tcip", weights_x, windows, precision=jax.lax.Precision.HIGHEST)
    # The offset keeps a whole number from falling below itself through the rounding of the weights.
    values = jnp.einsum("tpi,tcip->ctp", weights_y, lines, precision=jax.lax.Precision.HIGHEST) + 2.0**-13
    values = jnp.clip(values, 0, 255).astype(jnp.uint8)
    values = jnp.where(inside_x & inside_y, values, jnp.asarray(fill, jnp.uint8)[:, None, None])
    joined = rearrange(values, "n (r c) (y x) -> n (r y) (c x)", r=rows, y=tile)
    return joined[:, :height, :width]


def cubic(taps: Sequence[jax.Array], d: jax.Array) -> jax.Array:
    """Evaluates Pillow's cubic through four taps at d between the second and the third; exact if all taps are equal."""
    v1, v2, v3, v4 = taps
    return v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (-v1 + v2 - v3 + v4)))


def halves(number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits a float32 into a multiple of 2^-12 and the remainder.

    Coordinates computed from the first part are exact in float32 (for images up to 1024 pixels). Plain float32 has an error of
    1e-5 pixels, so a pixel at the border may get the fill color although Pillow reads the image.
    """
    coarse = jnp.round(number * 2**12) / 2**12
    return coarse, number - coarse


def _source(
    coefficients: jax.Array, height: int, width: int, size: int, clip: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where each output pixel reads along one axis: (second of the four taps, distance past it, whether inside)."""
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5
    coarse, fine = halves(coefficients)
    a, b, c = coarse
    exact = a * x + b * y + c
    a, b, c = fine
    rest = a * x + b * y + c
    tap = jnp.floor(exact + rest - 0.5)
    inside = (exact + rest >= 0) & (exact + rest < size)
    fraction = exact - 0.5 - tap + rest
    return (jnp.clip(tap, -1, size - 1) if clip else tap).astype(jnp.int32), fraction, inside


def _neighborhoods(image: jax.Array) -> jax.Array:
    """Table uint32[(H+1)(W+4)C]: a word packs the four vertical taps of a position and channel; horizontal taps are consecutive.

    Rows start at -1, the lowest second tap of a pixel inside the image; columns start at -2, its first tap.
    """
    height = image.shape[1]
    padded = jnp.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge").astype(jnp.uint32)
    words = functools.reduce(jnp.add, (padded[:, k : k + height + 1] << (8 * k) for k in range(4)))
    return rearrange(words, "c h w -> (h w c)")
