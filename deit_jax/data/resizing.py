"""Pillow's antialiased bicubic resize, to the bit, several times faster.

Resizing is the largest part of a crop and Pillow's loops are scalar. `resizing_kernel.py` computes the same sums of the same
integers in vector registers, through numba. Where numba cannot be had, Pillow itself resizes: the same pixels, later.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def resize(image: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Resizes an image, or the part of it in `box`, as `Image.crop(box).resize((width, height), Image.BICUBIC)` does.

    Both results are rounded to uint8 between the vertical and the horizontal pass; which comes first follows Pillow 13 (see
    `vertical_first`), also where an older Pillow, or none, is used for the rest.

    Args:
        image: uint8 `[H, W, 3]`.
        height: pixels of the result.
        width: pixels of the result.
        box: lies in the image and is not empty; None is the whole image.

    Returns:
        uint8 `[height, width, 3]`; a view of `image` if nothing is to be resized.
    """
    box = box or Box(0, 0, *image.shape[:2])
    window = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if box[2:] == (height, width):
        return window
    kernel = _kernel()
    if kernel is None:
        return np.asarray(Image.fromarray(window).resize((width, height), Image.Resampling.BICUBIC))
    out = np.empty((height, width, 3), np.uint8)
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    kernel(rows, *box, vertical_first(box.height, box.width, height, width), out.reshape(height, -1))
    return out


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
