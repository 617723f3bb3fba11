"""Pillow's antialiased bicubic resize, bit for bit, several times faster.

Resizing is the largest part of a crop, and Pillow's loops are scalar. `resizing_kernel.py` computes the same integer sums in
vector registers with numba. Without numba, Pillow resizes, more slowly. Windows much smaller than the whole result are then
computed in NumPy, because Pillow would compute the whole result. The pixels are identical.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy import int32
from PIL import Image

BITS = 22  # fractional bits of the weights
_TILE = 1 << 20  # products in memory at a time

_MAX_WIDTH = 1 << 16  # approximate number of pixels of an image row that the kernel processes at a time
_MAX_PILLOW_PIXELS = 1 << 24  # maximum size of the image that Pillow may compute when only a window is needed


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    box: Box | None = None,
    window: Box | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes an image, or the part of it in `box`, like `Image.crop(box).resize((width, height), Image.BICUBIC)`.

    Both passes round to uint8. Their order follows Pillow 13 (see `vertical_first`), even if an older Pillow is installed.

    Args:
        image: uint8 `[H, W, 3]`.
        height, width: pixels of the result.
        box: a non-empty part of the image; None: the whole image.
        window: a non-empty part of the result; only this part is computed, with the same bits, and takes memory. None: all.
        out: a C-contiguous array to write the result to; None: a new one.

    Returns uint8 `[height, width, 3]`, or of the window's size: `out` if given; otherwise a view of `image` if no resizing is
    needed.
    """
    box = box or Box(0, 0, *image.shape[:2])
    window = window or Box(0, 0, height, width)
    if box[2:] == (height, width):
        return _in(out, _cut(_cut(image, box), window))
    kernel = _kernel()
    if kernel is None:
        return _in(out, _resize_by_pillow(_cut(image, box), height, width, window))
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    first = vertical_first(box.height, box.width, height, width)

    def compute(left: int, columns: int, part: np.ndarray | None = None) -> np.ndarray:
        part = np.empty((window.height, columns, 3), np.uint8) if part is None else part
        kernel(rows, *box, height, width, window.top, left, first, part.reshape(window.height, -1))
        return part

    # The kernel copies several rows at a time, so it gets only some columns of a very wide image.
    step = max(1, _MAX_WIDTH * width // box.width)
    if step >= window.width:
        return compute(window.left, window.width, out)
    end = window.left + window.width
    parts = [compute(left, min(step, end - left)) for left in range(window.left, end, step)]
    return np.concatenate(parts, axis=1, out=out)


def _in(out: np.ndarray | None, result: np.ndarray) -> np.ndarray:
    """Returns `result`, copied to `out` if given."""
    if out is None:
        return result
    out[:] = result
    return out


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _resize_by_pillow(image: np.ndarray, height: int, width: int, window: Box) -> np.ndarray:
    if height * width <= _MAX_PILLOW_PIXELS:
        return _cut(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)), window)
    first = vertical_first(image.shape[0], image.shape[1], height, width)
    top, left, rows, columns = window
    return resize_window(image, height, width, top, left, rows, columns, vertical_first=first)


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 starts with the vertical pass (earlier versions never do), as found by comparing pixels.

    The order affects the last bit or two of a level, because each pass rounds.
    """
    return height - new_height > max(0, 2 * (width - new_width))


@functools.cache
def _kernel() -> Callable[..., None] | None:
    try:
        from deit_jax.data.resizing_kernel import resize_rows  # imported here because numba takes half a second
    except ImportError as error:
        warnings.warn(f"numba cannot be imported ({error}): Pillow resizes, more slowly", stacklevel=2)
        return None
    return resize_rows


def taps(size: int, new_size: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the input pixels of the output pixels [start, start + count) when `size` pixels are resized to `new_size`.

    The result is int64[count, 2], the first input pixel and the number of pixels, and int32[count, T], their weights and zeros;
    T is a multiple of 4. Follows Pillow's order of operations, separately for every output pixel.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)  # antialiasing: the filter widens when the image shrinks
    support = 2.0 * stretch
    longest = (math.ceil(support) * 2 + 4) // 4 * 4
    where, weights = np.zeros((count, 2), np.int64), np.zeros((count, longest), np.int32)
    exact = np.zeros(longest, np.float64)
    for i in range(count):
        center = (start + i + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        length = min(int(center + support + 0.5), size) - first
        total = 0.0
        for t in range(length):
            x = abs((t + first - center + 0.5) * (1.0 / stretch))
            weight = 0.0
            if x < 1.0:
                weight = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
            elif x < 2.0:
                weight = (((x - 5) * x + 8) * x - 4) * -0.5
            exact[t] = weight
            total += weight
        for t in range(length):
            weight = exact[t] / total if total != 0.0 else exact[t]
            weights[i, t] = int32(int((-0.5 if weight < 0 else 0.5) + weight * (1 << BITS)))
        where[i, 0], where[i, 1] = first, length
    return where, weights


def resize_window(
    image: np.ndarray, height: int, width: int, top: int, left: int, rows: int, columns: int, *, vertical_first: bool
) -> np.ndarray:
    """Returns the window [top, top + rows) x [left, left + columns) of an image resized to height x width, in NumPy.

    image: uint8[H, W, 3]. The result is uint8[rows, columns, 3], as from `resizing_kernel.resize_rows`.
    """
    # Keep only the input of the window: first pixels and ends ascend.
    (where_y, weights_y), (where_x, weights_x) = (
        (np.array([[start + i, 1] for i in range(count)]), None)
        if size == new_size
        else taps(size, new_size, start, count)
        for size, new_size, start, count in (
            (image.shape[0], height, top, rows),
            (image.shape[1], width, left, columns),
        )
    )
    image = image[where_y[0, 0] : where_y[-1].sum(), where_x[0, 0] : where_x[-1].sum()]
    passes = [(0, where_y, weights_y), (1, where_x, weights_x)]
    for axis, where, weights in passes if vertical_first else reversed(passes):
        if weights is not None:
            image = _resize_axis(image, axis, where - [where[0, 0], 0], weights)
    return image


def _resize_axis(image: np.ndarray, axis: int, where: np.ndarray, weights: np.ndarray) -> np.ndarray:
    image = np.moveaxis(image, axis, 0)
    out = np.empty((len(where), *image.shape[1:]), np.uint8)
    for (first, length), weight, pixel in zip(where, weights, out, strict=True):
        total = np.full(pixel.shape, 1 << (BITS - 1), np.int32)
        step = max(1, _TILE // pixel.size)
        for begin in range(0, length, step):
            end = min(begin + step, length)
            total += np.tensordot(weight[begin:end], image[first + begin : first + end].astype(np.int32), axes=(0, 0))
        pixel[:] = np.clip(total >> BITS, 0, 255)
    return np.moveaxis(out, 0, axis)
