"""Which input pixels make an output pixel of Pillow's 8-bit bicubic resize, and the same resize in NumPy.

`resizing_kernel.py` compiles `taps`. Where numba is missing, Pillow resizes; NumPy computes the windows that are far smaller than
the whole resized image, which Pillow would have to make.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import int32

BITS = 22  # of the weights' fraction
_TILE = 1 << 20  # products that NumPy holds at a time


def taps(size: int, new_size: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels of the output pixels [start, start + count), as `size` pixels become `new_size`.

    Returns int64[count, 2], the first input pixel and their number, and int32[count, T], their weights. All is computed in
    Pillow's order of operations, and every output pixel by itself.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)  # antialiasing: the filter widens when the image shrinks
    support = 2.0 * stretch
    longest = math.ceil(support) * 2 + 1
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
    """The window [top, top + rows) x [left, left + columns) of an image resized to height x width, in NumPy.

    image: uint8[H, W, 3]. Returns uint8[rows, columns, 3], as `resizing_kernel.resize_rows` computes it.
    """
    # Only the pixels that the window depends on: first pixels and ends ascend.
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
