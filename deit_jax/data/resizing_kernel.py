"""The arithmetic of Pillow's 8-bit bicubic resize, compiled by numba into vector instructions.

Pillow weighs the pixels with 22-bit integers in 32-bit sums, which are exact, so that the order of additions is free and any
arrangement gives Pillow's bits. The weights themselves are computed in Pillow's order of operations.

Compiled on first import (two seconds) and kept in numba's cache: beside this file, or in the user's cache folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import boolean, int64, njit, types, void
from numpy import int32, uint8

_BITS = 22  # of the weights' fraction
_HALF = 1 << (_BITS - 1)
_LANES = 16  # rows that the horizontal pass takes at a time
_IMAGE = types.Array(types.uint8, 2, "C", readonly=True)  # pixels from Pillow are read-only; numba takes both as this
_OUT = types.Array(types.uint8, 2, "C")
_BYTES, _SUMS = types.Array(types.uint8, 1, "C"), types.Array(types.int32, 1, "C")
_WHERE, _WEIGHTS = types.Array(types.int64, 2, "C"), types.Array(types.int32, 2, "C")


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        except RuntimeError:  # neither folder can be written
            return njit(signature, nogil=True, error_model="numpy")(function)

    return compile_it


@_compiled(types.Tuple((_WHERE, _WEIGHTS))(int64, int64))
def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """First input pixel and number of input pixels of each output pixel, int64[new_size, 2], and their weights."""
    scale = size / new_size
    stretch = max(scale, 1.0)  # antialiasing: the filter widens when the image shrinks
    support = 2.0 * stretch
    longest = math.ceil(support) * 2 + 1
    where, weights = np.zeros((new_size, 2), np.int64), np.zeros((new_size, longest), np.int32)
    exact = np.zeros(longest, np.float64)
    for i in range(new_size):
        center = (i + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        count = min(int(center + support + 0.5), size) - first
        total = 0.0
        for t in range(count):
            x = abs((t + first - center + 0.5) * (1.0 / stretch))
            weight = 0.0
            if x < 1.0:
                weight = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
            elif x < 2.0:
                weight = (((x - 5) * x + 8) * x - 4) * -0.5
            exact[t] = weight
            total += weight
        for t in range(count):
            weight = exact[t] / total if total != 0.0 else exact[t]
            weights[i, t] = int32(int((-0.5 if weight < 0 else 0.5) + weight * (1 << _BITS)))
        where[i, 0], where[i, 1] = first, count
    return where, weights


@_compiled(void(_SUMS, _BYTES, int64))
def _round(sums: np.ndarray, out: np.ndarray, count: int) -> None:
    for j in range(count):
        out[j] = uint8(min(max(sums[j] >> _BITS, int32(0)), int32(255)))


@_compiled(void(_IMAGE, int64, int64, int64, _WHERE, _WEIGHTS, _OUT))
def _resize_columns(
    image: np.ndarray, top: int, start: int, stop: int, where: np.ndarray, weights: np.ndarray, out: np.ndarray
) -> None:
    """Vertical pass over the bytes [start, stop) of each row; a row of sums at a time."""
    count = stop - start
    sums = np.empty(count, np.int32)
    for y in range(out.shape[0]):
        sums[:] = _HALF
        for t in range(where[y, 1]):
            weight, row = weights[y, t], image[top + where[y, 0] + t, start:stop]
            for j in range(count):
                sums[j] = int32(sums[j] + int32(int32(row[j]) * weight))
        _round(sums, out[y], count)


@_compiled(void(_IMAGE, int64, int64, int64, int64, _WHERE, _WEIGHTS, _OUT))
def _resize_rows(
    image: np.ndarray,
    top: int,
    start: int,
    stop: int,
    height: int,
    where: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """Horizontal pass over the bytes [start, stop) of `height` rows.

    Neighbouring output pixels have different taps, rows have the same: _LANES rows are laid side by side, byte by byte, summed
    together, and taken apart again.
    """
    count, width = stop - start, where.shape[0]
    side_by_side, result = np.empty(count * _LANES, np.uint8), np.empty(width * 3 * _LANES, np.uint8)
    sums = np.empty(3 * _LANES, np.int32)
    for y in range(0, height, _LANES):
        rows = min(_LANES, height - y)
        for r in range(rows):
            row = image[top + y + r, start:stop]
            for i in range(count):
                side_by_side[i * _LANES + r] = row[i]
        for x in range(width):
            first = where[x, 0] * 3 * _LANES
            for j in range(3 * _LANES):
                sums[j] = _HALF
            for t in range(where[x, 1]):
                weight, pixels = weights[x, t], side_by_side[first + t * 3 * _LANES : first + (t + 1) * 3 * _LANES]
                for j in range(3 * _LANES):
                    sums[j] = int32(sums[j] + int32(int32(pixels[j]) * weight))
            _round(sums, result[x * 3 * _LANES : (x + 1) * 3 * _LANES], 3 * _LANES)
        for r in range(rows):
            row = out[y + r]
            for i in range(width * 3):
                row[i] = result[i * _LANES + r]


@_compiled(void(_IMAGE, int64, int64, int64, int64, boolean, _OUT))
def resize_rows(
    image: np.ndarray, top: int, left: int, height: int, width: int, vertical_first: bool, out: np.ndarray
) -> None:
    """Resizes the box [top, top + height) x [left, left + width) of an image into `out`.

    image: uint8[H, 3 W]; out: uint8[h, 3 w]. vertical_first: which pass is first; the one between is rounded to uint8.
    """
    new_height, new_width = out.shape[0], out.shape[1] // 3
    start, stop = left * 3, (left + width) * 3
    if height == new_height:
        where, weights = _taps(width, new_width)
        _resize_rows(image, top, start, stop, height, where, weights, out)
    elif width == new_width:
        where, weights = _taps(height, new_height)
        _resize_columns(image, top, start, stop, where, weights, out)
    elif vertical_first:
        where, weights = _taps(height, new_height)
        between = np.empty((new_height, width * 3), np.uint8)
        _resize_columns(image, top, start, stop, where, weights, between)
        where, weights = _taps(width, new_width)
        _resize_rows(between, 0, 0, width * 3, new_height, where, weights, out)
    else:
        where, weights = _taps(width, new_width)
        between = np.empty((height, new_width * 3), np.uint8)
        _resize_rows(image, top, start, stop, height, where, weights, between)
        where, weights = _taps(height, new_height)
        _resize_columns(between, 0, 0, new_width * 3, where, weights, out)
