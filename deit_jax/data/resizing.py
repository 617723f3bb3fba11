"""Pillow's antialiased bicubic resize, to the bit, several times faster.

Resizing is the largest part of a crop and Pillow's loops are scalar. `resizing_kernel.py` computes the same sums of the same
integers in vector registers, through numba. Where numba cannot be had, Pillow itself resizes: the same pixels, more slowly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from deit_jax.data.resizing_taps import resize_window

_WIDEST = 1 << 16  # pixels of a row of the image that the kernel takes at a time, about
_MOST_PIXELS = 1 << 24  # that Pillow makes where only a window of them is asked for


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def resize(image: np.ndarray, height: int, width: int, box: Box | None = None, window: Box | None = None) -> np.ndarray:
    """Resizes an image, or the part of it in `box`, as `Image.crop(box).resize((width, height), Image.BICUBIC)` does.

    Both results are rounded to uint8 between the vertical and the horizontal pass; which comes first follows Pillow 13 (see
    `vertical_first`), also where an older Pillow, or none, is used for the rest.

    Args:
        image: uint8 `[H, W, 3]`.
        height: pixels of the result.
        width: pixels of the result.
        box: lies in the image and is not empty; None is the whole image.
        window: the part of the result that is returned, with the same bits; only this part is computed and takes memory. It lies
            in the result and is not empty. None is the whole result.

    Returns:
        uint8 `[height, width, 3]`, or of the window's size; a view of `image` if nothing is to be resized.
    """
    box = box or Box(0, 0, *image.shape[:2])
    window = window or Box(0, 0, height, width)
    if box[2:] == (height, width):
        return _cut(_cut(image, box), window)
    kernel = _kernel()
    if kernel is None:
        return _resize_by_pillow(_cut(image, box), height, width, window)
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    first = vertical_first(box.height, box.width, height, width)

    def compute(left: int, columns: int) -> np.ndarray:
        out = np.empty((window.height, columns, 3), np.uint8)
        kernel(rows, *box, height, width, window.top, left, first, out.reshape(window.height, -1))
        return out

    # The kernel lays rows side by side: of a very wide image only some columns at a time.
    step = max(1, _WIDEST * width // box.width)
    if step >= window.width:
        return compute(window.left, window.width)
    end = window.left + window.width
    return np.concatenate([compute(left, min(step, end - left)) for left in range(window.left, end, step)], axis=1)


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _resize_by_pillow(image: np.ndarray, height: int, width: int, window: Box) -> np.ndarray:
    if height * width <= _MOST_PIXELS:
        return _cut(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)), window)
    first = vertical_first(image.shape[0], image.shape[1], height, width)
    top, left, rows, columns = window
    return resize_window(image, height, width, top, left, rows, columns, vertical_first=first)


def vertical_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow 13 resizes the columns before the rows (earlier ones: never). Found by comparing pixels; it matters in the
    last bit or two of a level, because each pass is rounded.
    """
    return height - new_height > max(0, 2 * (width - new_width))


@functools.cache
def _kernel() -> Callable[..., None] | None:
    try:
        from deit_jax.data.resizing_kernel import resize_rows  # here, because importing numba takes half a second
    except ImportError as error:
        warnings.warn(f"numba cannot be imported ({error}): Pillow resizes, more slowly", stacklevel=2)
        return None
    return resize_rows
