"""Shears and translations as shifts of whole lines, on one planar uint8 image [C, H, W].

A horizontal shear or shift moves each row by its own amount: a whole number of pixels, and a fraction that is constant along the
row. So no pixel is gathered individually, which is slow on a TPU, and the cubic has one dimension. The results equal those of
`warping.warp`, and are slightly closer to Pillow's.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from deit_jax.augment.warping import cubic, halves


def shift_rows(
    image: jax.Array, slope: jax.Array, offset: jax.Array, fill: Sequence[int], roll: bool = False
) -> jax.Array:
    """Output (x, y) of uint8[C, H, W], C at most 4, reads the input at (x + slope * y + offset, y), in Pillow's coordinates.

    Args:
        image: uint8[C, H, W].
        slope: float32[].
        offset: float32[], in pixels.
        fill: C gray levels for pixels whose source lies outside the image.
        roll: how rows are shifted by whole pixels, with the same result: True in log2(W) steps, each of which rolls the image for
            some of the rows (TPU); False by a slice per row (CPU).
    """
    return _shift(image, slope, offset, fill, roll, axis=1)


def shift_columns(
    image: jax.Array, slope: jax.Array, offset: jax.Array, fill: Sequence[int], roll: bool = False
) -> jax.Array:
    """Output (x, y) reads the input at (x, y + slope * x + offset); see `shift_rows` for the arguments."""
    if not roll:  # slicing columns is slow
        return _shift(image.swapaxes(1, 2), slope, offset, fill, roll, axis=1).swapaxes(1, 2)
    return _shift(image, slope, offset, fill, roll, axis=0)


def _shift(
    image: jax.Array, slope: jax.Array, offset: jax.Array, fill: Sequence[int], roll: bool, axis: int
) -> jax.Array:
    """Shifts the lines of uint8[C, H, W] that run along `axis` of each plane."""
    length, lines = image.shape[1 + axis], image.shape[2 - axis]
    whole, fraction, inside = _shifts(slope, offset, lines, length)
    if axis == 0:
        inside, fraction = inside.T, fraction[None]
    else:
        fraction = fraction[:, None]
    packed = functools.reduce(jnp.add, (channel.astype(jnp.uint32) << (8 * k) for k, channel in enumerate(image)))
    shifted = _roll_lines(packed, whole, axis) if roll else _slice_rows(packed, whole)
    channels = []
    for k, level in enumerate(fill):
        levels = ((shifted >> (8 * k)) & 255).astype(jnp.float32)
        taps = [jax.lax.slice_in_dim(levels, tap, tap + length, axis=axis) for tap in range(4)]
        values = jnp.clip(cubic(taps, fraction), 0, 255).astype(jnp.uint8)
        channels.append(jnp.where(inside, values, jnp.uint8(level)))
    return jnp.stack(channels)


def _shifts(slope: jax.Array, offset: jax.Array, lines: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each line's shift in whole pixels (int32[lines]), the remaining fraction (float32), and which pixels are inside."""
    place = jnp.arange(lines, dtype=jnp.float32) + 0.5
    # In two parts, the first of which is exact: a single sum would lose the fraction's last bits.
    (slope, slope_rest), (offset, offset_rest) = halves(slope), halves(offset)
    exact, rest = slope * place + offset, slope_rest * place + offset_rest
    whole = jnp.floor(exact + rest)
    source = jnp.arange(length, dtype=jnp.float32) + 0.5 + exact[:, None] + rest[:, None]
    # A line that is moved out of the image entirely shows none of it, so the distance is clipped.
    moved = jnp.clip(whole, -length - 1, length + 1).astype(jnp.int32)
    return moved, exact - whole + rest, (source >= 0) & (source < length)


def _slice_rows(lines: jax.Array, whole: jax.Array) -> jax.Array:
    """[L, N] to [L, N + 3]: element i of a line is the old element i - 1 + whole, with repeated ends."""
    length = lines.shape[1]
    padded = jnp.pad(lines, ((0, 0), (length + 2, length + 3)), mode="edge")
    return jax.vmap(lambda line, start: jax.lax.dynamic_slice(line, (start,), (length + 3,)))(
        padded, whole + length + 1
    )


def _roll_lines(lines: jax.Array, whole: jax.Array, axis: int) -> jax.Array:
    """The same along either axis, except for pixels whose source lies outside, where the result does not matter."""
    length = lines.shape[axis]
    # Taps reach two pixels past an end. Pixels that wrap around get the fill color.
    size = length + 4
    rolled = jnp.pad(lines, [(2, 2) if k == axis else (0, 0) for k in range(2)], mode="edge")
    places = jnp.expand_dims((whole + 1) % size, axis)
    for bit in range((size - 1).bit_length()):
        far, near = (jax.lax.slice_in_dim(rolled, *ends, axis=axis) for ends in ((1 << bit, size), (0, 1 << bit)))
        rolled = jnp.where((places >> bit) & 1 > 0, jnp.concatenate([far, near], axis), rolled)
    return jax.lax.slice_in_dim(rolled, 0, length + 3, axis=axis)
